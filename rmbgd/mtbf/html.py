"""The report as one HTML page with plots: no network, no script, light and dark.

Computes nothing; every text from a log is escaped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape

from rmbgd.mtbf.logs import DONE, FAILED
from rmbgd.mtbf.machine import Machine
from rmbgd.mtbf.report import PERCENTS, Estimate, Report, Summary
from rmbgd.mtbf.statistics import quantile
from rmbgd.mtbf.text import duration
from rmbgd.mtbf.timeline import Kind, Outcome, Span, stamp

# --- Scales, ticks and SVG fragments for plots. Pure; knows nothing of what is plotted.


Scale = Callable[[float], float]

HOUR, DAY = 3600.0, 86400.0

# Seconds between two ticks of a time axis, and how such a tick is written.
TIME_STEPS = [
    (60.0, "%H:%M"), (300.0, "%H:%M"), (900.0, "%H:%M"), (HOUR, "%H:%M"), (3 * HOUR, "%d %b %H:%M"),
    (6 * HOUR, "%d %b %H:%M"), (12 * HOUR, "%d %b %H:%M"), (DAY, "%d %b"), (2 * DAY, "%d %b"), (4 * DAY, "%d %b"),
    (7 * DAY, "%d %b"), (14 * DAY, "%d %b"), (30 * DAY, "%d %b %Y"), (91 * DAY, "%b %Y"), (365 * DAY, "%Y"),
]  # fmt: skip

BIN_STEPS = [60.0, 300.0, 900.0, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a plot lies in its drawing, in units of the drawing."""

    left: float
    right: float
    top: float
    bottom: float

    def x(self, low: float, high: float) -> Scale:
        spread = (high - low) or 1.0
        return lambda value: self.left + (value - low) / spread * (self.right - self.left)

    def y(self, low: float, high: float) -> Scale:
        spread = (high - low) or 1.0
        return lambda value: self.bottom - (value - low) / spread * (self.bottom - self.top)


def nice_step(spread: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives at most `count` of them."""
    if spread <= 0:
        return 1.0
    rough = spread / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def ticks(low: float, high: float, count: int) -> list[float]:
    step = nice_step(high - low, count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def time_ticks(begin: float, end: float, count: int) -> list[tuple[float, str]]:
    """(seconds since 1970, text) of ticks on whole minutes, hours or days UTC."""
    step, form = next(((s, f) for s, f in TIME_STEPS if (end - begin) / s <= count), TIME_STEPS[-1])
    first = math.ceil(begin / step)
    return [
        (number * step, moment(number * step).strftime(form).lstrip("0") or "0")
        for number in range(first, math.floor(end / step) + 1)
    ]


def moment(seconds: float) -> datetime:
    """In UTC, within what a calendar has."""
    bounded = min(max(seconds, -62135596800.0), 253402300799.0)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=bounded)


def bin_width(begin: float, end: float, count: int) -> float:
    """Seconds of one bin, so that at most `count` cover the time."""
    return next((step for step in BIN_STEPS if (end - begin) / step <= count), BIN_STEPS[-1])


def number(value: float) -> str:
    """1,234 or 0.05: as many digits as say something."""
    if value == 0:
        return "0"
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    box = f'x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.0):.2f}" height="{height:.2f}"'
    return f'<rect {box} class="{style}">{inner}</rect>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" class="{style}"/>'


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>'


def path(points: list[tuple[float, float]], style: str, title: str = "") -> str:
    """A line through the points; a point that is not a number breaks it."""
    words: list[str] = []
    pen_up = True
    for x, y in points:
        if math.isnan(y):
            pen_up = True
            continue
        words.append(f"{'M' if pen_up else 'L'}{x:.2f} {y:.2f}")
        pen_up = False
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="{"".join(words)}" class="{style}">{inner}</path>' if words else ""


def svg(width: float, height: float, parts: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def time_axis(frame: Frame, begin: float, end: float, count: int = 9) -> list[str]:
    """Grid lines and labels under the frame."""
    scale = frame.x(begin, end)
    parts: list[str] = []
    for at, words in time_ticks(begin, end, count):
        parts.append(line(scale(at), frame.top, scale(at), frame.bottom, "grid"))
        parts.append(text(scale(at), frame.bottom + 16, words, "tick", "middle"))
    return parts


def value_axis(frame: Frame, low: float, high: float, count: int, unit: str = "") -> list[str]:
    """Grid lines across the frame, and labels left of it."""
    scale = frame.y(low, high)
    parts: list[str] = []
    for value in ticks(low, high, count):
        parts.append(line(frame.left, scale(value), frame.right, scale(value), "grid"))
        parts.append(text(frame.left - 8, scale(value) + 4, number(value) + unit, "tick", "end"))
    return parts


# --- How the page looks, in light and dark. Values only.


STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1d2229; --muted: #667080; --rule: #e3e6eb;
  --up: #4c9f8a; --down: #c8343a; --planned: #b4bcc8; --power: #8b6fc0; --unknown: #e8c36a; --away: #dd8a2c;
  --d0: #3f78c2; --d1: #6a5bb5; --d2: #2f9aa8; --d3: #8aa53c; --d4: #b0568f; --d5: #7d8794; --cpu: #dd8a2c; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --card: #1c2026; --ink: #e4e7eb; --muted: #939dab; --rule: #2d333b;
  --up: #4ea58f; --down: #f0666b; --planned: #5a6472; --power: #a48ad8; --unknown: #c9a24a; --away: #eb9d45;
  --d0: #6ba0e6; --d1: #998be0; --d2: #55bcc9; --d3: #a9c45c; --d4: #d27fb3; --d5: #98a2b0; --cpu: #eb9d45; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 28px 72px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 44px 0 4px; font-weight: 650; }
h3 { font-size: 14px; margin: 18px 0 2px; font-weight: 600; }
p { margin: 4px 0 12px; max-width: 76ch; }
.sub, .hint, small { color: var(--muted); }
.hint { font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; margin: 24px 0 8px; }
.tile { background: var(--card); border-radius: 10px; padding: 14px 16px; }
.tile .name { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 24px; font-weight: 650; letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.tile .more { font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums; }
.claim { border-left: 3px solid var(--d0); padding: 2px 14px; margin: 18px 0; }
.warn { border-left: 3px solid var(--down); padding: 2px 14px; margin: 18px 0; }
.plot { overflow-x: auto; } .plot svg { display: block; width: 100%; min-width: 720px; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
svg .tick { fill: var(--muted); font-size: 11.5px; } svg .bad { fill: var(--down); font-size: 11.5px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .up { fill: var(--up); } svg .down { fill: var(--down); } svg .planned { fill: var(--planned); }
svg .power_loss { fill: var(--power); } svg .unobserved { fill: var(--unknown); }
svg .away { fill: var(--away); } svg .failure { fill: var(--down); }
svg .shade { fill: var(--away); fill-opacity: 0.18; }
svg .device0 { fill: var(--d0); } svg .device1 { fill: var(--d1); } svg .device2 { fill: var(--d2); }
svg .device3 { fill: var(--d3); } svg .device4 { fill: var(--d4); } svg .device5 { fill: var(--d5); }
svg .cpu { fill: var(--cpu); } svg .stage { fill: var(--d0); fill-opacity: 0.45; }
svg .total { fill: var(--up); fill-opacity: 0.6; } svg .median { stroke: var(--ink); stroke-width: 2; }
svg .curve { fill: none; stroke: var(--d0); stroke-width: 1.6; stroke-linejoin: round; }
svg .limit { stroke: var(--down); stroke-width: 1; stroke-dasharray: 4 4; }
svg .spread { fill: var(--d0); fill-opacity: 0.35; } svg .middle { fill: var(--d0); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--muted); margin: 4px 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px;
  vertical-align: -1px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; margin: 6px 0; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; } td.wide { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 4px 36px; }
ul { padding-left: 20px; margin: 6px 0; } li { margin: 3px 0; max-width: 90ch; }
footer { margin-top: 48px; color: var(--muted); font-size: 13px; }
@media print { main { max-width: none; } .plot svg { min-width: 0; } h2 { break-after: avoid; } }
"""

DEVICE_STYLES = 6  # colours for devices; further ones share the last

COLOURS = {
    "up": "--up", "down": "--down", "planned": "--planned", "power_loss": "--power", "unobserved": "--unknown",
    "away": "--away", "cpu": "--cpu", **{f"device{place}": f"--d{place}" for place in range(DEVICE_STYLES)},
}  # fmt: skip
"""The colour of each class that a legend may show."""


# --- The plots of the report as SVG text: life of each machine, temperature and device, images an hour, stage times.


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
    names = {heartbeat.device for machine in machines for heartbeat in machine.heartbeats}
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
    if not machine.heartbeats:
        return ""
    known = [max(heartbeat.temperatures.values()) for heartbeat in machine.heartbeats if heartbeat.temperatures]
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
    for heartbeat in machine.heartbeats:
        here = int((heartbeat.at - begin) / width)
        if here != column:
            if not math.isnan(best):
                points.append((x(begin + (column + 0.5) * width), y(best)))
            if heartbeat.at - last > max(machine.limits.gap, 2 * width):
                points.append((0.0, math.nan))
            column, best = here, math.nan
        value = max(heartbeat.temperatures.values(), default=math.nan)
        best = value if math.isnan(best) else max(best, value)
        last = heartbeat.at
    if not math.isnan(best):
        points.append((x(begin + (column + 0.5) * width), y(best)))
    return points


def _device_strip(machine: Machine, strip: Frame, begin: float, end: float, styles: dict[str, str]) -> list[str]:
    x = strip.x(begin, end)
    runs: list[tuple[float, float, str]] = []
    for heartbeat, after in zip(machine.heartbeats, [*machine.heartbeats[1:], None], strict=True):
        until = after.at if after is not None and after.at - heartbeat.at <= machine.limits.gap else heartbeat.at
        if runs and runs[-1][2] == heartbeat.device and heartbeat.at - runs[-1][1] < 1e-3:
            runs[-1] = (runs[-1][0], until, heartbeat.device)
        else:
            runs.append((heartbeat.at, until, heartbeat.device))
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


# --- images an hour


def images_per_hour(summary: Summary, begin: float, end: float, styles: dict[str, str]) -> str:
    """Published images by device, refused ones on top, as a rate per hour in bins."""
    width = bin_width(begin, end, BINS)
    first = math.floor(begin / width)
    bins: dict[int, Counter[str]] = {}
    for machine in summary.machines:
        for at, epoch, row in machine.images():
            kind = epoch.images.kind[row]
            if kind in (DONE, FAILED):
                word = epoch.images.words[epoch.images.word[row]] if kind == DONE else "\0refused"
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
    return svg(WIDTH, frame.bottom + 26, parts, "images an hour")


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
        for at, epoch, row in machine.images():
            totals = epoch.images.stages.get("total")
            if totals is not None and epoch.images.kind[row] == DONE and not math.isnan(totals[row]):
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


# --- The report as one HTML page with plots: no network, no script, light and dark.


FAILURES_SHOWN = 200
REASONS_SHOWN = 8
SHORT = 0.05  # h


def render_page(report: Report) -> str:
    total = report.total
    body = list(_head(report, total))
    if total.window is None:
        body.append("<p>No run of the service is in these logs: there is nothing to count.</p>")
    else:
        body += [*_tiles(total), *_statements(total), *_bounds(total), *_plots(report, total)]
        body += [*_machines(report), *_failures(total), *_reasons(total)]
    body += _notes(report)
    body.append(f"<footer>rmbgd mtbf; {report.lines:,} lines read. Times are UTC.</footer>")
    body = [part.replace(" %", "\u00a0%") for part in body]  # a number stays with its sign
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Mean time between failures</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _head(report: Report, total: Summary) -> Iterator[str]:
    count = len(report.machines)
    who = escape(report.machines[0].name) if count == 1 else f"{count} machines"
    yield "<h1>Mean time between failures</h1>"
    if total.window is not None:
        yield f'<p class="sub">{who}, {stamp(total.window[0])} to {stamp(total.window[1])}</p>'
    else:
        yield f'<p class="sub">{who}</p>'


def _tile(name: str, value: str, *more: str) -> str:
    said = "<br>".join(escape(words) for words in more if words)
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="more">{said}</div></div>'
    )


def _tiles(one: Summary) -> Iterator[str]:
    percent = f"{100 * one.confidence:g} %"
    failures = one.failures
    yield '<div class="tiles">'
    yield _mean_tile("Mean time between failures", one.mtbf)
    planned, unseen = one.seconds(Kind.PLANNED), one.seconds(Kind.UNOBSERVED)
    yield _tile(
        "Operating time",
        _hours(one.hours, 1),
        f"{duration(planned)} stopped on purpose" if planned else "",
        f"{duration(unseen)} not observed" if unseen else "",
    )
    mttr = f"restored after {duration(one.mttr)} on average" if one.mttr is not None else ""
    yield _tile("Failures", str(len(failures)), mttr)
    if one.availability is None:
        yield _tile("Availability", "not yet known", "no outage was seen")
    else:
        minutes = (1 - one.availability) * 365 * 24 * 60
        yield _tile("Availability", f"{100 * one.availability:.5f} %", f"{minutes:,.1f} minutes down a year")
    if one.trips:
        covered = ""
        if one.coverage:
            avoided, tried, lower = one.coverage
            covered = f"{avoided} of {tried} kept the service whole: at least {100 * lower:.1f} % do, at {percent}"
        yield _tile("Failovers", str(len(one.trips)), covered or f"{one.outcomes[Outcome.IDLE]} with nothing to do")
    else:
        yield _tile("Failovers", "0", "no device was left")
    rate = one.per_million
    more = ""
    if rate:
        point, upper = rate
        bound = f"at most {upper:,.1f} at {percent}"
        more = f"failures per million: {bound if point is None else f'{point:,.1f}, {bound}'}"
    yield _tile("Images", f"{one.images:,}", more)
    yield "</div>"


def _mean_tile(name: str, found: Estimate) -> str:
    percent = f"{100 * found.confidence:g} %"
    if not found.failures:
        return _tile(name, f"≥ {_hours(found.bound, 1)}", f"at {percent} confidence; no failure, so no estimate")
    if found.doubtful:
        return _tile(name, "no single number", f"failures show a trend, U = {found.trend:+.2f}")
    lower, upper = found.interval
    end = _hours(upper, 0) if math.isfinite(upper) else "no end"
    return _tile(
        name,
        _hours(found.point or 0.0, 1),
        f"at least {_hours(found.bound, 1)} at {percent} confidence",
        f"two-sided {percent}: {_hours(lower, 0)} to {end}",
    )


def _statements(one: Summary) -> Iterator[str]:
    if one.mtbf.doubtful:
        more = "more" if (one.mtbf.trend or 0) > 0 else "less"
        yield (
            f'<p class="warn">Failures come {more} often as time goes by (Laplace U = {one.mtbf.trend:+.3f}, beyond '
            "±1.645): a constant rate does not fit, and one mean time would mislead. Bounds below assume one.</p>"
        )
    if one.claimed:
        claim, confidence, needed = one.claimed
        count = len(one.failures)
        with_so_many = f"{count} failure{'s' * (count != 1)}" if count else "no failure"
        yield (
            f'<p class="claim">That the mean time between failures is at least <b>{claim:,g} h</b> holds with '
            f"<b>{_percent(confidence)}</b> confidence. {100 * one.confidence:g} % would take {needed:,.0f} "
            f"device-hours with {with_so_many}.</p>"
        )


def _hours(value: float, digits: int) -> str:
    """Hours, but what would be no more than zeros of them in minutes and seconds."""
    return f"{value:,.{digits}f} h" if value >= SHORT else duration(value * 3600)


def _percent(share: float) -> str:
    return "less than 0.01 %" if share < 0.0001 else f"{100 * share:.2f} %"


def _bounds(one: Summary) -> Iterator[str]:
    shares = sorted({*PERCENTS, one.confidence})
    yield "<h2>Lower bounds</h2>"
    yield '<p class="hint">One-sided lower bounds, exact for failures at a constant rate watched for a given time.</p>'
    yield '<div class="scroll"><table><tr><th>confidence</th>'
    yield "".join(f'<th class="n">{100 * share:g} %</th>' for share in shares) + "</tr><tr><td>mean time ≥</td>"
    yield "".join(f'<td class="n">{_hours(one.mtbf.lower[share], 2)}</td>' for share in shares) + "</tr></table></div>"


def _legend(entries: dict[str, str]) -> str:
    items = "".join(
        f'<span><i style="background:var({COLOURS[style]})"></i>{escape(words)}</span>'
        for words, style in entries.items()
    )
    return f'<div class="legend">{items}</div>'


def _plots(report: Report, total: Summary) -> Iterator[str]:
    begin, end = window_of(total)
    styles = device_styles(report.machines)
    shown = {KIND_WORDS[kind]: str(kind) for kind in Kind if total.seconds(kind)}
    if total.failures:
        shown.pop(KIND_WORDS[Kind.DOWN], None)
        shown["▼ failure, and down since"] = "down"
    if total.trips:
        shown["work on another device"] = "away"
    yield "<h2>Operating time and failures</h2>"
    yield _legend(shown)
    yield f'<div class="plot">{life(report.machines, begin, end)}</div>'
    left_out = len(report.machines) - MACHINES_DRAWN
    if left_out > 0:
        yield f'<p class="hint">{left_out} more machines are in the table below.</p>'
    drawn = [(one, temperature(one, begin, end, styles)) for one in report.machines[:MACHINES_DRAWN]]
    if any(image for _, image in drawn):
        yield "<h2>Temperature and device in use</h2>"
        yield '<p class="hint">The hottest device at each heartbeat, where known; the strip is the device in use.</p>'
        yield _legend(styles)
        for machine, image in drawn:
            if image:
                yield f'<h3>{escape(machine.name)}</h3><div class="plot">{image}</div>'
    if hourly := images_per_hour(total, begin, end, styles):
        yield "<h2>Images an hour</h2>"
        refused = {"refused": "down"} if total.count("outcomes")["failed"] else {}
        yield _legend(styles | refused)
        yield f'<div class="plot">{hourly}</div>'
    if stages := stage_times(total):
        yield "<h2>Time in each stage</h2>"
        yield '<p class="hint">Median, and the range from 5 to 95 % of published images; logarithmic.</p>'
        yield f'<div class="plot">{stages}</div>'
    if over_time := latency(total, begin, end):
        yield "<h3>From claim to outcome</h3>"
        yield '<p class="hint">The line is the median, the bar reaches up to the 95 % mark; logarithmic.</p>'
        yield f'<div class="plot">{over_time}</div>'


def _machines(report: Report) -> Iterator[str]:
    if len(report.machines) < 2:
        return
    percent = f"{100 * report.confidence:g} %"
    yield "<h2>Machines</h2>"
    yield '<div class="scroll"><table><tr><th>machine</th><th class="n">in service</th><th class="n">failures</th>'
    yield f'<th class="n">mean time ≥ ({percent})</th><th class="n">failovers</th><th class="n">images</th>'
    yield '<th class="n">refused</th></tr>'
    for one in report.each:
        doubt = " ?" if one.mtbf.doubtful else ""
        yield (
            f'<tr><td>{escape(one.name)}</td><td class="n">{_hours(one.hours, 2)}</td>'
            f'<td class="n">{len(one.failures)}</td><td class="n">{_hours(one.mtbf.bound, 1)}{doubt}</td>'
            f'<td class="n">{len(one.trips)}</td><td class="n">{one.images:,}</td>'
            f'<td class="n">{one.count("outcomes")["failed"]:,}</td></tr>'
        )
    yield "</table></div>"


def _failures(one: Summary) -> Iterator[str]:
    failures = one.failures
    if not failures:
        return
    yield "<h2>Failures</h2>"
    if len(failures) > FAILURES_SHOWN:
        yield f'<p class="hint">The last {FAILURES_SHOWN} of {len(failures)}.</p>'
    yield '<div class="scroll"><table><tr><th>when</th><th>machine</th><th>cause</th><th class="n">down</th></tr>'
    for machine, failure in failures[-FAILURES_SHOWN:]:
        down = "not back" if failure.down is None else duration(failure.down)
        detail = f"<br><small>{escape(failure.detail)}</small>" if failure.detail else ""
        yield (
            f"<tr><td>{stamp(failure.at)}</td><td>{escape(machine.name)}</td>"
            f'<td class="wide">{escape(failure.cause)}{detail}</td><td class="n">{down}</td></tr>'
        )
    yield "</table></div>"


def _reasons(one: Summary) -> Iterator[str]:
    tables = {name: table for name, table in one.reasons.items() if table}
    if not tables:
        return
    yield '<h2>Reasons</h2><div class="columns">'
    for name, table in tables.items():
        yield f"<div><h3>{escape(name.capitalize())}</h3><table>"
        for reason, count in table.most_common(REASONS_SHOWN):
            yield f'<tr><td class="wide">{escape(reason)}</td><td class="n">{count:,}</td></tr>'
        rest = sum(count for _, count in table.most_common()[REASONS_SHOWN:])
        if rest:
            yield f'<tr><td>other</td><td class="n">{rest:,}</td></tr>'
        yield "</table></div>"
    yield "</div>"


def _notes(report: Report) -> Iterator[str]:
    notes = [(machine.name, note) for machine in report.machines for note in machine.notes]
    if not notes:
        return
    yield "<h2>What the logs do not say, and how it was counted</h2><ul>"
    for name, note in notes:
        who = f"<b>{escape(name)}</b>: " if len(report.machines) > 1 else ""
        yield f"<li>{who}{escape(note)}</li>"
    yield "</ul>"
