"""Scales, ticks and SVG fragments for plots. Pure; knows nothing of what is plotted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape

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
