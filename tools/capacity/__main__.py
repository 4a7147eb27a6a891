"""How many GPUs and cores a fleet needs for a p95 latency: simulates arrivals, workers, batches and failures.

    python -m tools.capacity plan --p95 10 --arrivals mean peak day --speed 26 190 --kind 1600-png1 --plot day.svg
    python -m tools.capacity plan --log worker.jsonl --arrivals week --backfill 30000000 --mtbf 168
    python -m tools.capacity validate --processors 2 --log a.jsonl b.jsonl --cpu-seconds 61.3 \\
                                                     --log c.jsonl --cpu-seconds 60.8

`plan` looks for the fewest GPUs (one for each worker) with more cores than they need, then for the fewest cores for
each worker with that many GPUs. Latency is from the announcement to the finished output, of new images; the backfill
takes what they leave. Up to --exact images are simulated one by one, more in aggregates (tools/capacity/fleet.py says
how exact both are; `exact to` is what aggregates do not tell). `load` is the utilisation of the GPUs: the mean rate
over what all of them can do. Latency grows without bound as load nears 1. Failures are as likely during the search as
afterwards: a target that is met with them needs no spare.

`validate` simulates real runs with measured stage times: workers on one machine, a network that computes nothing, all
images announced at once (`python -m tools.fleet run`). Simulated over real images per processor second should be near
1. What no stage measures (leases, the broker, the log, the network that computes nothing) is missing; --calibrate takes
it from the first run, in proportion to the stages, and the other runs then test it. Logs of older services have no
processor times: their stage times are too long where threads wait for a processor. Take them, by --times, from a run of
the same images by one worker with one thread for each stage on a machine that does nothing else; without, they are
shortened to the processors' share, which is right only if nothing else ran.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.console import Console

from tools.capacity.fleet import Faults, Fleet, Outcome, by_image, in_aggregate
from tools.capacity.load import CURVES, HOUR, BadInput, Curve, Device, Measured, Times, read_logs
from tools.tables import Report, table

# Processor seconds of decoding and encoding, by longer side in pixels and output: Pillow, an upper bound.
KINDS = {
    "1000-png1": (0.005, 0.055),
    "1600-png1": (0.012, 0.131),
    "1600-png6": (0.012, 0.557),
    "1600-webp": (0.012, 0.139),
    "1600-matte": (0.012, 0.018),
    "2400-png1": (0.027, 0.324),
}
SPEEDS = (9.0, 26.0, 190.0)  # images/s: published or projected for an RTX 4080 Super, an RTX 4080, an H200
MOST_WORKERS = 50  # times what half of the mean rate needs; if those do not help, more will not
PERCENTS = 50, 95, 99


def fewest(enough: Callable[[int], bool], least: int, most: int) -> int | None:
    """The smallest number from `least` to `most` that is enough; None when none is. More is never worse."""
    step, high = 1, least
    while not enough(high):
        if high >= most:
            return None
        least, high, step = high + 1, min(high + step, most), 2 * step
    while least < high:
        middle = (least + high) // 2
        least, high = (least, middle) if enough(middle) else (middle + 1, high)
    return high


def exact(curve: Curve, options: argparse.Namespace) -> bool:
    """Whether the images are few enough to be simulated one by one."""
    return bool(curve.images() + options.backfill <= options.exact)


def simulated(fleet: Fleet, curve: Curve, options: argparse.Namespace) -> Outcome:
    if exact(curve, options):
        arrivals = curve.arrivals(np.random.default_rng(options.seed))
        return by_image(fleet, arrivals, options.backfill, options.seed)
    return in_aggregate(fleet, curve, options.backfill, options.seed)


def needed(fleet: Fleet, curve: Curve, options: argparse.Namespace) -> Fleet | None:
    """The smallest fleet that meets the target; None when more workers do not help."""

    target: float = options.p95
    dice = np.random.default_rng(options.seed)
    alone = fleet.decode.draw(dice, 10_000) + fleet.encode.draw(dice, 10_000) + fleet.device.seconds(1)
    if np.percentile(alone, 95) > target:
        return None

    def meets(candidate: Fleet) -> bool:
        return simulated(candidate, curve, options).percentile(95) <= target

    mean, device = curve.images() / curve.seconds, fleet.device.rate()
    ample = max(1, math.ceil(2 * device * fleet.core_seconds) + 1) if math.isfinite(device) else fleet.cores
    least = max(1, math.ceil(0.5 * mean / device))  # half: a queue may outlast the arrivals
    workers = fewest(lambda count: meets(replace(fleet, workers=count, cores=ample)), least, MOST_WORKERS * least)
    if workers is None:
        return None
    fleet = replace(fleet, workers=workers)
    cores = fewest(lambda count: meets(replace(fleet, cores=count)), 1, ample)
    return replace(fleet, cores=cores or ample)


def plan(options: argparse.Namespace) -> Report:
    if options.plot and options.plot.suffix not in {".svg", ".png"}:
        raise BadInput(f"--plot {options.plot}: give a name that ends in .svg or .png")
    if not options.sale_hours[0] < options.sale_hours[1] <= 24:
        raise BadInput("--sale-hours: give two hours of a day, the earlier first, such as 18 22")
    measured = read_logs(options.log) if options.log else None
    faults = Faults(
        options.mtbf * HOUR,
        options.mttr,
        options.gpu_mtbf * HOUR,
        options.gpu_mttr,
        options.slower,
        options.lease,
    )
    rows, found, shown = [], list[dict[str, Any]](), list[tuple[str, Outcome]]()
    for name in options.arrivals:
        seconds = options.hours * HOUR if options.hours else CURVES[name]
        curve = Curve(name, seconds, options.mean, options.peak, options.sale, tuple(options.sale_hours))
        for device, speed in devices(options, measured):
            for kind, decode, encode in kinds(options, measured):
                fleet = needed(Fleet(1, 1, decode, encode, device, faults), curve, options)
                row: dict[str, Any] = {"arrivals": name, "speed": speed, "kind": kind, "gpus": None}
                if fleet is None:
                    rows.append((f"{name}, {speed}, {kind}", "out of reach", *[None] * 10))
                    found.append(row)
                    continue
                outcome = simulated(fleet, curve, options)
                shown.append((f"{name}, {speed}, {kind}: {fleet.workers} GPUs", outcome))
                latency = {f"p{percent}": outcome.percentile(percent) for percent in PERCENTS}
                row |= {
                    "gpus": fleet.workers,
                    "cores": fleet.workers * fleet.cores,
                    "load": curve.images() / curve.seconds / (fleet.workers * device.rate()),
                    **{name: _finite(value) for name, value in latency.items()},
                    "backlog_maximum": round(float(outcome.backlog.max())),
                    "drain_seconds": _finite(max(0.0, outcome.drained - curve.seconds)),
                    "backfilled_seconds": _finite(outcome.backfilled),
                    "redone": outcome.redone,
                    "resolution_seconds": 0.0 if exact(curve, options) else fleet.resolution,
                }
                found.append(row)
                cells = [
                    _words(row[key]) for key in (*latency, "backlog_maximum", "drain_seconds", "backfilled_seconds")
                ]
                rows.append(
                    (
                        f"{name}, {speed}, {kind}",
                        row["gpus"],
                        row["cores"],
                        f"{row['load']:.2f}",
                        *cells,
                        row["redone"],
                        f"{row['resolution_seconds']:.1f}",
                    )
                )
    heads = (
        "GPUs",
        "cores",
        "load",
        *(f"p{percent} s" for percent in PERCENTS),
        "backlog",
        "drain s",
        "redone",
        "exact to s",
    )
    title = f"fewest GPUs, then cores, for a p95 of {options.p95:g} s"
    if options.plot and shown:
        plot(options.plot, shown)
    status = 0 if len(shown) == len(found) else 1
    return Report([table(title, "arrivals, images/s of a GPU, output", *heads, rows=rows)], {"fleets": found}, status)


def devices(options: argparse.Namespace, measured: Measured | None) -> list[tuple[Device, str]]:
    if measured and not options.speed:
        return [(measured.device, f"{measured.device.rate():.3g}")]
    return [(Device.of_rate(speed, options.batch), f"{speed:g}") for speed in options.speed or SPEEDS]


def kinds(options: argparse.Namespace, measured: Measured | None) -> list[tuple[str, Times, Times]]:
    if measured:
        return [("measured", measured.decode, measured.encode)]
    return [(kind, Times(KINDS[kind][0], options.cv), Times(KINDS[kind][1], options.cv)) for kind in options.kind]


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _words(value: float | None) -> str:
    return "never" if value is None else f"{value:,.2f}" if value < 100 and value % 1 else f"{value:,.0f}"


def plot(path: Path, shown: Sequence[tuple[str, Outcome]]) -> None:
    """Arrivals, backlog and p95 over time. Raises BadInput when the file cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput("--plot needs matplotlib: pip install 'rmbgd[capacity]'") from error
    figure = Figure(figsize=(10, 9), layout="constrained")
    rate, backlog, p95 = figure.subplots(3, 1, sharex=True)
    for name, outcome in shown:
        size = int(np.searchsorted(outcome.grid, outcome.drained))
        every = max(1, size // 1000)
        whole = size // every * every
        hours = outcome.grid[:whole].reshape(-1, every).mean(1) / HOUR
        rate.plot(hours, outcome.arrivals[:whole].reshape(-1, every).mean(1))
        waiting = outcome.backlog + outcome.backfill
        backlog.plot(hours, waiting[:whole].reshape(-1, every).max(1))
        at, values = outcome.over_time(95)
        p95.plot(at / HOUR, values, label=name)
    rate.set_ylabel("arrivals, images/s")
    backlog.set_ylabel("in the system, images")
    p95.set_ylabel("p95 latency, s")
    p95.set_xlabel("hours")
    p95.legend(fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"--plot {path}: {error}") from error


def validate(options: argparse.Namespace) -> Report:
    if len(options.log) != len(options.cpu_seconds):
        raise BadInput(
            f"{len(options.log)} times --log, {len(options.cpu_seconds)} times --cpu-seconds: give one for each"
        )
    rows, found, overhead = [], list[dict[str, Any]](), options.overhead / 1000
    factor = 1.0
    calm = read_logs(options.times) if options.times else None
    for number, (logs, processor) in enumerate(zip(options.log, options.cpu_seconds, strict=True)):
        run = read_logs(logs)
        times = calm or run
        workers = options.workers or len(logs)
        quiet = calm is not None or times.processor or not times.busy
        share = 1.0 if quiet else min(1.0, options.processors * run.seconds / run.busy)
        if options.calibrate and not number:
            measured, real = times.busy * share / times.images, processor / run.images
            if times.processor:  # in proportion: a machine that is slower for a while is slower at everything
                factor = real / measured
            else:
                overhead, factor = max(0.0, real - measured), min(1.0, real / measured)
        share *= factor
        decode, encode = times.decode.scaled(share), times.encode.scaled(share)
        batches = {size: each.scaled(share) for size, each in times.device.batches.items()}
        device = Device(batches, times.device.largest)
        encode = replace(encode, mean=encode.mean + overhead, samples=tuple(each + overhead for each in encode.samples))
        fleet = Fleet(workers, options.processors, decode, encode, device, shared=True)
        outcome = by_image(fleet, np.zeros(run.images), seed=options.seed + number)
        spent = outcome.busy + (0.0 if times.processor else outcome.device_busy)
        real, model = run.images / processor, run.images / spent if spent else math.inf
        row = {
            "logs": [str(log) for log in logs],
            "workers": workers,
            "images": run.images,
            "real_per_processor_second": real,
            "simulated_per_processor_second": _finite(model),
            "ratio": _finite(model / real),
            "real_per_second": run.images / run.seconds if run.seconds else None,
            "simulated_per_second": run.images / outcome.drained if outcome.drained else None,
            "stage_times_scaled_by": share,
            "overhead_ms": 1000 * overhead,
            "calibrated_here": options.calibrate and not number,
        }
        found.append(row)
        figures = [None if row[key] is None else f"{row[key]:.2f}" for key in list(row)[3:10]]
        rows.append((f"{logs[0]}{' (calibrated)' if row['calibrated_here'] else ''}", workers, run.images, *figures))
    tested = [row["ratio"] for row in found if not row["calibrated_here"] and row["ratio"] is not None]
    summary = {"ratio_lowest": min(tested, default=None), "ratio_highest": max(tested, default=None)}
    heads = (
        "workers",
        "images",
        "real /cpu s",
        "simulated /cpu s",
        "ratio",
        "real /s",
        "simulated /s",
        "scaled",
        "extra ms",
    )
    shown = table("images per processor second and per second, simulated and real", "run", *heads, rows=rows)
    return Report([shown], {"runs": found, **summary})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"capacity: {message}\n")


def _number(least: float, kind: type[float] = float, *, above: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or value < least or (above and value == least) or math.isinf(value):
            raise argparse.ArgumentTypeError(
                f"'{text}' is no {'whole ' if kind is int else ''}number "
                f"{'above' if above else 'from'} {least:g}{'' if above else ' on'}"
            )
        return value

    return read


def parser() -> argparse.ArgumentParser:
    above, natural, whole = _number(0.0, above=True), _number(1, int), _number(0, int)
    made = _Parser("capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True)
    to_plan = commands.add_parser("plan", help="GPUs and cores for a latency")
    add = to_plan.add_argument
    add("--p95", type=above, default=10.0, metavar="S", help="target, seconds (default: %(default)s)")
    add("--arrivals", nargs="+", choices=CURVES, default=["mean", "peak", "day"], help="default: mean peak day")
    add("--mean", type=above, default=93.0, help="images/s, of a day as well (default: %(default)s)")
    add("--peak", type=above, default=300.0, help="highest images/s (default: %(default)s)")
    add("--sale", type=above, default=3.0, help="multiple on a sales day (default: %(default)s)")
    add(
        "--sale-hours",
        type=_number(0.0),
        nargs=2,
        default=[18.0, 22.0],
        metavar=("BEGIN", "END"),
        help="default: 18 22",
    )
    add("--hours", type=above, help="simulated (default: 24; peak 2, week 168)")
    add("--backfill", type=whole, default=0, metavar="N", help="images at lower priority, from the start")
    add("--speed", type=above, nargs="+", help="images/s of a GPU (default: the log's; without one 9 26 190)")
    add("--batch", type=natural, default=8, help="largest batch at --speed (default: %(default)s)")
    add("--kind", nargs="+", choices=KINDS, default=["1600-png1"], help="output (default: 1600-png1)")
    add(
        "--cv",
        type=_number(0.0),
        default=0.5,
        help="standard deviation over mean of decode, encode (default: %(default)s)",
    )
    add("--log", type=Path, nargs="+", help="take the stages' times from image.done of these JSON logs")
    add("--mtbf", type=above, default=math.inf, metavar="H", help="hours between failures of a worker")
    add("--mttr", type=above, default=300.0, metavar="S", help="seconds until it is back (default: %(default)s)")
    add("--gpu-mtbf", type=above, default=math.inf, metavar="H", help="hours between failures of a GPU")
    add("--gpu-mttr", type=above, default=600.0, metavar="S", help="seconds on the CPU (default: %(default)s)")
    add(
        "--slower", type=_number(1.0), default=20.0, help="batches on the CPU take so many times (default: %(default)s)"
    )
    add("--lease", type=_number(0.0), default=60.0, metavar="S", help="until lost images return (default: %(default)s)")
    add("--exact", type=whole, default=20_000, metavar="N", help="image by image up to N images (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE", help=".svg or .png: arrivals, backlog and p95 over time")
    to_validate = commands.add_parser("validate", help="simulated against real images per processor second")
    add = to_validate.add_argument
    add("--log", type=Path, nargs="+", action="append", required=True, help="the logs of a run; repeat for each run")
    add("--cpu-seconds", type=above, action="append", required=True, help="of all workers of a run; repeat likewise")
    add("--times", type=Path, nargs="+", metavar="LOG", help="take stage times from this quiet run instead")
    add("--workers", type=natural, help="of a run (default: one for each log)")
    add("--processors", type=natural, default=2, help="of the machine (default: %(default)s)")
    add("--overhead", type=_number(0.0), default=0.0, metavar="MS", help="processor ms of an image outside the stages")
    add("--calibrate", action="store_true", help="fit the processor seconds to the first run")
    for each in (to_plan, to_validate):
        each.add_argument("--seed", type=whole, default=1, help="of all random numbers (default: %(default)s)")
        each.add_argument("--json", action="store_true", help="figures for machines")
    return made


def main(words: Sequence[str]) -> int:
    made = parser()
    options = made.parse_args(words)
    try:
        report = plan(options) if options.command == "plan" else validate(options)
    except BadInput as error:
        made.error(str(error))
    if options.json:
        print(json.dumps(report.found))
    else:
        Console().print(report.text(), markup=False, highlight=False, soft_wrap=True, end="")
    return report.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
