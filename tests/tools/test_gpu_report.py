"""The report of bench gpu: rows get ratio and share, targets are judged by figures and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tools.gpubench.report import TARGETS, completed, shown, targets
from tools.tables import Report

PLAN = {"backbone": "swin_v1_l", "side": 1024, "device": "cuda:0"}


def answers(**changes: Any) -> dict[str, Any]:
    """A run in which every target is reached."""
    latency = {"batch": 1, "ms": 8.0, "p50": 8.0, "jitter": 1.0, "count": 1000, "memory": {"nvml": 1.2e9}}
    accuracy = {"step": "engine, float16, batches of 1", "mean": 0.1, "p999": 1.0, "far": 0.0, "overlap": 1.0}
    found: dict[str, Any] = {
        "ceilings": {"flops": 2.5e12, "float16_tflops": 800.0},
        "naive": {"rows": [{"step": "naive float32", "batch": 1, "ms": 40.0}]},
        "waterfall": {"rows": [
            {"step": "engine, eager float16, folded", "batch": 1, "ms": 4.0},  # no target: the service does not run so
            {"step": "+ graphs", "batch": 1, "ms": 8.0},
            {"step": "+ graphs", "batch": 8, "ms": 5.0},
        ]},
        "latency": {"rows": [
            {"step": "sized for batches of 1"} | latency,
            {"step": "sized for batches of 8"} | latency | {"batch": 8, "count": 20, "memory": {"nvml": 2.4e9}},
        ]},
        "accuracy": {"rows": [accuracy | {"well": True, "gate": True}]},
        "sources": {"1": {"p95": 100.0}, "8": {"p95": 150.0}},
        "hot_folder": {"per_second": 120.0, "files": 2000, "bound": "device"},
    }  # fmt: skip
    return found | changes


def changed(section: str, number: int, **values: Any) -> dict[str, Any]:
    found = answers()
    found[section]["rows"][number] |= values
    return found


def test_reached_run_reaches_everything_and_nothing_measured_nothing() -> None:
    assert {name: reached for name, (_, reached) in targets(answers()).items()} == dict.fromkeys(TARGETS, True)
    assert targets({}) == {}


@pytest.mark.parametrize(
    ("name", "found", "reached"),
    [
        ("throughput", changed("waterfall", 2, ms=6.7), False),  # 149 a second, though 6x naive
        ("throughput", changed("naive", 0, ms=15.0), False),  # 200 a second, but 3.0x naive
        ("latency", changed("latency", 0, p50=12.1), False),
        ("latency", changed("naive", 0, ms=13.5), False),  # 8 ms, but only 1/1.69 of naive
        ("jitter", changed("latency", 0, jitter=5.1), False),
        ("eight", changed("latency", 1, memory={"nvml": 2.91e9}), False),
        ("one", changed("latency", 0, memory={"nvml": 1.51e9}), False),
        ("accuracy", changed("accuracy", 0, well=False), False),
        ("accuracy", changed("accuracy", 0, gate=False), False),
        ("sources", answers(sources={"1": {"p95": 100.0}, "8": {"p95": 201.0}}), False),
        # Too little is no answer to the question.
        ("jitter", changed("latency", 0, count=999), None),
        ("hot_folder", answers(hot_folder={"per_second": 120.0, "files": 1999, "bound": "device"}), None),
        ("sources", answers(sources={"1": {"p95": None}, "8": {"p95": 150.0}}), None),
        ("accuracy", changed("accuracy", 0, error="out of memory"), None),
    ],
)
def test_each_bound_can_be_missed(name: str, found: dict[str, Any], reached: bool | None) -> None:
    assert targets(found).get(name, ("", None))[1] is reached


def test_rows_are_completed() -> None:
    """10 ms for 2.5 TFLOP are 250 TFLOP/s, 31 % of 800, and four times as fast as 40 ms; a forward of 8 is 8 images."""
    rows = [{"step": "s", "batch": 8, "ms": 10.0}, {"step": "t", "error": "no"}]
    found = answers(waterfall={"rows": rows}, kernels={"rows": [{"step": "eager", "batch": 8, "ms": 80.0}]})
    row, failed = completed(found, "waterfall")
    assert (100.0, 4.0, 250.0, 0.3125) == (row["per_second"], row["ratio"], row["tflops"], row["roofline"])
    assert {"step": "t", "error": "no"} == failed
    assert 10.0 == completed(found, "kernels")[0]["ms"]


def test_text_has_every_row_the_errors_and_the_targets_last() -> None:
    found = answers()
    found["waterfall"]["rows"].append({"step": "bfloat16", "batch": 8, "error": "needs [Hopper]"})
    found["waterfall"]["limits"] = [{"step": "+ graphs", "what": "graphs", "detail": "none"}] * 2
    result = {"plan": PLAN, "answers": found, "errors": {"kernels": "did not end within 9 s"}}
    said = Report(list(shown(result)), result).text()
    assert "bfloat16, batches of 8: not measured: needs [Hopper]" in said
    assert 1 == said.count("+ graphs: graphs: none")
    assert "kernels FAILED: did not end within 9 s" in said
    assert said.index("kernels FAILED") < said.index("Targets for one H200")
    assert 8 == said.count(" reached")


def test_text_of_nothing_is_still_a_report() -> None:
    result = {"plan": PLAN, "answers": {"ceilings": {"float16_tflops": 1.0}}, "errors": {"prepare": "no torch"}}
    said = Report(list(shown(result)), result).text()
    assert "prepare FAILED: no torch" in said
    assert 8 == said.count("not measured")
