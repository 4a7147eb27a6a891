"""The result of a run as text: what it ran on, each section's table, what failed, and the targets last."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.gpubench.report import Answers, completed, limits_of, naive_ms, rows_of, targets

WIDTH = 150
HEADS = (
    "step", "type", "batch", "ms/image", "images/s",
    "x naive", "TFLOP/s", "of peak", "p50", "p99", "jitter", "alloc GB",
    "NVML GB",
)  # fmt: skip


def text(result: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, highlight=False)
    answers, plan = result["answers"], result["plan"]
    naive, on_gpu = naive_ms(answers), plan["device"] != "cpu"
    _facts(console, answers, plan)
    _goldens(console, answers)
    _accuracy(console, answers)
    for section, title in (
        ("naive", "The plain ways, from image to cutout, one at a time"),
        ("waterfall", "The engine, from arena to arena"),
        ("latency", "One image at a time; memory"),
        ("kernels", "Each kernel alone, launched one by one"),
        ("forwards", "Our network alone, eager"),
    ):
        _rows(
            console,
            title,
            completed(answers, section, plan["backbone"], naive),
            limits_of(answers, section),
            on_gpu=on_gpu,
        )
    lite = completed(answers, "lite", plan["lite"], naive_ms(answers, "lite"))
    _rows(console, f"{plan['lite']}, likewise", lite, limits_of(answers, "lite"), on_gpu=on_gpu)
    _memory(console, answers)
    _service(console, answers)
    for name, error in result["errors"].items():
        console.print(f"[bold]{name}[/] FAILED: {escape(error)}")
    _targets(console, answers)
    return stream.getvalue()


def _facts(console: Console, answers: Answers, plan: Mapping[str, Any]) -> None:
    facts, ceilings = answers.get("prepare", {}), answers.get("ceilings", {})
    console.print(escape(", ".join(f"{name} {value}" for name, value in facts.items())))
    console.print(f"{plan['backbone']}, {plan['side']} x {plan['side']}, on {plan['device']}")
    if "matrix" in ceilings:  # written last: nothing is missing
        flops = ceilings.get("flops", {}).get(plan["backbone"], 0.0)
        console.print(
            f"ceilings measured here: {ceilings['float16_tflops']:.2f} TFLOP/s float16, "
            f"{ceilings['bfloat16_tflops']:.2f} bfloat16, {ceilings['float32_tflops']:.2f} float32 "
            f"(products of {ceilings['matrix']}), copy {ceilings.get('copy_tbs', 0):.3f} TB/s; "
            f"one image is {flops / 1e12:.3f} TFLOP"
        )


def _rows(
    console: Console,
    title: str,
    rows: Iterable[Mapping[str, Any]],
    limits: Iterable[Mapping[str, Any]],
    *,
    on_gpu: bool,
) -> None:
    rows = list(rows)
    if not rows:
        return
    table, missing = _table(title, *HEADS), []
    for row in rows:
        if "error" in row:
            table.add_row(escape(row["step"]), "", str(row.get("batch", "")))
            missing.append(f"{row['step']}, batches of {row.get('batch', 1)}: not measured: {row['error']}")
            continue
        memory = row.get("memory", {})
        table.add_row(
            escape(row["step"]),
            row.get("type", row["step"].rpartition(" ")[2]),
            str(row["batch"]),
            f"{row['ms']:.2f}",
            f"{row['per_second']:.2f}",
            _number(row.get("ratio"), 2),
            _number(row.get("tflops"), 1),
            f"{row['roofline']:.0%}" if on_gpu and row.get("roofline") else "",
            _number(row.get("p50"), 2),
            _number(row.get("p99"), 2),
            _number(row.get("jitter"), 2),
            _giga(memory.get("allocator")),
            _giga(memory.get("nvml")),
        )
    console.print(table)
    for line in missing:
        console.print(escape(line))
    for row in limits:
        console.print(escape(f"{row['step']}: {row['what']}: {row['detail']}"))


def _goldens(console: Console, answers: Answers) -> None:
    if "skipped" in answers.get("goldens", {}):
        console.print(f"goldens: skipped: {escape(answers['goldens']['skipped'])}")
    rows = rows_of(answers, "goldens")
    if not rows:
        return
    table = _table(
        "Logits against the reference's", "golden", "precision", "largest", "relative", "alpha steps", "well"
    )
    for row in rows:
        table.add_row(
            row["golden"],
            row["precision"],
            f"{row['largest']:.2e}",
            f"{row['relative']:.2e}",
            f"{row['alpha_steps']:.4f}",
            _yes(row["well"]),
        )
    console.print(table)


def _accuracy(console: Console, answers: Answers) -> None:
    rows = rows_of(answers, "accuracy")
    if not rows:
        return
    table = _table(
        "Errors against float32", "way", "logits", "alpha mean", "p99.9", "off by > 8", "overlap", "limits", "gate"
    )
    for row in rows:
        if "error" in row:
            console.print(escape(f"{row['step']}: not measured: {row['error']}"))
            continue
        table.add_row(
            escape(row["step"]),
            f"{row['relative']:.2e}" if "relative" in row else "",
            f"{row['mean']:.4f}",
            f"{row['p999']:.1f}",
            f"{row['far']:.1e}",
            f"{row['overlap']:.5f}",
            _yes(row.get("well")),
            _yes(row.get("gate")),
        )
    console.print(table)


def _memory(console: Console, answers: Answers) -> None:
    for row in rows_of(answers, "memory"):
        memory = row.get("memory", {})
        console.print(
            f"{row['step']}, from within: allocator {_giga(memory.get('allocator')) or '?'} GB, reserved "
            f"{_giga(memory.get('reserved')) or '?'} GB; {row['new_blocks']} new blocks after the first batches"
        )


def _service(console: Console, answers: Answers) -> None:
    hot, sources = answers.get("hot_folder", {}), answers.get("sources", {})
    if "per_second" in hot:
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in hot.get("milliseconds", {}).items())
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in hot.get("busy", {}).items())
        console.print(
            f"Hot folder, {hot['files']} JPEG in, PNG out: {hot['per_second']:.2f} a second on "
            f"{', '.join(hot.get('devices', []))}, mean batch {hot.get('mean_batch', 0):.1f}, "
            f"threads {hot.get('threads', '')}; "
            f"not waiting for others: {shares}; bound by {hot.get('bound', 'unknown')}; ms per image: {stages}"
        )
    for droppers in ("1", "8"):
        row = sources.get(droppers, {})
        if "p50" in row and "rate_of_each" in sources:
            console.print(
                f"{droppers} dropping {sources['rate_of_each']:.2f} a second each ({sources['rate_is']}): "
                f"p50 {row['p50']:.0f} ms, p95 {_number(row['p95'], 0)} ms over {row['count']}"
            )


def _targets(console: Console, answers: Answers) -> None:
    table = _table("Targets for one H200 with the large backbone", "what", "must", "reach for", "measured", "")
    for target in targets(answers):
        table.add_row(*map(escape, (target.what, target.must, target.reach_for, target.measured, target.verdict)))
    console.print(table)


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 or heads[0] == "what" else "right")
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _giga(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "NO"
