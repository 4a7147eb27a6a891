"""`rmbgd bench`: what this machine does with a model and with images like the operator's.

Reads options and says what was found; the measuring is the package rmbgd.bench's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from rmbgd.cli.options import printable
from rmbgd.config import load as config
from rmbgd.errors import ConfigError, Exit
from rmbgd.telemetry import jsonl as lines

if TYPE_CHECKING:
    from rmbgd.bench.engine import Reading
    from rmbgd.bench.pipeline import Throughput
    from rmbgd.bench.run import Result, Wanted

# --- What a person sees of a measurement: what is measured now, then tables. Decides and measures nothing.


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
        sides = sorted({image.rgb.shape[:2] for image in wanted.images})
        size = f"{sides[0][1]} x {sides[0][0]}" + (f" to {sides[-1][1]} x {sides[-1][0]}" if len(sides) > 1 else "")
        self._line(
            f"[bold]{_safe(wanted.recipe.model)}[/] on {_safe(description.device)} ({_safe(wanted.target.called)})"
        )
        precision = facts.get("precision", wanted.config.engine.precision)
        self._line(
            f"{_safe(precision)}; {len(wanted.images)} images, {size}; "
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
            f"Best: {best.per_second:.2f} images/s in batches of {best.size}; {share:.0%} of that time is '{name}'."
        )

    def _through(self, through: Throughput) -> None:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in through.milliseconds.items() if name != "total")
        self._line("")
        self._line(
            f"[bold]Files through the whole line[/]: {through.per_second:.2f} images/s "
            f"({through.images} in {through.seconds:.1f} s, mean batch {through.batch:.1f})"
        )
        self._line(f"ms per image, waits included: {stages}")
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in through.busy.items())
        self._line(f"not waiting for others: {shares}")
        self._line(f"Bound by [bold]{through.bound}[/]: {MEANING[through.bound]}.")

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def _times(readings: list[Reading]) -> Table:
    table = _table("batch", "images/s", "ms", "p50", "p95", "p99", "jitter", "count", "bound by")
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


# --- `rmbgd bench`: what this machine does with a model and with images like the operator's.


PRECISIONS = get_args(config.EngineSettings.model_fields["precision"].annotation)
ABOUT = """\
For --seconds, batches of each size go through the engine's process (the service's own: arena, worker, child), one at
a time. Then for as long files go through the whole line, as fast as it takes them: read, decode, engine, encode, sync
and rename into a temporary folder. Starting, and the first batches of each size, are not counted.

exit status:
    0  measured
    1  the device failed while it was measured, or an image did not come out
    2  the command line was wrong
   78  no such GPU, no such model, no image to measure with, or the configuration cannot be used
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = ABOUT, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="MODEL", help="a name of `rmbgd models list`, or a path (default: u2netp)")
    parser.add_argument(
        "--device", metavar="DEVICE", help='"auto", "cpu", "cuda" (the first) or "cuda:N" (default: auto)'
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network's arithmetic (default: auto)")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="JPEG and PNG files (default: drawn, 1024 x 1024)",
    )
    parser.add_argument("--seconds", type=_seconds, default=20.0, metavar="S", help="per half (default: 20)")
    parser.add_argument(
        "--batch", type=_sizes, metavar="LIST", help="sizes such as 1,2,4 (default: what the engine offers)"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="on the disk that shall be measured (default: the system's)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take recipe, engine, threads and directories from here"
    )
    parser.add_argument("--recipe", default="default", metavar="NAME", help="a recipe of that file (default: default)")
    parser.add_argument("--models-dir", type=Path, metavar="FOLDER", help="where fetched models lie")
    parser.add_argument("--json", action="store_true", help="the JSON line alone, for programs")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: from 0.1 to 3600 seconds")
    return value


def _sizes(text: str) -> list[int]:
    from rmbgd.bench.run import SIZES

    try:
        sizes = sorted({int(word) for word in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not set(sizes) <= set(SIZES):
        raise argparse.ArgumentTypeError(f"{text}: a list of {', '.join(map(str, SIZES))}, such as 1,2,4")
    return sizes


def settings(options: argparse.Namespace) -> tuple[config.Config, config.Recipe]:
    """The configuration and the recipe that are measured. Raises ConfigError with every finding."""
    base = config.Config() if options.config is None else config.load(options.config)
    if options.recipe != "default" and options.recipe not in base.recipe:
        raise ConfigError(f"no recipe '{options.recipe}'; there is {', '.join(sorted({'default', *base.recipe}))}")
    recipe = base.recipe.get(options.recipe, config.Recipe())
    said: dict[str, Any] = {"device": options.device, "precision": options.precision}
    tables: dict[str, Any] = base.model_dump(exclude={"recipe", "folder"})
    tables["recipe"] = {options.recipe: recipe.model_dump() | ({"model": options.model} if options.model else {})}
    tables["engine"] |= {name: value for name, value in said.items() if value}
    if options.models_dir:
        tables["service"]["models_directory"] = options.models_dir.absolute()
    if options.batch:
        tables["pipeline"]["batch_maximum"] = options.batch[-1]
    wanted = config.parse(tables, origin="command line")
    return wanted, wanted.recipe[options.recipe]


def run(options: argparse.Namespace) -> int:
    from rmbgd.bench import run as bench

    try:
        wanted, recipe = settings(options)
    except ConfigError as error:
        if options.config is not None:
            raise
        for problem in error.problems:  # nothing but the command line can be wrong
            print(f"rmbgd bench: {problem.removeprefix('command line: ')}", file=sys.stderr)
        return Exit.USAGE
    machine = bench.default_machine()
    with BenchView(quiet=options.json) as view:
        view.step("looking for the device")
        job = bench.prepared(
            wanted,
            recipe,
            machine,
            folder=options.pictures,
            sizes=options.batch,
            seconds=options.seconds,
            scratch=options.scratch,
        )
        result = bench.measure(job, machine, view.step)
    if not options.json:
        view.show(job, result)
    print(lines.to_json(bench.to_json(job, result)))
    return Exit.OK
