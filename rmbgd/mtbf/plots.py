"""The plots of the report as SVG text: life of each machine, temperature and device, pictures an hour, stage times.

Takes what report.py has found; draws with axes.py. Colours are classes that the page defines for light and dark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from rmbgd.mtbf.axes import (
    HOUR,
    Frame,
    Scale,
    bin_width,
    line,
    moment,
    number,
    path,
    rect,
    svg,
    text,
    ticks,
    time_axis,
    value_axis,
)
from rmbgd.mtbf.look import DEVICE_STYLES
from rmbgd.mtbf.machine import Machine
from rmbgd.mtbf.pictures import DONE, FAILED
from rmbgd.mtbf.report import Summary
from rmbgd.mtbf.statistics import quantile
from rmbgd.mtbf.text import duration
from rmbgd.mtbf.timeline import Kind, Span, stamp

WIDTH = 1000.0
ROW = 40.0  # of one machine on the time line
COLUMNS = 600  # points of a curve; more would not be seen
BINS = 120  # bars
MACHINES_DRAWN = 40  # beyond it a page of curves is no help; the tables still hold everybody

KIND_WORDS = {
    Kind.UP: "in service",
    Kind.DOWN: "down",
    Kind.PLANNED: "stopped on purpose",
    Kind.POWER_LOSS: "without power",
    Kind.UNOBSERVED: "not observed",
}


def window_of(summary: Summary) -> tuple[float, float]:
    window = summary.window
    assert window is not None
    begin, end = window
    return (begin, end) if end > begin else (begin, begin + 1.0)


def device_styles(machines: Iterable[Machine]) -> dict[str, str]:
    """A colour for each device, the same in all plots: GPUs first, the CPU always the same."""
    names = {beat.device for machine in machines for beat in machine.beats}
    names |= {name for machine in machines for name in machine.counts["devices"]}
    others = sorted(names - {"cpu"})
    styles = {name: f"device{min(place, DEVICE_STYLES - 1)}" for place, name in enumerate(others)}
    return styles | ({"cpu": "cpu"} if "cpu" in names else {})


# --- life of each machine


def life(machines: Sequence[Machine], begin: float, end: float) -> str:
    """One row per machine: what it was doing, when it failed, when a device was away."""
    machines = machines[:MACHINES_DRAWN]
    frame = Frame(170, WIDTH - 150, 8, 8 + ROW * len(machines))
    x = frame.x(begin, end)
    parts = time_axis(frame, begin, end)
    for row, machine in enumerate(machines):
        top = frame.top + row * ROW + 14
        parts.append(text(frame.left - 12, top + 11, _short(machine.name, 22), "label", "end"))
        for span in _drawable(machine.timeline.spans):
            words = f"{KIND_WORDS[span.kind]}: {stamp(span.begin)}, {duration(span.seconds)}"
            width = max(x(span.end) - x(span.begin), 0.8)
            parts.append(rect(x(span.begin), top, width, 13, f"span {span.kind}", words))
        for trip in machine.trips:
            words = f"{trip.device} to {trip.to}: {trip.reason}, {stamp(trip.at)}, {duration(trip.until - trip.at)}"
            parts.append(rect(x(trip.at), top + 15, max(x(trip.until) - x(trip.at), 1.2), 4, "away", words))
        for failure in machine.failures:
            at = x(failure.at)
            words = f"{failure.cause}, {stamp(failure.at)}"
            words += f", down {duration(failure.down)}" if failure.down is not None else ", not back"
            parts.append(
                f'<path d="M{at - 5:.2f} {top - 10:.2f}L{at + 5:.2f} {top - 10:.2f}L{at:.2f} {top - 1:.2f}Z" '
                f'class="failure"><title>{_escaped(words)}</title></path>'
            )
        count = len(machine.failures)
        said = f"{count} failure{'s' * (count != 1)}" if count else "no failure"
        parts.append(text(frame.right + 12, top + 5, f"{machine.operating / HOUR:,.1f} h", "label"))
        parts.append(text(frame.right + 12, top + 19, said, "bad" if count else "tick"))
    return svg(WIDTH, frame.bottom + 26, parts, "operating time and failures of each machine")


def _drawable(spans: Sequence[Span]) -> list[Span]:
    """Spans with neighbours of one kind joined, so that a thousand short ones stay one rectangle."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].kind is span.kind and span.begin - joined[-1].end < 1e-3:
            joined[-1] = Span(joined[-1].begin, span.end, span.kind)
        else:
            joined.append(span)
    return sorted(joined, key=lambda span: span.kind is not Kind.UP)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- temperature and device in use


def temperature(machine: Machine, begin: float, end: float, styles: dict[str, str]) -> str:
    """The hottest device at each heartbeat, and under it the device in use. Empty when there are no heartbeats."""
    if not machine.beats:
        return ""
    known = [max(beat.temperatures.values()) for beat in machine.beats if beat.temperatures]
    low = min(30.0, *known) if known else 0.0
    high = max(90.0, *known) if known else 1.0
    frame = Frame(60, WIDTH - 20, 10, 120 if known else 12)
    strip = Frame(frame.left, frame.right, frame.bottom + 6, frame.bottom + 16)
    x = frame.x(begin, end)
    parts = time_axis(Frame(frame.left, frame.right, frame.top, strip.bottom), begin, end)
    if known:
        parts += value_axis(frame, math.floor(low / 10) * 10, math.ceil(high / 10) * 10, 4, " °C")
        y = frame.y(math.floor(low / 10) * 10, math.ceil(high / 10) * 10)
        for trip in machine.trips:
            words = f"{trip.device} to {trip.to}: {trip.reason}, {stamp(trip.at)}"
            away = max(x(trip.until) - x(trip.at), 1.0)
            parts.append(rect(x(trip.at), frame.top, away, frame.bottom - frame.top, "shade", words))
        for threshold in sorted({trip.threshold for trip in machine.trips if trip.threshold is not None}):
            parts.append(line(frame.left, y(threshold), frame.right, y(threshold), "limit"))
        parts.append(path(_curve(machine, begin, end, x, y), "curve"))
    parts += _device_strip(machine, strip, begin, end, styles)
    return svg(WIDTH, strip.bottom + 26, parts, f"temperature and device in use of {machine.name}")


def _curve(machine: Machine, begin: float, end: float, x: Scale, y: Scale) -> list[tuple[float, float]]:
    """The highest value of each column, broken where heartbeats are missing."""
    width = max((end - begin) / COLUMNS, 1e-9)
    points: list[tuple[float, float]] = []
    column, best, last = -1, math.nan, -math.inf
    for beat in machine.beats:
        here = int((beat.at - begin) / width)
        if here != column:
            if not math.isnan(best):
                points.append((x(begin + (column + 0.5) * width), y(best)))
            if beat.at - last > max(machine.limits.gap, 2 * width):
                points.append((0.0, math.nan))
            column, best = here, math.nan
        value = max(beat.temperatures.values(), default=math.nan)
        best = value if math.isnan(best) else max(best, value)
        last = beat.at
    if not math.isnan(best):
        points.append((x(begin + (column + 0.5) * width), y(best)))
    return points


def _device_strip(machine: Machine, strip: Frame, begin: float, end: float, styles: dict[str, str]) -> list[str]:
    x = strip.x(begin, end)
    runs: list[tuple[float, float, str]] = []
    for beat, after in zip(machine.beats, [*machine.beats[1:], None], strict=True):
        until = after.at if after is not None and after.at - beat.at <= machine.limits.gap else beat.at
        if runs and runs[-1][2] == beat.device and beat.at - runs[-1][1] < 1e-3:
            runs[-1] = (runs[-1][0], until, beat.device)
        else:
            runs.append((beat.at, until, beat.device))
    height = strip.bottom - strip.top
    return [
        rect(
            x(a),
            strip.top,
            max(x(b) - x(a), 0.8),
            height,
            styles.get(device, "device0"),
            f"{device}: {stamp(a)}, {duration(b - a)}",
        )
        for a, b, device in runs
    ]


# --- pictures an hour


def pictures_per_hour(summary: Summary, begin: float, end: float, styles: dict[str, str]) -> str:
    """Published pictures by device, refused ones on top, as a rate per hour in bins."""
    width = bin_width(begin, end, BINS)
    first = math.floor(begin / width)
    bins: dict[int, Counter[str]] = {}
    for machine in summary.machines:
        for at, epoch, row in machine.pictures():
            kind = epoch.pictures.kind[row]
            if kind in (DONE, FAILED):
                word = epoch.pictures.words[epoch.pictures.word[row]] if kind == DONE else "\0refused"
                bins.setdefault(math.floor(at / width), Counter())[word] += 1
    if not bins:
        return ""
    per_hour = HOUR / width
    highest = max(sum(each.values()) for each in bins.values()) * per_hour
    top = ticks(0, highest * 1.15, 4)[-1] if highest else 1.0
    top = max(top, highest)
    frame = Frame(70, WIDTH - 20, 12, 190)
    x, y = frame.x(begin, end), frame.y(0, top)
    parts = value_axis(frame, 0, top, 4) + time_axis(frame, begin, end)
    order = [*sorted(styles, key=lambda name: (name == "cpu", name)), "\0refused"]
    for place, counts in sorted(bins.items()):
        left, right = x(max(place * width, begin)), x(min((place + 1) * width, end))
        base = 0.0
        for word in order:
            if not counts[word]:
                continue
            rate = counts[word] * per_hour
            style = "down" if word == "\0refused" else styles[word]
            label = "refused" if word == "\0refused" else word
            words = f"{moment(place * width):%d %b %H:%M}: {counts[word]:,} {label}, {number(rate)} an hour"
            parts.append(
                rect(left + 0.5, y(base + rate), max(right - left - 1, 0.6), y(base) - y(base + rate), style, words)
            )
            base += rate
    assert first <= min(bins)
    return svg(WIDTH, frame.bottom + 26, parts, "pictures an hour")


# --- stage times


def stage_times(summary: Summary) -> str:
    """Each stage on one logarithmic scale of milliseconds: from 5 to 95 %, the median marked."""
    times = summary.stage_times()
    if not times:
        return ""
    smallest = 0.01
    low = math.floor(math.log10(max(min(values[0] for values in times.values()), smallest)))
    high = math.ceil(math.log10(max(*(values[2] for values in times.values()), smallest * 10)))
    high = max(high, low + 1)
    frame = Frame(110, WIDTH - 230, 8, 8 + 30 * len(times))
    x = frame.x(low, high)
    parts: list[str] = []
    for power in range(low, high + 1):
        parts.append(line(x(power), frame.top, x(power), frame.bottom, "grid"))
        parts.append(text(x(power), frame.bottom + 16, _milliseconds(10.0**power), "tick", "middle"))
    for row, (stage, values) in enumerate(times.items()):
        middle = frame.top + 30 * row + 15
        left, centre, right = (x(math.log10(max(value, smallest))) for value in values)
        style = "total" if stage == "total" else "stage"
        spread = f"{_milliseconds(values[0])} – {_milliseconds(values[2])}"
        words = f"{stage}: median {_milliseconds(values[1])}, 5 to 95 %: {spread}"
        parts.append(text(frame.left - 12, middle + 4, _short(stage, 14), "label", "end"))
        parts.append(rect(left, middle - 6, max(right - left, 2.0), 12, style, words))
        parts.append(line(centre, middle - 9, centre, middle + 9, "median"))
        said = f"{_milliseconds(values[1])}  ({spread})"
        parts.append(text(frame.right + 14, middle + 4, said, "label"))
    return svg(WIDTH, frame.bottom + 26, parts, "time in each stage")


def _milliseconds(value: float) -> str:
    return f"{number(value / 1000)} s" if value >= 1000 else f"{number(value)} ms"


def latency(summary: Summary, begin: float, end: float) -> str:
    """From claim to outcome: median and 95 % of each bin, on a logarithmic scale."""
    width = bin_width(begin, end, BINS)
    bins: dict[int, list[float]] = {}
    for machine in summary.machines:
        for at, epoch, row in machine.pictures():
            totals = epoch.pictures.stages.get("total")
            if totals is not None and epoch.pictures.kind[row] == DONE and not math.isnan(totals[row]):
                bins.setdefault(math.floor(at / width), []).append(max(totals[row], 0.01))
    if not bins:
        return ""
    rows = [(place, sorted(values)) for place, values in sorted(bins.items())]
    low = math.floor(math.log10(min(quantile(values, 0.5) for _, values in rows)))
    high = max(math.ceil(math.log10(max(quantile(values, 0.95) for _, values in rows))), low + 1)
    frame = Frame(70, WIDTH - 20, 12, 160)
    x, y = frame.x(begin, end), frame.y(low, high)
    parts = time_axis(frame, begin, end)
    for power in range(low, high + 1):
        parts.append(line(frame.left, y(power), frame.right, y(power), "grid"))
        parts.append(text(frame.left - 8, y(power) + 4, _milliseconds(10.0**power), "tick", "end"))
    for place, values in rows:
        left, right = x(max(place * width, begin)), x(min((place + 1) * width, end))
        middle, late = quantile(values, 0.5), quantile(values, 0.95)
        words = f"{moment(place * width):%d %b %H:%M}: median {_milliseconds(middle)}, 95 % {_milliseconds(late)}"
        bottom, top = y(math.log10(middle)), y(math.log10(late))
        parts.append(rect(left + 0.5, top, max(right - left - 1, 0.6), bottom - top, "spread", words))
        parts.append(rect(left + 0.5, bottom - 1.5, max(right - left - 1, 0.6), 3, "middle", words))
    return svg(WIDTH, frame.bottom + 26, parts, "time from claim to outcome")
