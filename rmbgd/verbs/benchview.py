"""What a person sees of a measurement: what is measured now, then tables. Decides and measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from rmbgd.verbs.options import printable

if TYPE_CHECKING:
    from rmbgd.bench.engine import Reading
    from rmbgd.bench.line import Throughput
    from rmbgd.bench.run import Result, Wanted

MEANING = {
    "decode": "decoding: more pipeline.decode_threads, or more processors",
    "device": "the device: larger batches, another precision, a smaller model, or a faster device",
    "encode": "encoding: more pipeline.finish_threads, a lower png_level, or more processors",
    "disk": "syncing to the disk: a faster disk, or more pipeline.finish_threads",
}

KINDS = {"rss": "resident", "rss_peak": "peak", "nvml": "on the device (NVML)"}


class BenchView:
    """Used as a context manager around the measurement. `quiet` shows nothing before its end."""

    def __init__(self, *, quiet: bool, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._quiet = quiet
        self._status: Status | None = None
        if not quiet and self._console.is_terminal:
            self._status = self._console.status("")

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, text: str) -> None:
        if self._status is not None:
            self._status.update(escape(text))

    def show(self, wanted: Wanted, result: Result) -> None:
        description = result.description
        facts = description.models.get(wanted.recipe.model, {})
        sides = sorted({picture.rgb.shape[:2] for picture in wanted.pictures})
        size = f"{sides[0][1]} x {sides[0][0]}" + (f" to {sides[-1][1]} x {sides[-1][0]}" if len(sides) > 1 else "")
        self._line(
            f"[bold]{_safe(wanted.recipe.model)}[/] on {_safe(description.device)} ({_safe(wanted.target.called)})"
        )
        precision = facts.get("precision", wanted.config.engine.precision)
        self._line(
            f"{_safe(precision)}; {len(wanted.pictures)} pictures, {size}; "
            f"ready after {result.start_seconds:.1f} s, which is not counted, nor are the first batches of each size"
        )
        self._console.print(_times(result.readings))
        self._line("ms of a batch by stage, its processor time, and the engine process's memory:")
        self._console.print(_stages(result.readings))
        for left_out, why in result.left_out.items():
            self._line(f"[yellow]no batches of {left_out}[/]: {_safe(why)}")
        for limit in result.limits:
            self._line(f"[yellow]{_safe(limit.what)}[/]: {_safe(limit.detail)}")
        if result.readings:
            self._verdict(result.readings)
        if result.throughput is not None:
            self._through(result.throughput)

    def _verdict(self, readings: list[Reading]) -> None:
        best = max(readings, key=lambda reading: reading.per_second)
        name, share = best.bound
        self._line(
            f"Best: {best.per_second:.2f} pictures/s in batches of {best.size}; {share:.0%} of that time is '{name}'."
        )

    def _through(self, through: Throughput) -> None:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in through.milliseconds.items() if name != "total")
        self._line("")
        self._line(
            f"[bold]Files through the whole line[/]: {through.per_second:.2f} pictures/s "
            f"({through.pictures} in {through.seconds:.1f} s, mean batch {through.batch:.1f})"
        )
        self._line(f"ms per picture, waits included: {stages}")
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in through.busy.items())
        self._line(f"not waiting for others: {shares}")
        self._line(f"Bound by [bold]{through.bound}[/]: {MEANING[through.bound]}.")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _times(readings: list[Reading]) -> Table:
    table = _table("batch", "pictures/s", "ms", "p50", "p95", "p99", "jitter", "count", "bound by")
    for reading in readings:
        spread = reading.spread
        times = (spread.mean, spread.p50, spread.p95, spread.p99, spread.jitter)
        name, share = reading.bound
        table.add_row(
            str(reading.size),
            f"{reading.per_second:.2f}",
            *(f"{value:.1f}" if value is not None else "-" for value in times),
            str(spread.count),
            f"{name} {share:.0%}",
        )
    return table


def _stages(readings: list[Reading]) -> Table:
    stages = list(dict.fromkeys(stage for reading in readings for stage in reading.stages))
    kinds = list(dict.fromkeys(kind for reading in readings for kind in reading.memory))
    table = _table("batch", *stages, "processor", *(f"{KINDS.get(kind, kind)} MB" for kind in kinds))
    for reading in readings:
        table.add_row(
            str(reading.size),
            *(f"{reading.stages.get(stage, 0.0):.1f}" for stage in stages),
            f"{reading.processor:.0f}",
            *(f"{reading.memory[kind] / 1e6:.0f}" if kind in reading.memory else "-" for kind in kinds),
        )
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _safe(value: object) -> str:
    return escape(printable(str(value)))
