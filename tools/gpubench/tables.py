"""The result of a run as tables: what it ran on, each section, what failed, and the targets last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.markup import escape

from tools.gpubench.report import Answers, completed, limits_of, naive_ms, rows_of, targets
from tools.tables import number, table

HEADS = (
    "step", "type", "batch", "ms/image", "images/s", "x naive", "TFLOP/s", "of peak", "p50", "p99", "jitter",
    "alloc GB", "NVML GB",
)  # fmt: skip
TITLES = {
    "naive": "The plain ways, from image to cutout, one at a time",
    "waterfall": "The engine, from arena to arena",
    "latency": "One image at a time; memory",
    "kernels": "Each kernel alone, launched one by one",
    "forwards": "Our network alone, eager",
}


def shown(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    answers, plan = result["answers"], result["plan"]
    naive, on_gpu = naive_ms(answers), plan["device"] != "cpu"
    yield from _facts(answers, plan)
    yield from _goldens(answers)
    yield from _accuracy(answers)
    for section, title in TITLES.items():
        rows = completed(answers, section, plan["backbone"], naive)
        yield from _steps(title, rows, limits_of(answers, section), on_gpu=on_gpu)
    lite = completed(answers, "lite", plan["lite"], naive_ms(answers, "lite"))
    yield from _steps(f"{plan['lite']}, likewise", lite, limits_of(answers, "lite"), on_gpu=on_gpu)
    yield from _memory(answers)
    yield from _service(answers)
    for name, error in result["errors"].items():
        yield f"[bold]{name}[/] FAILED: {escape(error)}"
    judged = [(each.what, each.must, each.reach_for, each.measured, each.verdict) for each in targets(answers)]
    yield table(
        "Targets for one H200 with the large backbone", "what", "must", "reach for", "measured", "", rows=judged
    )


def _facts(answers: Answers, plan: Mapping[str, Any]) -> Iterator[str]:
    facts, ceilings = answers.get("prepare", {}), answers.get("ceilings", {})
    yield escape(", ".join(f"{name} {value}" for name, value in facts.items()))
    yield f"{plan['backbone']}, {plan['side']} x {plan['side']}, on {plan['device']}"
    if "matrix" in ceilings:  # written last: nothing is missing
        flops = ceilings.get("flops", {}).get(plan["backbone"], 0.0)
        yield (
            f"ceilings measured here: {ceilings['float16_tflops']:.2f} TFLOP/s float16, "
            f"{ceilings['bfloat16_tflops']:.2f} bfloat16, {ceilings['float32_tflops']:.2f} float32 "
            f"(products of {ceilings['matrix']}), copy {ceilings.get('copy_tbs', 0):.3f} TB/s; "
            f"one image is {flops / 1e12:.3f} TFLOP"
        )


def _steps(
    title: str, rows: Sequence[Mapping[str, Any]], limits: Iterable[Mapping[str, Any]], *, on_gpu: bool
) -> Iterator[RenderableType]:
    if not rows:
        return
    yield table(title, *HEADS, rows=[_step(row, on_gpu=on_gpu) for row in rows])
    for row in rows:
        if "error" in row:
            yield escape(f"{row['step']}, batches of {row.get('batch', 1)}: not measured: {row['error']}")
    for row in limits:
        yield escape(f"{row['step']}: {row['what']}: {row['detail']}")


def _step(row: Mapping[str, Any], *, on_gpu: bool) -> list[object]:
    if "error" in row:
        return [row["step"], None, row.get("batch")]
    memory = row.get("memory", {})
    return [
        row["step"],
        row.get("type", row["step"].rpartition(" ")[2]),
        row["batch"],
        number(row["ms"], 2),
        number(row["per_second"], 2),
        number(row.get("ratio"), 2),
        number(row.get("tflops"), 1),
        f"{row['roofline']:.0%}" if on_gpu and row.get("roofline") else None,
        *(number(row.get(name), 2) for name in ("p50", "p99", "jitter")),
        _giga(memory.get("allocator")),
        _giga(memory.get("nvml")),
    ]


def _goldens(answers: Answers) -> Iterator[RenderableType]:
    if "skipped" in answers.get("goldens", {}):
        yield f"goldens: skipped: {escape(answers['goldens']['skipped'])}"
    rows = [
        (
            row["golden"],
            row["precision"],
            f"{row['largest']:.2e}",
            f"{row['relative']:.2e}",
            number(row["alpha_steps"], 4),
            _yes(row["well"]),
        )
        for row in rows_of(answers, "goldens")
    ]
    heads = ("golden", "precision", "largest", "relative", "alpha steps", "well")
    if rows:
        yield table("Logits against the reference's", *heads, rows=rows)


def _accuracy(answers: Answers) -> Iterator[RenderableType]:
    found = rows_of(answers, "accuracy")
    rows = [
        (
            row["step"],
            f"{row['relative']:.2e}" if "relative" in row else None,
            number(row["mean"], 4),
            number(row["p999"], 1),
            f"{row['far']:.1e}",
            number(row["overlap"], 5),
            _yes(row.get("well")),
            _yes(row.get("gate")),
        )
        for row in found
        if "error" not in row
    ]
    heads = ("way", "logits", "alpha mean", "p99.9", "off by > 8", "overlap", "limits", "gate")
    if found:
        yield table("Errors against float32", *heads, rows=rows)
    yield from (escape(f"{row['step']}: not measured: {row['error']}") for row in found if "error" in row)


def _memory(answers: Answers) -> Iterator[str]:
    for row in rows_of(answers, "memory"):
        allocator, reserved = (_giga(row.get("memory", {}).get(name)) or "?" for name in ("allocator", "reserved"))
        yield (
            f"{row['step']}, from within: allocator {allocator} GB, reserved {reserved} GB; {row['new_blocks']} new "
            "blocks after the first batches"
        )


def _service(answers: Answers) -> Iterator[str]:
    hot, sources = answers.get("hot_folder", {}), answers.get("sources", {})
    if "per_second" in hot:
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in hot.get("milliseconds", {}).items())
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in hot.get("busy", {}).items())
        yield (
            f"Hot folder, {hot['files']} JPEG in, PNG out: {hot['per_second']:.2f} a second on "
            f"{', '.join(hot.get('devices', []))}, mean batch {hot.get('mean_batch', 0):.1f}, "
            f"threads {hot.get('threads', '')}; "
            f"not waiting for others: {shares}; bound by {hot.get('bound', 'unknown')}; ms per image: {stages}"
        )
    for droppers in ("1", "8"):
        row = sources.get(droppers, {})
        if "p50" in row and "rate_of_each" in sources:
            yield (
                f"{droppers} dropping {sources['rate_of_each']:.2f} a second each ({sources['rate_is']}): "
                f"p50 {row['p50']:.0f} ms, p95 {number(row['p95'], 0)} ms over {row['count']}"
            )


def _giga(value: float | None) -> str | None:
    return None if value is None else f"{value / 1e9:.2f}"


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "NO"
