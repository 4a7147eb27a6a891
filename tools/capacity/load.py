"""Load of a fleet: how many images arrive when, and how long each stage takes; measured in a log, or given.

Arrivals are a Poisson process whose rate follows a curve, made by thinning (Lewis and Shedler, 1979). Service times are
drawn from the values measured in `image.done` events, or from a lognormal distribution of a mean and a coefficient of
variation (standard deviation over mean).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HOUR, DAY = 3600.0, 86400.0
CURVES = {"mean": DAY, "peak": 2 * HOUR, "day": DAY, "sales": DAY, "week": 7 * DAY}  # s simulated unless told otherwise
PEAKS = (11.0, 1.0), (20.0, 0.8)  # hour of the day and height of the two busy times
WIDTH = 1.2  # h, standard deviation of a busy time
BUSY_SHARE = sum(height for _, height in PEAKS) * WIDTH * math.sqrt(2 * math.pi) / 24  # mean of both over a day
WEEKDAYS = np.array([1.1, 1.1, 1.1, 1.1, 1.1, 0.8, 0.7])  # Monday first; their mean is 1
BLOCK = 4096  # values drawn at once


class BadInput(ValueError):
    """What the user gave cannot be simulated; the message says which value, and what to do."""


@dataclass(frozen=True)
class Curve:
    """Arrivals by name (of CURVES), for `seconds`; mean and peak in images/s.

    A day has a low night and two busy times, of the given mean and highest rate. A sales day multiplies the rate by
    `sale` between two hours of it. Raises BadInput when no such day exists.
    """

    name: str
    seconds: float
    mean: float = 93.0
    peak: float = 300.0
    sale: float = 3.0
    sale_hours: tuple[float, float] = (18.0, 22.0)

    def __post_init__(self) -> None:
        if self.mean > self.peak or (self.name in {"day", "sales", "week"} and self._night < 0):
            raise BadInput(
                f"a day of {self.mean:g}/s on average cannot have a peak of {self.peak:g}/s: "
                f"give a --peak between the mean and {self.mean / BUSY_SHARE:.0f}"
            )

    @property
    def _night(self) -> float:
        return (self.mean - self.peak * BUSY_SHARE) / (1 - BUSY_SHARE)

    def rate(self, at: Floats) -> Floats:
        """Images/s at each of the moments `at`, in s since a Monday's midnight."""
        if self.name in {"mean", "peak"}:
            return np.full(at.shape, self.mean if self.name == "mean" else self.peak)
        hour = at / HOUR % 24
        distance = [np.abs((hour - centre + 12) % 24 - 12) for centre, _ in PEAKS]
        busy = sum(height * np.exp(-((d / WIDTH) ** 2) / 2) for d, (_, height) in zip(distance, PEAKS, strict=True))
        rate = self._night + (self.peak - self._night) * np.asarray(busy)
        if self.name == "week":
            rate = rate * WEEKDAYS[(at // DAY).astype(int) % 7]
        if self.name == "sales":
            begin, end = self.sale_hours
            rate = rate * np.where((hour >= begin) & (hour < end), self.sale, 1.0)
        return rate

    def highest(self) -> float:
        return float(self.rate(np.arange(0.0, self.seconds, min(60.0, self.seconds / 100))).max())

    def images(self) -> float:
        """Expected number."""
        grid = np.linspace(0.0, self.seconds, 10_000, endpoint=False)
        return float(self.rate(grid).mean() * self.seconds)

    def arrivals(self, dice: np.random.Generator) -> Floats:
        """Moments of single images, in s, in order."""
        top = 1.001 * self.highest()  # the curve is looked at once a minute
        at = np.sort(dice.uniform(0.0, self.seconds, dice.poisson(top * self.seconds)))
        return at[dice.uniform(0.0, top, at.size) < self.rate(at)]


@dataclass(frozen=True)
class Times:
    """Seconds that a stage takes: of `samples`, or lognormal when there are none."""

    mean: float
    cv: float = 0.0
    samples: tuple[float, ...] = ()

    @classmethod
    def measured(cls, seconds: Sequence[float]) -> Times:
        mean = float(np.mean(seconds))
        return cls(mean, float(np.std(seconds)) / mean if mean else 0.0, tuple(seconds))

    def scaled(self, factor: float) -> Times:
        return Times(self.mean * factor, self.cv, tuple(factor * each for each in self.samples))

    def draw(self, dice: np.random.Generator, count: int) -> Floats:
        if self.samples:
            return dice.choice(np.array(self.samples), count)
        if not self.cv or not self.mean:
            return np.full(count, self.mean)
        variance = math.log1p(self.cv**2)
        return dice.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), count)

    def stream(self, dice: np.random.Generator) -> Iterator[float]:
        while True:
            yield from self.draw(dice, BLOCK).tolist()


@dataclass(frozen=True)
class Device:
    """Seconds of a batch by its size, straight lines between; outside of the table each image takes as long as in the
    nearest size."""

    batches: Mapping[int, Times]
    largest: int

    @classmethod
    def of_rate(cls, images_per_second: float, largest: int, cv: float = 0.0) -> Device:
        return cls({1: Times(1 / images_per_second, cv)}, largest)

    def nearest(self, size: int) -> tuple[int, float]:
        """The size in the table, and what its seconds are to be multiplied by."""
        found = min(self.batches, key=lambda each: (abs(each - size), each))
        mean = self.batches[found].mean
        return found, self.seconds(size) / mean if mean else 1.0

    def seconds(self, size: int) -> float:
        """Mean seconds of a batch of `size`."""
        sizes = sorted(self.batches)
        inside = min(max(size, sizes[0]), sizes[-1])
        return float(np.interp(inside, sizes, [self.batches[each].mean for each in sizes])) * size / inside

    def rate(self) -> float:
        """Images/s with full batches."""
        seconds = self.seconds(self.largest)
        return self.largest / seconds if seconds else math.inf

    def size_at(self, images_per_second: float) -> int:
        """The smallest batch that keeps up with so many images/s; the largest when none does."""
        sizes = range(1, self.largest + 1)
        return next((size for size in sizes if size > images_per_second * self.seconds(size)), self.largest)


@dataclass(frozen=True)
class Measured:
    """Of the logs of one run: its images, the seconds between the start of the first and the end of the last, the times
    of the stages, and what they sum to (a batch counts once).

    processor  the log tells processor times: decoding and encoding are those, and the sum is without the device
    """

    images: int
    seconds: float
    decode: Times
    encode: Times
    device: Device
    busy: float
    processor: bool


def read_logs(paths: Sequence[Path]) -> Measured:
    """Every image.done that was computed. Raises BadInput for a file without them, or that cannot be read."""
    decode, encode, batches = list[float](), list[float](), defaultdict[int, list[float]](list)
    starts, ends, processor = list[float](), list[float](), True
    for path in paths:
        before = len(decode)
        for number, keys in _events(path):
            spent = keys.get("milliseconds")
            if keys.get("reused") or not isinstance(spent, dict) or "engine" not in spent:
                continue  # a copy of an image that was computed costs the device nothing
            try:
                values = [float(spent[stage]) / 1000 for stage in ("decode", "engine", "encode", "total")]
                processor = processor and "processor" in spent
                if processor:  # decode and encode also wait for a processor, and for locks
                    share = float(spent["processor"]) / 1000 / max(values[0] + values[2], 1e-9)
                    values[0], values[2] = values[0] * share, values[2] * share
                wait = float(spent.get("wait", 0.0)) / 1000
                size = int(keys.get("batch") or 1)
                end = datetime.fromisoformat(keys["time"]).timestamp()
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(f"{path}:{number}: not an image.done of rmbgd ({error!r})") from error
            decode.append(values[0])
            batches[size].append(values[1])
            encode.append(values[2])
            starts.append(end - values[3] + wait)
            ends.append(end)
        if len(decode) == before:
            raise BadInput(f"{path}: no image.done with milliseconds of an engine; give a JSON log of rmbgd")
    if not any(decode) or not any(encode):
        raise BadInput(f"{paths[0]}: decoding and encoding took no time; give the log of a real run")
    device_seconds = 0.0 if processor else sum(sum(times) / size for size, times in batches.items())
    busy = sum(decode) + sum(encode) + device_seconds
    table = {size: Times.measured(times) for size, times in batches.items()}
    device = Device(table, max(table))
    seconds, stages = max(ends) - min(starts), (Times.measured(decode), Times.measured(encode))
    return Measured(len(decode), seconds, *stages, device, busy, processor)


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if '"image.done"' not in line:
                    continue
                try:
                    keys = json.loads(line)
                except ValueError as error:
                    raise BadInput(f"{path}:{number}: not JSON ({error})") from error
                if isinstance(keys, dict) and keys.get("event") == "image.done":
                    yield number, keys
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
