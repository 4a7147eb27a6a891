"""What a soak reads of the service once a second, and whether that grows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.soaking.slopes import Slope, slope

WARM_UP = 100.0  # s of each life that are not counted; in runs of less than ten minutes a tenth of the run
REMEMBERED = 100.0  # s after which the ledger has surely begun to forget
QUANTITIES = ("rss", "descriptors", "threads", "ledger", "shared")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the service. Bytes, and numbers of things."""

    life: int
    seconds: float
    rss: float
    descriptors: float
    threads: float
    ledger: float
    shared: float


class Readings:
    """All of one run of `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._warm_up = min(WARM_UP, seconds / 10)
        self._all: list[Reading] = []

    def __len__(self) -> int:
        return len(self._all)

    def read(self, pid: int, state: Path, *, life: int, now: float) -> None:
        """Of the process and of the ledger below `state`."""
        with contextlib.suppress(OSError):  # the ledger's log comes and goes
            proc = Path(f"/proc/{pid}")
            memory = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            ledger = sum(path.stat().st_size for path in state.glob("ledger.sqlite*"))
            self._all.append(
                Reading(
                    life,
                    now,
                    int(memory["RssAnon"].split()[0]) << 10,
                    len(os.listdir(proc / "fd")),
                    int(memory["Threads"]),
                    ledger,
                    int(memory["RssShmem"].split()[0]) << 10,
                )
            )

    def slopes(self) -> dict[str, Slope]:
        """Per hour. The ledger outlives the process, and is judged once it forgets; the others begin anew each life."""
        lives: dict[int, list[Reading]] = {}
        for reading in self._all:
            lives.setdefault(reading.life, []).append(reading)
        counted = [self._warm(life) for life in lives.values()]
        full = [[each for each in self._all if each.seconds >= min(REMEMBERED, self._seconds / 2)]]
        return {
            name: _slope_of(name, full if name == "ledger" else [life for life in counted if life])
            for name in QUANTITIES
        }

    def levels(self) -> dict[str, list[float]]:
        """Of each quantity in the last life: where its slope begins, at the end, and the highest."""
        last = [each for each in self._all if each.life == self._all[-1].life]
        last = self._warm(last) or last
        return {
            name: [getattr(last[0], name), getattr(last[-1], name), max(getattr(each, name) for each in last)]
            for name in QUANTITIES
        }

    def _warm(self, life: Sequence[Reading]) -> list[Reading]:
        return [each for each in life if each.seconds >= life[0].seconds + self._warm_up]


def _slope_of(name: str, lives: Sequence[Sequence[Reading]]) -> Slope:
    hours = [[each.seconds / 3600 for each in life] for life in lives]
    return slope(hours, [[getattr(each, name) for each in life] for life in lives])
