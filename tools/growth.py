"""What a soak reads of the service once a second, whether that grows, and its page in Markdown."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WARM_UP = 100.0  # s of each life that are not counted; in runs of less than ten minutes a tenth of the run
REMEMBERED = 100.0  # s after which the ledger has surely begun to forget
Z = 1.959964  # the normal distribution's 97.5 % quantile


class Slope(NamedTuple):
    value: float
    low: float
    high: float

    def per(self, unit: float) -> list[float | None]:
        """For JSON, which knows no infinity: None for a bound that nothing is known of."""
        return [round(each * unit, 3) if math.isfinite(each) else None for each in self]


def slope(times: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> Slope:
    """The slope of a quantity over time with its 95 % bounds; one sequence per life of the process.

    Ordinary least squares with an intercept for each life; the error is widened for readings that resemble their
    neighbours, by their lag-1 autocorrelation (effective number n (1 - r) / (1 + r)). Student's t by Peiser's
    expansion. Infinite bounds where there is too little to tell.
    """
    x, y = (np.concatenate([np.asarray(life) - np.mean(life) for life in lives or [[0]]]) for lives in (times, values))
    spread = x @ x
    if len(x) < 3 + len(times) or not spread:
        return Slope(0.0, -math.inf, math.inf)
    value = float(x @ y / spread)
    rest = y - value * x
    power = rest @ rest
    if not power:
        return Slope(value, value, value)
    near = float(np.clip(rest[:-1] @ rest[1:] / power, 0.0, 0.99))
    free = max(1.0, len(x) * (1 - near) / (1 + near) - len(times) - 1)
    student = Z + (Z**3 + Z) / (4 * free) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * free**2)
    bound = student * math.sqrt(power / (len(x) - len(times) - 1) / spread * (1 + near) / (1 - near))
    return Slope(value, value - bound, value + bound)


class Reading(NamedTuple):
    """One look at the service. Bytes, and numbers of things."""

    life: int
    seconds: float
    rss: float
    heap: float  # in use of the C heap
    outside: float  # of rss, outside the C heap: Python's objects, mappings; so free blocks are all that neither counts
    descriptors: float
    threads: float
    ledger: float
    shared: float


QUANTITIES = Reading._fields[2:]


class Readings:
    """All of one run of `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.all: list[Reading] = []

    def read(self, pid: int, state: Path, memory: Path, *, life: int, now: float) -> None:
        """Of the process, of the ledger below `state`, and of the file `memory` that the launcher writes."""
        with contextlib.suppress(OSError):  # the ledger's log comes and goes
            of, heap, held = map(int, memory.read_text().split())
            if of != pid:  # a life that has ended
                return
            proc = Path(f"/proc/{pid}")
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            rss, shared = (int(status[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
            ledger = sum(path.stat().st_size for path in state.glob("ledger.sqlite*"))
            descriptors, threads = (len(os.listdir(proc / folder)) for folder in ("fd", "task"))
            self.all.append(Reading(life, now, rss, heap, rss - held, descriptors, threads, ledger, shared))

    def _warm(self) -> list[list[Reading]]:
        """Of each life, what follows its warm-up."""
        lives = [list(life) for _, life in groupby(self.all, attrgetter("life"))]
        pause = min(WARM_UP, self._seconds / 10)
        return [[each for each in life if each.seconds >= life[0].seconds + pause] for life in lives]

    def slopes(self) -> dict[str, Slope]:
        """Per hour. The ledger outlives the process, and is judged once it forgets; the others begin anew each life."""
        begun = [life for life in self._warm() if life]
        forgetting = [[each for each in self.all if each.seconds >= min(REMEMBERED, self._seconds / 2)]]
        found = {}
        for name in QUANTITIES:
            lives = forgetting if name == "ledger" and forgetting[0] else begun
            hours = [[each.seconds / 3600 for each in life] for life in lives]
            found[name] = slope(hours, [[getattr(each, name) for each in life] for life in lives])
        return found

    def levels(self) -> dict[str, list[float]]:
        """Of each quantity in the last life: where its slope begins, at the end, and the highest."""
        last = self._warm()[-1] or self.all[-1:]
        columns = {name: [getattr(each, name) for each in last] for name in QUANTITIES}
        return {name: [column[0], column[-1], max(column)] for name, column in columns.items()}


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    faults = ", ".join(f"{name} {count}" for name, count in result["faults"].items())
    lines = [
        f"# Soak of {result['seconds']:g} s\n",
        "{done} images done, {refused} refused, {lost} lost, in {lives} lives.".format_map(result),
        f"{result['parts_of_the_log']} parts of the log hold an event for every image,",
        f"{result['told_again']} of them twice, as they say.",
        f"{result['days_of_the_ledger']} days by the ledger's clock; it remembers {result['remembered']} images.",
        f"Faults: {faults}.\n",
        "| quantity | slope per hour | 95 % bounds | per 1,000 images | 95 % bounds | last life: from, to, most |",
        "|---|---|---|---|---|---|",
    ]
    for name, hourly in result["per_hour"].items():
        per_image = result["per_1000_images"].get(name, [None] * 3)
        numbers = ["unknown" if each is None else f"{each:,.1f}" for each in (*hourly, *per_image)]
        cells = "{} | {} to {} | {} | {} to {}".format(*numbers)
        levels = ", ".join(f"{level:,.0f}" for level in result["levels"][name])
        lines.append(f"| {name} | {cells} | {levels} |")
    verdict = "memory grows" if result["grows"] else "no growth shown" if result["judged"] else "too short to be judged"
    lines.append(f"\nMemory and the ledger in bytes. Verdict on the heap in use and on memory outside it: {verdict}.")
    return "\n".join(lines) + "\n"
