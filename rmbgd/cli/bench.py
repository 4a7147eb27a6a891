"""`rmbgd bench`: measures images per second with the operator's model, device and images; prints tables or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from rmbgd.bench import run as bench
from rmbgd.bench.engine import Measurement
from rmbgd.cli.main import usage_error
from rmbgd.config.load import Config, overlay
from rmbgd.config.settings import EngineSettings, Recipe
from rmbgd.errors import ConfigError, Exit
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable

PRECISIONS = [each for each in get_args(EngineSettings.model_fields["precision"].annotation) if each != "float8"]
ABOUT = """\
For --seconds, batches of each size go through the engine's process (the service's own: arena, worker, child), one at
a time. Then for as long files go through the whole pipeline, as fast as it takes them: read, decode, engine, encode,
sync and rename into a temporary folder. Starting, and the first batches of each size, are not counted.

exit status:
    0  measured
    1  the device failed during the measurement, or an image did not come out
    2  the command line was wrong
   78  no such GPU, no such model, no image to measure with, or the configuration cannot be used
"""
ADVICE = {
    "decode": "decoding: more pipeline.decode_threads, or more processors",
    "device": "the device: larger batches, another precision, a smaller model, or a faster device",
    "encode": "encoding: more pipeline.finish_threads, a lower png_level, or more processors",
    "disk": "syncing to the disk: a faster disk, or more pipeline.finish_threads",
}
MEMORY_KINDS = {"rss": "resident", "rss_peak": "peak", "nvml": "on the device (NVML)"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = ABOUT, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    text = "model to measure: a name of `rmbgd models list`, or a path (default: u2netp)"
    add("--model", metavar="MODEL", help=text)
    text = 'device to measure: "auto", "cpu", "cuda" (the first) or "cuda:N" (default: auto)'
    add("--device", metavar="DEVICE", help=text)
    add("--precision", choices=PRECISIONS, help="number format of the network (default: auto)")
    text = "images to measure with, JPEG and PNG (default: drawn ones, 1024 x 1024)"
    add("--pictures", type=Path, metavar="FOLDER", help=text)
    text = "length of each of the two measurements (default: 20)"
    add("--seconds", type=_seconds, default=20.0, metavar="S", help=text)
    text = "batch sizes to measure, such as 1,2,4 (default: those that the engine offers)"
    add("--batch", type=_sizes, metavar="LIST", help=text)
    text = "directory on the disk to measure (default: the system's for temporary files)"
    add("--scratch", type=Path, metavar="FOLDER", help=text)
    add("--config", type=Path, metavar="FILE", help="configuration with the recipe, engine, threads and directories")
    add("--recipe", default="default", metavar="NAME", help="recipe to measure, of that file (default: default)")
    add("--models-dir", type=Path, metavar="FOLDER", help="directory of fetched models (default: as configured)")
    add("--json", action="store_true", help="print one JSON object instead of tables")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: from 0.1 to 3600 seconds")
    return value


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(word) for word in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not set(sizes) <= set(bench.SIZES):
        raise argparse.ArgumentTypeError(f"{text}: a list of {', '.join(map(str, bench.SIZES))}, such as 1,2,4")
    return sizes


def settings(options: argparse.Namespace) -> tuple[Config, Recipe]:
    """The configuration and the recipe that are measured. Raises ConfigError with every problem."""
    asked = {
        "recipe": {"model": options.model},
        "engine": {"device": options.device, "precision": options.precision},
        "service": {"models_directory": options.models_dir and options.models_dir.absolute()},
        "pipeline": {"batch_maximum": options.batch and options.batch[-1]},
    }
    return overlay(options.config, options.recipe, set(Config.model_fields) - {"recipe", "folder", "bucket"}, asked)


def run(options: argparse.Namespace) -> int:
    try:
        config, recipe = settings(options)
    except ConfigError as error:
        if options.config is not None:
            raise
        return usage_error("bench", error)
    machine, stderr = bench.default_machine(), Console(stderr=True, highlight=False)
    asked = {"sizes": options.batch, "seconds": options.seconds, "scratch": options.scratch}
    with stderr.status("looking for the device") if stderr.is_terminal else nullcontext() as status:

        def step(text: str) -> None:
            if status is not None:
                status.update(escape(text))
            else:
                stderr.print(escape(text), soft_wrap=True)

        wanted = bench.prepared(config, recipe, machine, folder=options.pictures, **asked)  # --pictures
        result = bench.measure(wanted, machine, step)
    if options.json:
        print(to_json(bench.to_json(wanted, result)))
    else:
        show(Console(highlight=False), wanted, result)
    return Exit.OK


def show(console: Console, wanted: bench.Wanted, result: bench.BenchResult) -> None:
    line = partial(console.print, soft_wrap=True)
    description, readings = result.description, result.measurements
    facts = description.models.get(wanted.recipe.model, {})
    sides = sorted({image.rgb.shape[:2] for image in wanted.images})
    size = f"{sides[0][1]} x {sides[0][0]}" + (f" to {sides[-1][1]} x {sides[-1][0]}" if len(sides) > 1 else "")
    line(f"[bold]{_safe(wanted.recipe.model)}[/] on {_safe(description.device)} ({_safe(wanted.target.called)})")
    line(
        f"{_safe(facts.get('precision', wanted.config.engine.precision))}; {len(wanted.images)} images, {size}; "
        f"ready after {result.start_seconds:.1f} s, which is not counted, nor are the first batches of each size"
    )
    console.print(_times(readings))
    line("ms of a batch by stage, its processor time, and the engine process's memory:")
    console.print(_stages(readings))
    for left_out, why in result.left_out.items():
        line(f"[yellow]no batches of {left_out}[/]: {_safe(why)}")
    for limit in result.limits:
        line(f"[yellow]{_safe(limit.what)}[/]: {_safe(limit.detail)}")
    if readings:
        best = max(readings, key=lambda reading: reading.per_second)
        name, share = best.bound
        line(f"Best: {best.per_second:.2f} images/s in batches of {best.size}; {share:.0%} of that time is '{name}'.")
    if (through := result.throughput) is not None:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in through.milliseconds.items() if name != "total")
        line(
            f"\n[bold]Files through the whole pipeline[/]: {through.per_second:.2f} images/s "
            f"({through.images} in {through.seconds:.1f} s, mean batch {through.batch:.1f})"
        )
        line(f"ms per image, waits included: {stages}")
        line(f"not waiting for others: {', '.join(f'{stage} {share:.0%}' for stage, share in through.busy.items())}")
        line(f"Bound by [bold]{through.bound}[/]: {ADVICE[through.bound]}.")


def _times(readings: Sequence[Measurement]) -> Table:
    table = _table("batch", "images/s", "ms", "p50", "p95", "p99", "jitter", "count", "bound by")
    for reading in readings:
        size, rate, spread, (stage, share) = reading.size, reading.per_second, reading.spread, reading.bound
        times = (spread.mean, spread.p50, spread.p95, spread.p99, spread.jitter)
        shown = [f"{value:.1f}" if value is not None else "-" for value in times]
        table.add_row(str(size), f"{rate:.2f}", *shown, str(spread.count), f"{stage} {share:.0%}")
    return table


def _stages(readings: Sequence[Measurement]) -> Table:
    stages = list(dict.fromkeys(stage for reading in readings for stage in reading.stages))
    kinds = list(dict.fromkeys(kind for reading in readings for kind in reading.memory))
    table = _table("batch", *stages, "processor", *(f"{MEMORY_KINDS.get(kind, kind)} MB" for kind in kinds))
    for reading in readings:
        times = [f"{reading.stages.get(stage, 0.0):.1f}" for stage in stages]
        memory = [f"{reading.memory[kind] / 1e6:.0f}" if kind in reading.memory else "-" for kind in kinds]
        table.add_row(str(reading.size), *times, f"{reading.processor:.0f}", *memory)
    return table


def _table(*heads: str) -> Table:
    return Table(*(Column(head, justify="right", no_wrap=True) for head in heads), box=None, pad_edge=False)


def _safe(value: object) -> str:
    return escape(printable(str(value)))
