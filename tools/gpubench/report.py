"""From the sections' answers to tables: what it ran on, each section, what failed, and the targets last.

Measures nothing; every function is of what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from tools.tables import table, values

Answers = Mapping[str, Any]
Columns = Mapping[str, tuple[str, str]]  # head -> (key of a row, how its value is written)

BATCHED = "+ graphs"  # the step that the service runs by default, at every batch size
STEPS: Columns = {
    **{name: (name, "{}") for name in ("step", "type", "batch")},
    "ms/image": ("ms", "{:,.2f}"),
    "images/s": ("per_second", "{:,.2f}"),
    "x naive": ("ratio", "{:,.2f}"),
    "TFLOP/s": ("tflops", "{:,.1f}"),
    "of peak": ("roofline", "{:.0%}"),
    **{name: (name, "{:,.2f}") for name in ("p50", "p99", "jitter")},
    "NVML GB": ("nvml_gb", "{:.2f}"),
}
ACCURACY: Columns = {
    "way": ("step", "{}"),
    "logits": ("relative", "{:.2e}"),
    "alpha mean": ("mean", "{:,.4f}"),
    "p99.9": ("p999", "{:,.1f}"),
    "off by > 8": ("far", "{:.1e}"),
    "overlap": ("overlap", "{:,.5f}"),
    "limits": ("well", "{}"),
    "gate": ("gate", "{}"),
}
CHECKS: Mapping[str, tuple[str, Columns]] = {
    "smoke": ("Smoke", {"step": ("step", "{}"), "found": ("found", "{}"), "error": ("error", "{}")}),
    "first_image": (
        "The first image of its kind, and the second, small network",
        {"kind": ("step", "{}"), "first ms": ("first_ms", "{:,.1f}"), "second ms": ("second_ms", "{:,.1f}")},
    ),
    "profile": (
        "Under the profiler",
        {
            "step": ("step", "{}"),
            "wall ms": ("wall_ms", "{:,.2f}"),
            "in kernels": ("kernels_ms", "{:,.2f}"),
            "launches": ("launches", "{:,}"),
        },
    ),
    "faults": (
        "What befalls a GPU",
        {
            "fault": ("step", "{}"),
            "images": ("images", "{}"),
            "s to the first": ("seconds_to_first", "{:,.2f}"),
            "devices": ("devices", "{}"),
            "events": ("events", "{}"),
        },
    ),
}
TITLES = {
    "naive": "The plain ways, from image to cutout, one at a time",
    "waterfall": "The engine, from arena to arena",
    "tensorrt": "TensorRT, the network alone, on the same images",
    "latency": "One image at a time; memory",
    "kernels": "Each kernel alone, launched one by one",
}

TARGETS = {  # name -> (what, must, reach for)
    "throughput": ("images/s, best bucket, network and pre/post", "3.15x naive, and 150", "214"),
    "latency": ("latency of one image, arena to arena, p50", "1/1.7 of naive, and 12 ms", "7 ms"),
    "jitter": ("jitter, p99 - p50, one at a time", "5 ms over 1,000 images", "1 ms"),
    "eight": ("GPU memory seen by NVML, engine sized for batches of 8", "2.9 GB", "2.5 GB"),
    "one": ("GPU memory seen by NVML, engine sized for batches of 1", "1.5 GB", "1.1 GB"),
    "accuracy": ("accuracy, float16", "within the limits, and no worse than plain autocast", ""),
    "sources": ("8 sources at once, p95", "2x the p95 of one", ""),
    "hot_folder": ("hot folder, JPEG in, PNG out, sustained", "over 2,000, with what bounds it", "device-bound"),
}


def rows_of(answers: Answers, section: str) -> list[dict[str, Any]]:
    return [dict(row) for row in answers.get(section, {}).get("rows", [])]


def outcomes(answers: Answers, section: str) -> dict[str, Any]:
    """Tests by outcome, those that failed by name, and what else the section said."""
    rows = rows_of(answers, section)
    found: dict[str, Any] = Counter(row["outcome"].lower() for row in rows)
    failed = [row["test"] for row in rows if row["outcome"] in ("FAILED", "ERROR")]
    rest = {name: each for name, each in answers[section].items() if name != "rows"}
    return {**found, **({"which": "\n".join(failed)} if failed else {}), **rest}


def naive_ms(answers: Answers) -> float | None:
    return next((row.get("ms") for row in rows_of(answers, "naive") if row["step"] == "naive float32"), None)


def completed(answers: Answers, section: str) -> list[dict[str, Any]]:
    """The rows of a section with per_second, ratio, TFLOP/s and the share of the measured float16 ceiling."""
    ceilings, naive = answers.get("ceilings", {}), naive_ms(answers)
    flops, peak = ceilings.get("flops"), ceilings.get("float16_tflops")
    rows = rows_of(answers, section)
    for row in rows:
        if "ms" in row:
            per_image = row["ms"] / (row["batch"] if section == "kernels" else 1)
            row.setdefault("type", row["step"].rpartition(" ")[2])
            row["nvml_gb"] = row["memory"]["nvml"] / 1e9 if "nvml" in row.get("memory", {}) else None
            row |= {"ms": per_image, "per_second": 1000 / per_image}
            row["ratio"] = naive / per_image if naive else None
            row["tflops"] = flops / per_image / 1e9 if flops else None
            row["roofline"] = row["tflops"] / peak if row["tflops"] and peak else None
    return rows


def targets(answers: Answers) -> dict[str, tuple[str, bool | None]]:
    """Target -> (figures of this run, whether they reach it; None where too little was measured), if there are any."""
    naive = naive_ms(answers)
    steps = [row for row in rows_of(answers, "waterfall") if row["step"] == BATCHED and "ms" in row]
    latencies = {row["step"]: row for row in rows_of(answers, "latency") if "ms" in row}
    one, eight = (latencies.get(f"sized for batches of {size}", {}) for size in (1, 8))
    engine = [row for row in rows_of(answers, "accuracy") if row["step"].startswith("engine, float16")]
    judged = [row for row in engine if "error" not in row]
    single, many = (answers.get("sources", {}).get(droppers, {}).get("p95") for droppers in ("1", "8"))
    hot = answers.get("hot_folder", {})
    measured: dict[str, tuple[str, bool | None]] = {}
    if steps and naive is not None:
        best = min(steps, key=lambda row: row["ms"])
        rate, ratio = 1000 / best["ms"], naive / best["ms"]
        said = f"{rate:.1f}, {ratio:.2f}x naive, batches of {best['batch']}"
        measured["throughput"] = said, ratio >= 3.15 and rate >= 150
    if one and naive is not None:
        said = f"{one['p50']:.2f} ms, 1/{naive / one['p50']:.2f} of naive"
        measured["latency"] = said, one["p50"] <= naive / 1.7 and one["p50"] <= 12
    if one.get("jitter") is not None:
        said = f"{one['jitter']:.2f} ms over {one['count']}"
        measured["jitter"] = said, one["jitter"] <= 5 if one["count"] >= 1000 else None
    for name, row, must in (("eight", eight, 2.9), ("one", one, 1.5)):
        if (held := row.get("memory", {}).get("nvml")) is not None:
            measured[name] = f"{held / 1e9:.2f} GB", held <= must * 1e9
    if judged:
        said = "; ".join(f"alpha off by {row['mean']:.3f} steps" for row in judged)
        measured["accuracy"] = said, all(row["well"] and row["gate"] for row in judged)
    if single is not None and many is not None:
        measured["sources"] = f"{many:.0f} ms beside {single:.0f} ms, {many / single:.2f}x", many <= 2 * single
    if "per_second" in hot and "bound" in hot:
        said = f"{hot['per_second']:.1f} a second over {hot['files']}, bound by {hot['bound']}"
        measured["hot_folder"] = said, True if hot["files"] >= 2000 else None
    return measured


def shown(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    answers, plan = result["answers"], result["plan"]
    yield f"{plan['backbone']}, {plan['side']} x {plan['side']}, on {plan['device']}"
    for section in ("prepare", "ceilings", "hot_folder", "sources"):
        if section in answers:
            yield values(section.replace("_", " "), answers[section])
    for section, (title, columns) in CHECKS.items():
        yield from _rows(title, columns, rows_of(answers, section))
    for section in ("right_kernels", "tests"):
        if section in answers:
            yield values(section.replace("_", " "), outcomes(answers, section))
    yield from _rows("Errors against float32", ACCURACY, rows_of(answers, "accuracy"))
    for section, title in TITLES.items():
        rows = completed(answers, section)
        yield from _rows(title, STEPS, rows)
        limits = answers.get(section, {}).get("limits", [])  # what engines did without, each said once
        yield from dict.fromkeys(escape(f"{row['step']}: {row['what']}: {row['detail']}") for row in limits)
    for name, error in result["errors"].items():
        yield f"[bold]{name}[/] FAILED: {escape(error)}"
    found, verdicts = targets(answers), {True: "reached", False: "missed", None: "not measured"}
    judged = []
    for name, words in TARGETS.items():
        said, reached = found.get(name, ("", None))
        judged.append((*words, said, verdicts[reached]))
    heads = ("what", "must", "reach for", "measured", "")
    yield table("Targets for one H200 with the large backbone", *heads, rows=judged)


def _rows(title: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """A table, if there is anything, and why what is missing in it was not measured."""
    if rows:
        cells = [[_cell(row.get(key), form) for key, form in columns.values()] for row in rows]
        yield table(title, *columns, rows=cells)
    for row in rows:
        if "error" in row:
            batches = f", batches of {row['batch']}" if "batch" in row else ""
            yield escape(f"{row['step']}{batches}: not measured: {row['error']}")


def _cell(value: Any, form: str) -> str | None:
    if value is None or isinstance(value, bool):
        return {None: None, True: "yes", False: "NO"}[value]
    return form.format(value)
