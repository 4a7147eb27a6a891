"""A long run with images of every kind and a fault every few seconds, and whether anything grows or is lost.

The real service with the real failover and child processes; the engine in them is a fake with a scripted GPU, so that
what is measured is the service. Good images are made here, hostile ones too, and those of shared/hostile come along
where that folder is. Faults: the service killed, stopped in good order, frozen, told to look again; an engine process
killed or frozen; CUDA errors; heat; the output folder gone; no descriptor left; the log rotated. Everything is audited
at the end: folders, cutouts, ledger, and an event for every image in the log and its rotated parts.

Where time is the mechanism it runs fast: half a day a second for what the ledger remembers (30 days), dwells and
intervals of the GPU's health in fractions of a second.

Writes a report: the slope of memory, descriptors, threads, the ledger's size and shared memory, per hour and per 1,000
images, each with its 95 % bounds. Slopes are judged in runs of ten minutes or more.

    python -m tools.soak [--seconds 600] [--fault-every 15] [--report soak.md]

To be run in the checkout, as it uses the harness of the tests.

Prints the report, then one JSON line; exit status 1 when something was lost, or surely grows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.clock import SystemClock
from rmbgd.store.ledger import Ledger
from rmbgd.testing.engine import CUDA_ERRORS
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest
from tests.support.images import assert_cutout_of, rgba_of, sample_image
from tests.support.mounts import memory_folder
from tests.support.service import ENDINGS
from tests.support.slopes import Slope, slope

RATE = 12.0  # images a second: heaps and caches fill in some thousand images, and what grows after that is meant
HOSTILE_SHARE = 0.2
SAMPLE = 1.0  # s between two readings
WARM_UP = 100.0  # s of each life that are not counted; in runs of less than ten minutes a tenth of the run
SHORTAGE = 1.5  # s that a fault lasts which ends
FINISH = 120.0  # s for the rest after the last fault
JUDGED_FROM = 600.0  # s
PACE = 43_200.0  # s of the service's wall clock in one of ours: what it remembers for 30 days is forgotten in a minute
REMEMBERED = 100.0  # s after which that has surely begun
LIVES_END = 0.4  # share of the run in which faults end lives, too: slopes need a life of some length
GROWTH = 1 << 20  # bytes per 1,000 images that memory may at most be growing by, for certain
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


class Soak:
    """One run. `strange` are files of which nobody says here what must become of them."""

    def __init__(self, base: Path, *, seconds: float, fault_every: float, seed: int, strange: list[Path]) -> None:
        self._seconds, self._fault_every, self._strange = seconds, fault_every, strange
        self._dice = random.Random(seed)
        self._service = GpuUnderTest(
            base,
            settings={
                "engine": {"device": "cuda:0", "batch_timeout": 2.0, "restart_delay_maximum": 1.0},
                "intake": {"attempts": 10, "incomplete_timeout": 3.0},
            },
        )
        self._service.options["pace"] = {"factor": PACE, "since": time.time()}
        self._good: dict[str, bytes] = {}
        self._other: dict[str, bytes] = {}
        self._faults: Counter[str] = Counter()
        self._readings: list[Reading] = []
        self._life = 0
        self._parts: list[Path] = []  # of the log, oldest first, without the newest
        self._repair: tuple[float, Callable[[], None]] | None = None
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Raises AssertionError for what the audit finds."""
        service = self._service.start()
        self._began = time.monotonic()
        try:
            self._feed_and_hurt()
            self._mend()
            service.wait(service.is_idle, "the rest after the last fault", timeout=FINISH)
        except BaseException:
            self._mend()
            service.kill()
            raise
        code = service.stop()
        assert code == 0, f"exit status {code}: {service.tail()}"
        return self._audited()

    def _feed_and_hurt(self) -> None:
        next_image = next_reading = 0.0
        next_fault = self._fault_every
        while (now := time.monotonic() - self._began) < self._seconds:
            assert not self._service.ended, self._service.tail()
            if now >= next_image:
                next_image += self._dice.expovariate(RATE)
                self._drop()
            if now >= next_reading:
                next_reading += SAMPLE
                self._read(now)
            if self._repair and now >= self._repair[0]:
                self._mend()
            if now >= next_fault and not self._repair:
                next_fault = now + self._dice.uniform(0.5, 1.5) * self._fault_every
                fault = self._dice.choice(self._repertoire(ending=now < LIVES_END * self._seconds))
                self._faults[fault.__name__.strip("_")] += 1
                fault()
            time.sleep(0.02)

    def _drop(self) -> None:
        number = len(self._good) + len(self._other)
        if self._dice.random() >= HOSTILE_SHARE:
            name, data = f"{number % 7}/{number}.png", sample_image(number, size=(self._dice.randint(8, 400), 120))
            self._good[name] = data
        elif self._strange and self._dice.random() < 0.5:
            path = self._dice.choice(self._strange)
            name, data = f"strange/{number}{path.suffix}", path.read_bytes()
            self._other[name] = data
        else:
            name, data = f"strange/{number}.png", hostile(self._dice, number)
            self._other[name] = data
        self._service.drop(name, data)

    # ------------------------------------------------------------------------------------------------ what is measured

    def _read(self, now: float) -> None:
        with contextlib.suppress(OSError):  # the ledger's log comes and goes
            proc = Path(f"/proc/{self._pid()}")
            memory = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            ledger = sum(path.stat().st_size for path in self._service.state.glob("ledger.sqlite*"))
            self._readings.append(
                Reading(
                    self._life,
                    now,
                    int(memory["RssAnon"].split()[0]) << 10,
                    len(os.listdir(proc / "fd")),
                    int(memory["Threads"]),
                    ledger,
                    int(memory["RssShmem"].split()[0]) << 10,
                )
            )

    def _slopes(self) -> dict[str, Slope]:
        """Per hour. The ledger outlives the process, and is judged once it forgets; the others begin anew each life."""
        warm_up = min(WARM_UP, self._seconds / 10)
        lives: dict[int, list[Reading]] = {}
        for reading in self._readings:
            lives.setdefault(reading.life, []).append(reading)
        counted = [[each for each in life if each.seconds >= life[0].seconds + warm_up] for life in lives.values()]
        full = [[each for each in self._readings if each.seconds >= min(REMEMBERED, self._seconds / 2)]]
        return {
            name: _slope_of(name, full if name == "ledger" else [life for life in counted if life])
            for name in QUANTITIES
        }

    def _levels(self) -> dict[str, list[float]]:
        """Of each quantity in the last life: where its slope begins, at the end, and the highest."""
        last = [each for each in self._readings if each.life == self._life]
        last = [each for each in last if each.seconds >= last[0].seconds + min(WARM_UP, self._seconds / 10)] or last
        return {
            name: [getattr(last[0], name), getattr(last[-1], name), max(getattr(each, name) for each in last)]
            for name in QUANTITIES
        }

    # ------------------------------------------------------------------------------------------ what is done to it

    def _repertoire(self, *, ending: bool) -> list[Callable[[], None]]:
        """Faults; `ending`: those that end a life as well."""
        return [
            *((self._kill, self._restart) if ending else ()),
            self._freeze,
            self._look_again,
            self._kill_engine,
            self._freeze_engine,
            self._cuda_error,
            self._heat,
            self._output_gone,
            self._no_descriptors,
            self._rotate,
        ]

    def _pid(self) -> int:
        assert self._service.process is not None
        return self._service.process.pid

    def _engines(self) -> list[int]:
        found: list[int] = []
        for children in Path(f"/proc/{self._pid()}/task").glob("*/children"):
            found += map(int, children.read_text().split())
        return found

    def _kill(self) -> None:
        self._service.kill()
        self._again()

    def _restart(self) -> None:
        code = self._service.stop()
        assert code == 0, f"exit status {code}: {self._service.tail()}"
        self._again()

    def _again(self) -> None:
        self._life += 1
        self._service.start()

    def _look_again(self) -> None:
        self._service.signal(signal.SIGHUP)

    def _freeze(self) -> None:
        self._service.signal(signal.SIGSTOP)
        self._repair_later(lambda: self._service.signal(signal.SIGCONT))

    def _kill_engine(self) -> None:
        self._signal_engine(signal.SIGKILL)

    def _freeze_engine(self) -> None:
        self._signal_engine(signal.SIGSTOP)

    def _signal_engine(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self._dice.choice(self._engines()), number)

    def _cuda_error(self) -> None:
        self._service.steps([f"cuda:{self._dice.choice(sorted(CUDA_ERRORS))}"])

    def _rotate(self) -> None:
        log = self._service.log_file
        self._parts.append(log.with_name(f"{log.name}.{len(self._parts) + 1:04}"))
        log.rename(self._parts[-1])

    def _heat(self) -> None:
        self._service.temperature(90.0)
        self._repair_later(lambda: self._service.temperature(60.0))

    def _output_gone(self) -> None:
        away = self._service.base / "away"
        os.rename(self._service.output, away)

        def back() -> None:
            os.rename(away, self._service.output)

        self._repair_later(back)

    def _no_descriptors(self) -> None:
        pid = self._pid()
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), before[1]))
        self._repair_later(lambda: _restore_limit(pid, before))

    def _repair_later(self, repair: Callable[[], None]) -> None:
        self._repair = (time.monotonic() - self._began + SHORTAGE, repair)

    def _mend(self) -> None:
        if self._repair is not None:
            repair, self._repair = self._repair[1], None
            repair()

    # ------------------------------------------------------------------------------------------------ what must be true

    def _endings(self) -> list[dict[str, Any]]:
        """Events of outcomes in every part of the log; a kill may have torn a line."""
        return [event for part in (*self._parts, self._service.log_file) for event in _endings_of(part)]

    def _remembered(self) -> int:
        """Rows that the ledger still has. The service is down, and nothing is left open."""
        ledger = Ledger(self._service.state / "ledger.sqlite", SystemClock())
        try:
            assert ledger.unfinished() == []
            return sum(ledger.counts().values())
        finally:
            ledger.close()

    def _audited(self) -> dict[str, Any]:
        service = self._service
        ended = audit.places(service.roots, self._good | self._other)
        assert "input" not in ended.values(), [name for name, where in ended.items() if where == "input"]
        refused = [name for name in self._good if ended[name] != "done"]
        assert not refused, [(name, audit.reason_of(service.failed, name)) for name in refused]
        for name, data in self._good.items():
            assert_cutout_of(data, service.output / (os.path.splitext(name)[0] + ".png"))
        for name in audit.files(service.output):
            assert ".rmbgd" not in name, f"{name} was left in the output"
            if name.startswith("strange/") and not name.endswith(".json"):  # an empty cutout has a sidecar
                rgba_of(service.output / name)
        done = sum(where == "done" for where in ended.values())
        told = audit.assert_each_told(self._endings())
        assert len(told) == len(ended), f"{len(ended)} images ended, {len(told)} jobs were told"
        remembered = self._remembered()
        if self._seconds > REMEMBERED:
            assert remembered < len(ended), "nothing was ever forgotten"
        slopes = self._slopes()
        per_hour = done / (time.monotonic() - self._began) * 3600
        leaks = per_hour and slopes["rss"].low / per_hour * 1000 > GROWTH
        return {
            "seconds": round(self._seconds, 1),
            "lives": self._life + 1,
            "done": done,
            "refused": len(ended) - done,
            "lost": 0,
            "told_again": sum(count > 1 for count in told.values()),
            "days_of_the_ledger": round(self._seconds * PACE / 86_400),
            "remembered": remembered,
            "parts_of_the_log": len(self._parts) + 1,
            "faults": dict(sorted(self._faults.items())),
            "readings": len(self._readings),
            "per_hour": {name: each.rounded() for name, each in slopes.items()},
            "per_1000_images": {
                name: Slope(*(value / per_hour * 1000 for value in (each.value, each.low, each.high))).rounded()
                for name, each in slopes.items()
            }
            if per_hour
            else {},
            "levels": self._levels(),
            "judged": self._seconds >= JUDGED_FROM,
            "grows": bool(leaks and self._seconds >= JUDGED_FROM),
        }


def _slope_of(name: str, lives: Sequence[Sequence[Reading]]) -> Slope:
    hours = [[each.seconds / 3600 for each in life] for life in lives]
    return slope(hours, [[getattr(each, name) for each in life] for life in lives])


def _endings_of(part: Path) -> Iterator[dict[str, Any]]:
    for line in part.read_bytes().splitlines():
        if line.endswith(b"}") and (event := json.loads(line))["event"] in ENDINGS:
            yield event


def _restore_limit(pid: int, before: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    out = io.StringIO()
    print(f"# Soak of {result['seconds']:g} s\n", file=out)
    print(
        f"{result['done']} images done, {result['refused']} refused, none lost, in {result['lives']} lives.", file=out
    )
    print(
        f"{result['parts_of_the_log']} parts of the log hold an event for every image, {result['told_again']} of "
        f"them twice, as they say. {result['days_of_the_ledger']} days by the ledger's clock; it remembers "
        f"{result['remembered']} images.",
        file=out,
    )
    print("Faults: " + ", ".join(f"{name} {count}" for name, count in result["faults"].items()) + ".\n", file=out)
    print(
        "| quantity | slope per hour | 95 % bounds | per 1,000 images | 95 % bounds | last life: from, to, most |\n"
        "|---|---|---|---|---|---|",
        file=out,
    )
    for name, hourly in result["per_hour"].items():
        per_image = result["per_1000_images"].get(name, [None] * 3)
        numbers = ["unknown" if each is None else f"{each:,.1f}" for each in (*hourly, *per_image)]
        cells = "{} | {} to {} | {} | {} to {}".format(*numbers)
        levels = ", ".join(f"{level:,.0f}" for level in result["levels"][name])
        print(f"| {name} | {cells} | {levels} |", file=out)
    verdict = "memory grows" if result["grows"] else "no growth shown" if result["judged"] else "too short to be judged"
    print(f"\nMemory, the ledger and shared memory in bytes. Verdict on memory: {verdict}.", file=out)
    return out.getvalue()


def soak(base: Path, *, seconds: float, fault_every: float, seed: int) -> dict[str, Any]:
    """Below `base`, where nothing is yet. Raises AssertionError."""
    root = Path(os.environ.get("RMBGD_SHARED", Path(__file__).parents[2] / "shared")) / "hostile" / "files"
    strange = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return Soak(base / "soak", seconds=seconds, fault_every=fault_every, seed=seed, strange=strange).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--fault-every", type=float, default=15.0, help="seconds, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="a file for the report")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rmbgd-soak-") as fallback, memory_folder(Path(fallback)) as base:
        try:
            result = soak(base, seconds=given.seconds, fault_every=given.fault_every, seed=given.seed)
        except AssertionError as error:
            print(json.dumps({"seconds": given.seconds, "seed": given.seed, "found": str(error)[:8000]}))
            return 1
    text = report(result)
    if given.report:
        given.report.write_text(text)
    print(text)
    print(json.dumps(result))
    return 1 if result["grows"] else 0


if __name__ == "__main__":
    sys.exit(main())
