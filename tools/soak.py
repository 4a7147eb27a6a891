"""A long run with images of every kind and a fault every few seconds, and whether anything grows or is lost.

The real service with the real failover and child processes; the engine in them is a fake with a scripted GPU, so that
what is measured is the service. Good images are made here, hostile ones too, and those of shared/hostile come along
where that folder is. Faults: the service killed, stopped in good order, frozen, told to look again; an engine process
killed or frozen; CUDA errors; heat; the output folder gone; no descriptor left; the log rotated. Everything is audited
at the end: folders, cutouts, ledger, and an event for every image in the log and its rotated parts.

Where time is the mechanism it runs fast: half a day a second for what the ledger remembers (30 days).

Reports the slope of memory, descriptors, threads, the ledger's size and shared memory per 1,000 images, with its 95 %
bounds. In runs of ten minutes or more those of memory are judged: of what is in use of the C heap, and of what is
resident outside it. Free blocks within the heap are not: they come and go with the largest images, and are seen in the
slope of all that is resident.

    python -m tools.soak [--seconds 600] [--each 600] [--seed 1] [--files one|three] [--out FILE]

Prints the report of each leg as well; exit status 1 when something was lost, or surely grows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from rmbgd.clock import SystemClock
from rmbgd.store.ledger import Ledger
from rmbgd.testing.engine import CUDA_ERRORS
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest
from tests.support.images import assert_cutout_of, rgba_of, sample_image
from tests.support.service import ENDINGS
from tools.campaign import Leg, main
from tools.tables import table

RATE = 12.0  # images a second: heaps and caches fill in some thousand images, and what grows after that is meant
HOSTILE_SHARE = 0.2
SAMPLE = 1.0  # s between two readings
SHORTAGE = 1.5  # s that a fault lasts which ends
FAULT_EVERY = 15.0  # s between two faults, on average
FINISH = 120.0  # s for the rest after the last fault
JUDGED_FROM = 600.0  # s
PACE = 43_200.0  # s of the service's wall clock in one of ours: what it remembers for 30 days is forgotten in a minute
LIVES_END = 0.4  # share of the run in which faults end lives, too: slopes need a life of some length
WARM_UP = 100.0  # s of each life that are not counted; in runs of less than ten minutes a tenth of the run
REMEMBERED = 100.0  # s after which the ledger has surely begun to forget
LASTING = ("freeze", "heat", "output_gone", "no_descriptors")  # until they are mended
PASSING = ("look_again", "kill_engine", "freeze_engine", "cuda_error", "rotate")
ENDING = ("kill", "restart")
Z = 1.959964  # the normal distribution's 97.5 % quantile
GROWTH = 1 << 20  # bytes per 1,000 images that memory in use may at most be growing by, for certain


def slope(times: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The slope of a quantity over time, and its lower and upper 95 % bound; one sequence per life of the process.

    Ordinary least squares with an intercept for each life; the error is widened for readings that resemble their
    neighbours, by their lag-1 autocorrelation (effective number n (1 - r) / (1 + r)). Student's t by Peiser's
    expansion. Infinite bounds where there is too little to tell.
    """
    x, y = (np.concatenate([np.asarray(life) - np.mean(life) for life in lives or [[0]]]) for lives in (times, values))
    spread = x @ x
    if len(x) < 3 + len(times) or not spread:
        return 0.0, -math.inf, math.inf
    value = float(x @ y / spread)
    rest = y - value * x
    power = rest @ rest
    if not power:
        return value, value, value
    near = float(np.clip(rest[:-1] @ rest[1:] / power, 0.0, 0.99))
    free = max(1.0, len(x) * (1 - near) / (1 + near) - len(times) - 1)
    student = Z + (Z**3 + Z) / (4 * free) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * free**2)
    bound = student * math.sqrt(power / (len(x) - len(times) - 1) / spread * (1 + near) / (1 - near))
    return value, value - bound, value + bound


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


def read(pid: int, state: Path, memory: Path, *, life: int, now: float) -> Iterator[Reading]:
    """Of the process, of the ledger below `state`, and of the file `memory` that the launcher writes."""
    with contextlib.suppress(OSError):  # the ledger's log comes and goes
        of, heap, held = map(int, memory.read_text().split())
        if of == pid:  # else it is of a life that has ended
            proc = Path(f"/proc/{pid}")
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            rss, shared = (int(status[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
            ledger = sum(path.stat().st_size for path in state.glob("ledger.sqlite*"))
            descriptors, threads = (len(os.listdir(proc / folder)) for folder in ("fd", "task"))
            yield Reading(life, now, rss, heap, rss - held, descriptors, threads, ledger, shared)


def slopes_of(readings: Sequence[Reading], seconds: float, *, per_second: float) -> dict[str, list[float | None]]:
    """For 1,000 images, `per_second` of which were done; None for a bound that nothing is known of.

    The ledger outlives the process, and is judged once it forgets; the others begin anew each life.
    """
    pause = min(WARM_UP, seconds / 10)
    lives = [list(life) for _, life in groupby(readings, attrgetter("life"))]
    warm = [[each for each in life if each.seconds >= life[0].seconds + pause] for life in lives]
    begun = [life for life in warm if life]
    forgetting = [each for each in readings if each.seconds >= min(REMEMBERED, seconds / 2)]
    found = {}
    for name in Reading._fields[2:]:
        counted = [forgetting] if name == "ledger" and forgetting else begun
        done = [[each.seconds * per_second / 1000 for each in life] for life in counted]
        bounds = slope(done, [[getattr(each, name) for each in life] for life in counted])
        found[name] = [round(each, 3) if math.isfinite(each) else None for each in bounds]
    return found


def hostile(dice: random.Random, number: int) -> bytes:
    """Something that calls itself an image, different each time."""
    whole = sample_image(number, size=(dice.randint(1, 200), dice.randint(1, 200)))
    match dice.randrange(4):
        case 0:
            return b"no image %09d" % number
        case 1:
            return whole[: dice.randrange(1, len(whole))]
        case 2:
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
            return bytes(damaged)
        case _:
            return b""


class Faults:
    """Faults done to the service, and the repair of those that last; no other may begin before one is mended."""

    def __init__(self, service: GpuUnderTest, dice: random.Random) -> None:
        self._service, self._dice = service, dice
        self._repair: Callable[[], object] | None = None
        self._due = 0.0  # moment on the monotonic clock
        self.counts: Counter[str] = Counter()  # of what was done
        self.life = 0
        self.parts: list[Path] = []  # of the log, oldest first, without the newest

    def one(self, *, ending: bool) -> None:
        """Any. `ending`: also one that ends a life."""
        service = self._service
        fault = self._dice.choice(LASTING + PASSING + (ENDING if ending else ()))
        self.counts[fault] += 1
        match fault:
            case "freeze":
                service.signal(signal.SIGSTOP)
                self._repair_later(service.signal, signal.SIGCONT)
            case "heat":
                service.temperature(90.0)
                self._repair_later(service.temperature, 60.0)
            case "output_gone":
                self._repair_later(service.output.rename(service.base / "away").rename, service.output)
            case "no_descriptors":
                kind, used = resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{service.pid}/fd"))
                before = resource.prlimit(service.pid, kind)
                resource.prlimit(service.pid, kind, (used, before[1]))
                self._repair_later(resource.prlimit, service.pid, kind, before)
            case "look_again":
                service.signal(signal.SIGHUP)
            case "kill_engine" | "freeze_engine":
                with contextlib.suppress(ProcessLookupError, IndexError):
                    number = signal.SIGKILL if fault == "kill_engine" else signal.SIGSTOP
                    os.kill(self._dice.choice(service.children()), number)
            case "cuda_error":
                service.steps([f"cuda:{self._dice.choice(sorted(CUDA_ERRORS))}"])
            case "rotate":
                self.parts.append(service.log_file.rename(f"{service.log_file}.{len(self.parts) + 1:04}"))
            case "kill" | "restart":
                if fault == "kill":
                    service.kill()
                else:
                    code = service.stop()
                    assert code == 0, f"exit status {code}: {service.tail()}"
                self.life += 1
                service.start()

    def mend(self, *, due: bool = False) -> bool:
        """Now, if there is anything; `due`: and it has lasted long enough. Whether all is mended."""
        if self._repair is not None and (not due or time.monotonic() >= self._due):
            repair, self._repair = self._repair, None
            with contextlib.suppress(ProcessLookupError):
                repair()
        return self._repair is None

    def _repair_later(self, repair: Callable[..., object], *arguments: object) -> None:
        self._repair, self._due = partial(repair, *arguments), time.monotonic() + SHORTAGE


class Soak:
    """One run, below the folder `base`, which it makes."""

    def __init__(self, base: Path, seconds: float, seed: int, fault_every: float, recipe: dict[str, Any]) -> None:
        self._seconds, self._fault_every = seconds, fault_every
        root = Path(os.environ.get("RMBGD_SHARED", Path(__file__).parents[2] / "shared")) / "hostile" / "files"
        self._strange = sorted(path for path in root.rglob("*") if path.is_file())  # outcomes are not known here
        self._dice = random.Random(seed)
        engine = {"device": "cuda:0", "batch_timeout": 2.0, "restart_delay_maximum": 1.0}
        intake = {"attempts": 10, "incomplete_timeout": 3.0}
        self._service = GpuUnderTest(base, settings={"engine": engine, "intake": intake}, recipe=recipe)
        self._recipe = recipe
        self._memory = base / "memory"
        self._service.options |= {"memory": str(self._memory), "pace": {"factor": PACE, "since": time.time()}}
        self._good: dict[str, bytes] = {}
        self._other: dict[str, bytes] = {}
        self._faults = Faults(self._service, self._dice)
        self._readings: list[Reading] = []

    def run(self) -> dict[str, Any]:
        """Raises AssertionError for what the audit finds."""
        service = self._service
        with service, contextlib.ExitStack() as stack:
            stack.callback(self._faults.mend)  # whatever happens, an interrupt included: no fault outlives the run
            began = time.monotonic()
            self._feed_and_hurt(began)
            self._faults.mend()
            service.wait(service.is_idle, "the rest after the last fault", timeout=FINISH)
        return self._audited(time.monotonic() - began)

    def _feed_and_hurt(self, began: float) -> None:
        next_image = next_reading = 0.0
        next_fault, service, faults = self._fault_every, self._service, self._faults
        while (now := time.monotonic() - began) < self._seconds:
            assert not service.ended, service.tail()
            if now >= next_image:
                next_image += self._dice.expovariate(RATE)
                self._drop()
            if now >= next_reading:
                next_reading += SAMPLE
                self._readings += read(service.pid, service.state, self._memory, life=faults.life, now=now)
            if faults.mend(due=True) and now >= next_fault:
                next_fault = now + self._dice.uniform(0.5, 1.5) * self._fault_every
                faults.one(ending=now < LIVES_END * self._seconds)
            time.sleep(0.02)

    def _drop(self) -> None:
        number = len(self._good) + len(self._other)
        if self._dice.random() >= HOSTILE_SHARE:
            name, data = f"{number % 7}/{number}.png", sample_image(number, size=(self._dice.randint(8, 400), 120))
        elif self._strange and self._dice.random() < 0.5:
            path = self._dice.choice(self._strange)
            name, data = f"strange/{number}{path.suffix}", path.read_bytes()
        else:
            name, data = f"strange/{number}.png", hostile(self._dice, number)
        (self._other if name.startswith("strange/") else self._good)[name] = data
        self._service.drop(name, data)

    def _audited(self, seconds: float) -> dict[str, Any]:
        service = self._service
        ended = audit.places(service.roots, self._good | self._other)
        assert "input" not in ended.values(), [name for name, where in ended.items() if where == "input"]
        refused = [name for name in self._good if ended[name] != "done"]
        assert not refused, [(name, audit.reason_of(service.failed, name)) for name in refused]
        published = set(audit.files(service.output))
        for name, data in self._good.items():
            first, *others = audit.outputs_of(name, self._recipe)
            assert_cutout_of(data, service.output / first)
            assert set(others) <= published, f"of {name!r} {sorted(set(others) - published)} is not published"
        for name in published:
            assert ".rmbgd" not in name, f"{name} was left in the output"
            if not name.endswith(".json"):  # an empty cutout has a sidecar
                rgba_of(service.output / name)
        done, failed = (list(ended.values()).count(place) for place in ("done", "failed"))
        # In every part of the log; a kill may have torn a line.
        lines = [line for part in (*self._faults.parts, service.log_file) for line in part.read_bytes().splitlines()]
        events = (json.loads(line) for line in lines if line.endswith(b"}"))
        told = audit.assert_each_told(event for event in events if event["event"] in ENDINGS)
        assert len(told) == len(ended), f"{len(ended)} images ended, {len(told)} jobs were told"
        with contextlib.closing(Ledger(service.state / "ledger.sqlite", SystemClock())) as ledger:
            assert ledger.unfinished() == []
            remembered = sum(ledger.counts().values())
        if self._seconds > REMEMBERED:
            assert remembered < len(ended), "nothing was ever forgotten"
        slopes = slopes_of(self._readings, self._seconds, per_second=done / seconds)
        judged = self._seconds >= JUDGED_FROM
        low = {name: slopes[name][1] for name in ("heap", "outside")}
        return {
            "lives": self._faults.life + 1,
            "done": done,
            "refused": failed,
            "lost": len(self._good) + len(self._other) - done - failed,
            "told_again": sum(count > 1 for count in told.values()),
            "remembered": remembered,
            "faults": dict(sorted(self._faults.counts.items())),
            "per_1000_images": slopes,
            "judged": judged,
            "grows": [name for name, each in low.items() if judged and each is not None and each > GROWTH],
        }


def soak(
    base: Path, seconds: float, seed: int, *, fault_every: float = FAULT_EVERY, files: str = "one"
) -> dict[str, Any]:
    """Each good image gives so many `files`: one or three."""
    return Soak(base, seconds, seed, fault_every, audit.RECIPES[files]).run()


def report(result: dict[str, Any]) -> Table:
    """Slopes; memory and the ledger in bytes."""
    slopes = result["per_1000_images"].items()
    rows = [(name, *("unknown" if each is None else f"{each:,.1f}" for each in bounds)) for name, bounds in slopes]
    verdict = "memory grows" if result["grows"] else "no growth shown" if result["judged"] else "too short to be judged"
    heads = ("quantity", "per 1,000 images", "95 % from", "to")
    return table(f"The heap in use, and memory outside it: {verdict}", *heads, rows=rows)


def judged(run: Callable[..., dict[str, Any]]) -> Leg:
    """A leg that prints the report, and finds what grows."""

    def leg(base: Path, seconds: int, seed: int, **choices: str) -> dict[str, Any]:
        result = run(base, seconds, seed, **choices)
        Console(width=160).print(report(result))
        assert not result["grows"], f"grows: {result['grows']}, per 1,000 images {result['per_1000_images']}"
        return result

    return leg


if __name__ == "__main__":
    sys.exit(main("soak", judged(soak), about=__doc__, unit="seconds", count=600, each=600, files=[*audit.RECIPES]))
