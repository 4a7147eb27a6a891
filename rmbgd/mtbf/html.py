"""Draw the report as one HTML page with plots: no network, no script, light and dark.

Geometry is computed here, in units of the drawing; report.html.j2 writes page and SVG, and escapes every text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from rmbgd import page
from rmbgd.mtbf.logs import DONE, FAILED, ImageTable, counted
from rmbgd.mtbf.machine import MachineHistory, outcomes
from rmbgd.mtbf.report import HOUR, PERCENTS, MtbfReport
from rmbgd.mtbf.statistics import quantile
from rmbgd.mtbf.text import STATE_WORDS, TREND_NOTE, exact, marked, percent, rounded, share
from rmbgd.mtbf.timeline import State, stamp
from rmbgd.wording import duration

DAY = 86400.0
# Seconds between two ticks of a time axis, and how such a tick is written.
TIME_STEPS = [
    (60.0, "%H:%M"), (300.0, "%H:%M"), (900.0, "%H:%M"), (HOUR, "%H:%M"), (3 * HOUR, "%d %b %H:%M"),
    (6 * HOUR, "%d %b %H:%M"), (12 * HOUR, "%d %b %H:%M"), (DAY, "%d %b"), (2 * DAY, "%d %b"), (4 * DAY, "%d %b"),
    (7 * DAY, "%d %b"), (14 * DAY, "%d %b"), (30 * DAY, "%d %b %Y"), (91 * DAY, "%b %Y"), (365 * DAY, "%Y"),
]  # fmt: skip
BIN_STEPS = [60.0, 300.0, 900.0, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY]
BINS, TIME_TICKS = 120, 9  # bars, and ticks of a time axis, at most
COLUMNS = 600  # points of a curve; more would not be seen
WIDTH, ROW = 1000.0, 40.0  # of a drawing; of one machine in it
MACHINES_DRAWN = 40  # beyond it a page of curves is no help; the tables still hold all of them
DEVICE_STYLES = 6  # colours for devices; further ones share the last
FAILURES_SHOWN, REASONS_SHOWN = 200, 8
SHORTEST_HOURS = 0.05  # less is written in minutes and seconds
FASTEST = 0.01  # ms; what is quicker is drawn there
REFUSED = "\0refused"  # among the names of devices

Window = tuple[float, float]
Tick = tuple[float, str]


@dataclass(slots=True)
class Plot:
    """Shapes on two scales, x from `left` to `right`, y from `base` up to `top`; the grid reaches `strip` below."""

    label: str
    left: float
    right: float
    top: float
    base: float
    x_range: Window
    y_range: Window = (0.0, 1.0)
    strip: float = 0.0
    shapes: list[tuple[str, dict[str, str], str]] = field(default_factory=list)  # tag, attributes, text or title

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.base - (value - low) / ((high - low) or 1.0) * (self.base - self.top)

    def draw(self, tag: str, style: str, words: str = "", /, **attributes: float | str) -> None:
        numbers = {k.replace("_", "-"): v if isinstance(v, str) else f"{v:.2f}" for k, v in attributes.items()}
        self.shapes.append((tag, {**numbers, "class": style}, words))

    def span(
        self, times: Window, top: float, height: float, style: str, words: str, least: float, gap: float = 0.0
    ) -> None:
        """A rectangle over a time, as far as it is shown, at least so wide, with a gap to the next."""
        if times[1] >= self.x_range[0] and times[0] <= self.x_range[1]:
            begin, end = self.x(max(times[0], self.x_range[0])), self.x(min(times[1], self.x_range[1]))
            width = max(end - begin - gap, least)
            self.draw("rect", style, words, x=begin + gap / 2, y=top, width=width, height=height)

    def x_axis(self, ticks: Iterable[Tick]) -> None:
        bottom = self.base + self.strip
        for value, words in ticks:
            at = self.x(value)
            self.draw("line", "grid", x1=at, y1=self.top, x2=at, y2=bottom)
            self.draw("text", "tick", words, x=at, y=bottom + 16, text_anchor="middle")

    def y_axis(self, ticks: Iterable[Tick]) -> None:
        for value, words in ticks:
            at = self.y(value)
            self.draw("line", "grid", x1=self.left, y1=at, x2=self.right, y2=at)
            self.draw("text", "tick", words, x=self.left - 8, y=at + 4, text_anchor="end")


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` steps of 1, 2 or 5 times a power of ten, on multiples of the step. `high` lies above `low`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def time_ticks(window: Window) -> list[Tick]:
    """(seconds since 1970, text) of ticks on whole minutes, hours or days UTC."""
    begin, end = window
    step, form = next(((s, f) for s, f in TIME_STEPS if (end - begin) / s <= TIME_TICKS), TIME_STEPS[-1])
    places = range(math.ceil(begin / step), math.floor(end / step) + 1)
    return [(place * step, moment(place * step).strftime(form).lstrip("0") or "0") for place in places]


def power_ticks(least: float, most: float) -> list[Tick]:
    """(power of ten, text) around these milliseconds, at least two."""
    low = math.floor(math.log10(max(least, FASTEST)))
    high = max(math.ceil(math.log10(max(most, FASTEST))), low + 1)
    return [(power, milliseconds(10.0**power)) for power in range(low, high + 1)]


def moment(seconds: float) -> datetime:
    """In UTC, within what a calendar has."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=min(max(seconds, -62135596800.0), 253402300799.0))


def bin_width(window: Window) -> float:
    """Seconds of one bin, so that at most BINS cover the time."""
    return next((step for step in BIN_STEPS if (window[1] - window[0]) / step <= BINS), BIN_STEPS[-1])


def digits(value: float) -> str:
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def milliseconds(value: float) -> str:
    return f"{digits(value / 1000)} s" if value >= 1000 else f"{digits(value)} ms"


def hours(value: float, *, counted: bool = False) -> str:
    """Hours, but what would be no more than zeros of them in minutes and seconds."""
    return f"{exact(value) if counted else rounded(value)} h" if value >= SHORTEST_HOURS else duration(value * 3600)


def shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def joined(stretches: Iterable[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """(begin, end, what), neighbours of one kind as one, so that a thousand short ones stay one rectangle."""
    result: list[tuple[float, float, str]] = []
    for begin, end, what in stretches:
        if result and result[-1][2] == what and begin - result[-1][1] < 1e-3:
            result[-1] = (result[-1][0], end, what)
        else:
            result.append((begin, end, what))
    return result


def device_styles(machines: Sequence[MachineHistory]) -> dict[str, str]:
    """A colour for each device, the same in all plots: GPUs first, the CPU always the same."""
    names = {heartbeat.device for machine in machines for heartbeat in machine.heartbeats}
    names |= {name for machine in machines for name in machine.counts["devices"]}
    styles = {name: f"device{min(place, DEVICE_STYLES - 1)}" for place, name in enumerate(sorted(names - {"cpu"}))}
    return styles | ({"cpu": "cpu"} if "cpu" in names else {})


def life(machines: Sequence[MachineHistory], window: Window) -> Plot:
    """One row per machine: what it was doing, when it failed, when a device was away."""
    label = "operating time and failures of each machine"
    plot = Plot(label, 170, WIDTH - 150, 8, 8 + ROW * len(machines), window)
    plot.x_axis(time_ticks(window))
    for row, machine in enumerate(machines):
        top = plot.top + row * ROW + 14
        plot.draw("text", "label", shortened(machine.name, 22), x=plot.left - 12, y=top + 11, text_anchor="end")
        spans = joined((span.begin, span.end, span.kind) for span in machine.timeline.spans)
        for begin, end, kind in sorted(spans, key=lambda span: span[2] != State.UP):
            words = f"{STATE_WORDS[State(kind)]}: {stamp(begin)}, {duration(end - begin)}"
            plot.span((begin, end), top, 13, f"span {kind}", words, 0.8)
        for trip in machine.trips:
            words = f"{trip.device} to {trip.to}: {trip.reason}, {stamp(trip.at)}, {duration(trip.until - trip.at)}"
            plot.span((trip.at, trip.until), top + 15, 4, "away", words, 1.2)
        for failure in machine.failures:
            at = plot.x(failure.at)
            triangle = f"M{at - 5:.2f} {top - 10:.2f}L{at + 5:.2f} {top - 10:.2f}L{at:.2f} {top - 1:.2f}Z"
            down = "not back" if failure.down is None else f"down {duration(failure.down)}"
            plot.draw("path", "failure", f"{failure.cause}, {stamp(failure.at)}, {down}", d=triangle)
        count = len(machine.failures)
        plot.draw("text", "label", f"{machine.operating / HOUR:,.1f} h", x=plot.right + 12, y=top + 5)
        plot.draw("text", "bad" if count else "tick", counted(count, "failure"), x=plot.right + 12, y=top + 19)
    return plot


def temperature(machine: MachineHistory, window: Window, styles: dict[str, str]) -> Plot | None:
    """The hottest device at each heartbeat, and under it the device in use."""
    if not machine.heartbeats:
        return None
    known = [sample.hottest for sample in machine.heartbeats if sample.hottest is not None]
    low, high = math.floor(min([30.0, *known]) / 10) * 10, math.ceil(max([90.0, *known]) / 10) * 10
    label = f"temperature and device in use of {machine.name}"
    plot = Plot(label, 60, WIDTH - 20, 10, 120 if known else 12, window, (low, high), 16)
    plot.x_axis(time_ticks(window))
    if known:
        plot.y_axis((value, f"{digits(value)} °C") for value in ticks(low, high, 4))
        for trip in machine.trips:
            words = f"{trip.device} to {trip.to}: {trip.reason}, {stamp(trip.at)}"
            plot.span((trip.at, trip.until), plot.top, plot.base - plot.top, "shade", words, 1.0)
        for threshold in sorted({trip.threshold for trip in machine.trips if trip.threshold is not None}):
            at = plot.y(threshold)
            plot.draw("line", "limit", x1=plot.left, y1=at, x2=plot.right, y2=at)
        plot.draw("path", "curve", d=_curve(machine, plot))
    later = [*(sample.at for sample in machine.heartbeats[1:]), math.inf]
    used = (
        (sample.at, after if after - sample.at <= machine.gap else sample.at, sample.device)
        for sample, after in zip(machine.heartbeats, later, strict=True)
    )
    for begin, end, device in joined(used):
        words = f"{device}: {stamp(begin)}, {duration(end - begin)}"
        plot.span((begin, end), plot.base + 6, 10, styles[device], words, 0.8)
    return plot


def _curve(machine: MachineHistory, plot: Plot) -> str:
    """A line through the highest value of each column, broken where heartbeats are missing."""
    start, end = plot.x_range
    width = (end - start) / COLUMNS
    path, pen, last = "", "M", -math.inf
    for column, group in groupby(machine.heartbeats, key=lambda sample: int((sample.at - start) / width)):
        samples = list(group)
        if samples[0].at - last > max(machine.gap, 2 * width):
            pen = "M"
        if values := [sample.hottest for sample in samples if sample.hottest is not None]:
            path += f"{pen}{plot.x(start + (column + 0.5) * width):.2f} {plot.y(max(values)):.2f}"
            pen = "L"
        last = samples[-1].at
    return path


def _binned(report: MtbfReport, window: Window) -> Iterator[tuple[Window, ImageTable, int]]:
    """(begin and end of the bin, table, row) of each image outcome in the window."""
    width = bin_width(window)
    first, last = (math.floor(at / width) for at in window)
    for machine in report.machines:
        for at, table, row in outcomes(machine.boots):
            if first <= (place := math.floor(at / width)) <= last:
                yield (place * width, (place + 1) * width), table, row


def images_per_hour(report: MtbfReport, window: Window, styles: dict[str, str]) -> Plot | None:
    """Published images by device, rejected ones on top, as a rate per hour in bins."""
    bins: dict[Window, Counter[str]] = {}
    for times, table, row in _binned(report, window):
        if table.kind[row] in (DONE, FAILED):
            word = table.word[row] if table.kind[row] == DONE else REFUSED
            bins.setdefault(times, Counter())[word] += 1
    if not bins:
        return None
    per_hour = HOUR / bin_width(window)
    highest = max(counts.total() for counts in bins.values()) * per_hour
    plot = Plot("images an hour", 70, WIDTH - 20, 12, 190, window, (0, max(ticks(0, highest * 1.15, 4)[-1], highest)))
    plot.y_axis((value, digits(value)) for value in ticks(*plot.y_range, 4))
    plot.x_axis(time_ticks(window))
    for times, counts in sorted(bins.items()):
        base = 0.0
        for name, style in {**styles, REFUSED: "down"}.items():
            if counts[name]:
                rate = counts[name] * per_hour
                said = f"{counts[name]:,} {name.removeprefix(chr(0))}, {digits(rate)} an hour"
                top, bottom = plot.y(base + rate), plot.y(base)
                plot.span(times, top, bottom - top, style, f"{moment(times[0]):%d %b %H:%M}: {said}", 0.6, 1)
                base += rate
    return plot


def stage_times(report: MtbfReport) -> Plot | None:
    """Each stage on one logarithmic scale of milliseconds: from 5 to 95 %, the median marked."""
    times = report.stage_times()
    if not times:
        return None
    powers = power_ticks(min(low for low, _, _ in times.values()), max(high for _, _, high in times.values()))
    plot = Plot("time in each stage", 110, WIDTH - 230, 8, 8 + 30 * len(times), (powers[0][0], powers[-1][0]))
    plot.x_axis(powers)
    for row, (stage, values) in enumerate(times.items()):
        middle = plot.top + 30 * row + 15
        begin, centre, end = (math.log10(max(value, FASTEST)) for value in values)
        low, median, high = (milliseconds(value) for value in values)
        words = f"{stage}: median {median}, 5 to 95 %: {low} – {high}"
        plot.draw("text", "label", shortened(stage, 14), x=plot.left - 12, y=middle + 4, text_anchor="end")
        plot.span((begin, end), middle - 6, 12, "total" if stage == "total" else "stage", words, 2.0)
        plot.draw("line", "median", x1=plot.x(centre), y1=middle - 9, x2=plot.x(centre), y2=middle + 9)
        plot.draw("text", "label", f"{median}  ({low} – {high})", x=plot.right + 14, y=middle + 4)
    return plot


def latency(report: MtbfReport, window: Window) -> Plot | None:
    """From claim to outcome: median and 95 % of each bin, on a logarithmic scale."""
    bins: dict[Window, list[float]] = {}
    for times, table, row in _binned(report, window):
        if table.kind[row] == DONE and "total" in table.stages and not math.isnan(total := table.stages["total"][row]):
            bins.setdefault(times, []).append(max(total, FASTEST))
    if not bins:
        return None
    shares = {times: [quantile(sorted(values), each) for each in (0.5, 0.95)] for times, values in sorted(bins.items())}
    powers = power_ticks(min(middle for middle, _ in shares.values()), max(late for _, late in shares.values()))
    plot = Plot("time from claim to outcome", 70, WIDTH - 20, 12, 160, window, (powers[0][0], powers[-1][0]))
    plot.x_axis(time_ticks(window))
    plot.y_axis(powers)
    for times, (middle, late) in shares.items():
        words = f"{moment(times[0]):%d %b %H:%M}: median {milliseconds(middle)}, 95 % {milliseconds(late)}"
        bottom, top = plot.y(math.log10(middle)), plot.y(math.log10(late))
        plot.span(times, top, bottom - top, "spread", words, 0.6, 1)
        plot.span(times, bottom - 1.5, 3, "middle", words, 0.6, 1)
    return plot


def template() -> Any:
    """Raises ConfigError where jinja2 is not installed."""
    filters: dict[str, Callable[..., object]] = {"number": format, "duration": duration, "hours": hours}
    words = {"percent": percent, "stamp": stamp, "rounded": rounded, "share": share}
    return page.template("rmbgd.mtbf", "report.html.j2", filters | words)


def render(report: MtbfReport) -> str:
    """Raises ConfigError where jinja2 is not installed."""
    styles, drawn = device_styles(report.machines), report.machines[:MACHINES_DRAWN]
    begin, end = report.window or (0.0, 0.0)
    window = (begin, end if end > begin else begin + 1.0)
    legend = {words: str(kind) for kind, words in STATE_WORDS.items() if report.seconds(kind)}
    if report.failures:
        legend.pop(STATE_WORDS[State.DOWN], None)
        legend["▼ failure, and down since"] = "down"
    if report.trips:
        legend["work on another device"] = "away"
    text = template().render(
        report=report, mtbf=report.mtbf, shares=sorted({*PERCENTS, report.confidence}),
        so_many=counted(len(report.failures), "failure"),
        legend=legend, styles=styles, left=len(report.machines) - len(drawn), life=life(drawn, window),
        temperatures={each.name: temperature(each, window, styles) for each in drawn},
        images=images_per_hour(report, window, styles), stages=stage_times(report), latency=latency(report, window),
        failures_shown=FAILURES_SHOWN, reasons_shown=REASONS_SHOWN, trend_note=TREND_NOTE,
        further=marked(report.further),
    )  # fmt: skip
    return str(text).replace(" %", "\u00a0%")  # a number stays with its sign
