"""From the sections' answers to tables: rows with ratio and share of the roofline, and targets reached or missed.

Measures nothing; every function is of what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Answers = Mapping[str, Any]

BATCHED = "+ graphs"  # the step that the service runs by default, at every batch size
ACCURACY = "engine, float16"
MEMORY_1, MEMORY_8 = "sized for batches of 1", "sized for batches of 8"


@dataclass(frozen=True, slots=True)
class Target:
    """`reached` is None where nothing was measured."""

    what: str
    must: str
    reach_for: str
    measured: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "missed", None: "not measured"}[self.reached]


def rows_of(answers: Answers, section: str) -> list[dict[str, Any]]:
    found = answers.get(section, {}).get("rows", [])
    return [dict(row) for row in found]


def limits_of(answers: Answers, section: str) -> list[dict[str, Any]]:
    """What engines of a section did without, each said once."""
    said = {tuple(sorted(row.items())): row for row in answers.get(section, {}).get("limits", [])}
    return [dict(row) for row in said.values()]


def naive_ms(answers: Answers, section: str = "naive") -> float | None:
    return next(
        (row["ms"] for row in rows_of(answers, section) if row["step"] == "naive float32" and "ms" in row), None
    )


def completed(answers: Answers, section: str, backbone: str, naive: float | None) -> list[dict[str, Any]]:
    """The rows of a section with per_second, ratio, TFLOP/s and the share of the measured float16 ceiling."""
    ceilings = answers.get("ceilings", {})
    flops, peak = ceilings.get("flops", {}).get(backbone), ceilings.get("float16_tflops")
    found = []
    for row in rows_of(answers, section):
        if "ms" in row:
            per_image = row["ms"] / (row["batch"] if section in ("forwards", "kernels") else 1)
            row |= {"ms": per_image, "per_second": 1000 / per_image}
            row["ratio"] = naive / per_image if naive else None
            row["tflops"] = flops / per_image / 1e9 if flops else None
            row["roofline"] = row["tflops"] / peak if row["tflops"] and peak else None
        found.append(row)
    return found


def targets(answers: Answers) -> list[Target]:
    """What one large GPU is held to, with the figures of this run."""
    naive = naive_ms(answers)
    steps = [row for row in rows_of(answers, "waterfall") if row["step"] == BATCHED and "ms" in row]
    best = min(steps, key=lambda row: row["ms"], default=None)
    latencies = {row["step"]: row for row in rows_of(answers, "latency") if "ms" in row}
    one, eight = latencies.get(MEMORY_1, {}), latencies.get(MEMORY_8, {})
    return [
        _throughput(best, naive),
        _latency(one, naive),
        _jitter(one),
        _memory("8", eight, 2.9, "2.5"),
        _memory("1", one, 1.5, "1.1"),
        _accuracy(rows_of(answers, "accuracy")),
        _sources(answers.get("sources", {})),
        _hot_folder(answers.get("hot_folder", {})),
    ]


def _throughput(best: Mapping[str, Any] | None, naive: float | None) -> Target:
    what, must, reach = "images/s, best bucket, network and pre/post", "3.15x naive, and 150", "214"
    if best is None or naive is None:
        return Target(what, must, reach, "", None)
    rate, ratio = 1000 / best["ms"], naive / best["ms"]
    said = f"{rate:.1f}, {ratio:.2f}x naive, batches of {best['batch']}"
    return Target(what, must, reach, said, ratio >= 3.15 and rate >= 150)


def _latency(one: Mapping[str, Any], naive: float | None) -> Target:
    what, must = "latency of one image, arena to arena, p50", "1/1.7 of naive, and 12 ms"
    if not one or naive is None:
        return Target(what, must, "7 ms", "", None)
    said = f"{one['p50']:.2f} ms, 1/{naive / one['p50']:.2f} of naive"
    return Target(what, must, "7 ms", said, one["p50"] <= naive / 1.7 and one["p50"] <= 12)


def _jitter(one: Mapping[str, Any]) -> Target:
    what, must = "jitter, p99 - p50, one at a time", "5 ms over 1,000 images"
    if one.get("jitter") is None:
        return Target(what, must, "1 ms", "", None)
    said = f"{one['jitter']:.2f} ms over {one['count']}"
    return Target(what, must, "1 ms", said, one["jitter"] <= 5 if one["count"] >= 1000 else None)


def _memory(batch: str, row: Mapping[str, Any], must: float, reach: str) -> Target:
    what = f"GPU memory seen by NVML, engine sized for batches of {batch}"
    held = row.get("memory", {}).get("nvml")
    if held is None:
        return Target(what, f"{must} GB", f"{reach} GB", "", None)
    return Target(what, f"{must} GB", f"{reach} GB", f"{held / 1e9:.2f} GB", held <= must * 1e9)


def _accuracy(rows: Iterable[Mapping[str, Any]]) -> Target:
    what, must = "accuracy, float16", "within the limits, and no worse than plain autocast"
    found = [row for row in rows if row["step"].startswith(ACCURACY) and "error" not in row]
    if not found:
        return Target(what, must, "", "", None)
    said = "; ".join(f"alpha off by {row['mean']:.3f} steps" for row in found)
    return Target(what, must, "", said, all(row["well"] and row["gate"] for row in found))


def _sources(found: Mapping[str, Any]) -> Target:
    what, must = "8 sources at once, p95", "2x the p95 of one"
    one, eight = found.get("1", {}).get("p95"), found.get("8", {}).get("p95")
    if one is None or eight is None:
        return Target(what, must, "", "", None)
    return Target(what, must, "", f"{eight:.0f} ms beside {one:.0f} ms, {eight / one:.2f}x", eight <= 2 * one)


def _hot_folder(found: Mapping[str, Any]) -> Target:
    what, must = "hot folder, JPEG in, PNG out, sustained", "reported over 2,000, with what bounds it"
    if "per_second" not in found or "bound" not in found:
        return Target(what, must, "device-bound", "", None)
    said = f"{found['per_second']:.1f} a second over {found['files']}, bound by {found['bound']}"
    return Target(what, must, "device-bound", said, True if found["files"] >= 2000 else None)
