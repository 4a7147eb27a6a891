"""A fleet with a real broker on this machine: a campaign of kills, its overhead over a folder, and how fast it runs.

Workers are the real service with a fake engine, so that what is measured is the service and the broker.

    python -m tools.fleet campaign [--images 20000] [--workers 4] [--every 5] [--seed 1] [--set]
        a random worker, all workers of a "host" (half of them) or the broker is killed every few seconds, as long as
        images wait; at the end every image must have one whole result, and every event image.done beyond the first of
        a version says why; with --set each image has three files, and half of them wait for people
    python -m tools.fleet overhead [--images 600] [--rounds 3]
        processor time of an image from the queue, against one from a drop folder, and the broker's memory
    python -m tools.fleet names [--count 20000]
        names that the broker stores a second with sync_interval: always
    python -m tools.fleet sustained [--seconds 600] [--workers 2]
        images a second over a long time
    python -m tools.fleet run --logs DIR [--images 4000] [--workers 2] [--side 64]
        so many images, announced at once: logs, and processor seconds of the workers, for `tools.capacity validate`

Each prints one JSON object; exit status 1 where something was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rmbgd.fleet.message import BULK, HOT, Announcement
from tests.support.audit import SET_OF_THREE
from tests.support.fleet import DOUBTED, ROOT, FleetUnderTest
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest

BATCH = 512  # images announced at once
SETTLE = 300.0  # s for the rest after the last kill
TICKS = os.sysconf("SC_CLK_TCK")
LOOK_AGAIN = 0.25  # s
BROKER_AWAY = 0.5  # s
SAFE = {"service": {"safe_starts": 0}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fleet", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    campaign_ = actions.add_parser("campaign")
    campaign_.add_argument("--images", type=int, default=20_000)
    campaign_.add_argument("--workers", type=int, default=4)
    campaign_.add_argument("--every", type=float, default=5.0, metavar="S")
    campaign_.add_argument("--seed", type=int, default=1)
    campaign_.add_argument("--set", action="store_true", dest="sets")
    overhead_ = actions.add_parser("overhead")
    overhead_.add_argument("--images", type=int, default=600)
    overhead_.add_argument("--rounds", type=int, default=3)
    actions.add_parser("names").add_argument("--count", type=int, default=20_000)
    sustained_ = actions.add_parser("sustained")
    sustained_.add_argument("--seconds", type=float, default=600.0)
    sustained_.add_argument("--workers", type=int, default=2)
    run_ = actions.add_parser("run")
    run_.add_argument("--logs", type=Path, required=True, metavar="DIR", help="made, for worker-0.jsonl and so on")
    run_.add_argument("--images", type=int, default=4000)
    run_.add_argument("--workers", type=int, default=2)
    run_.add_argument("--side", type=int, default=64, help="longer side of the images, in pixels")
    options = parser.parse_args(arguments)
    base = Path(tempfile.mkdtemp(prefix="rmbgd-fleet-"))
    try:
        found = ACTIONS[options.action](base, options)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(json.dumps(found, indent=1))
    return 1 if found.get("lost") or found.get("wrong") else 0


def _seconds(process: int) -> float:
    """Processor time that a process has used, in s (proc_pid_stat(5))."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _write(fleet: FleetUnderTest, numbers: range) -> list[Announcement]:
    return [fleet.write(f"{number // 1000}/{number}.png", sample_image(number)) for number in numbers]


# ---------------------------------------------------------------------------------------------------- campaign


def campaign(base: Path, options: argparse.Namespace) -> dict[str, object]:
    chance, kills = random.Random(options.seed), Counter[str]()
    recipe = SET_OF_THREE | {"review_below": DOUBTED} if options.sets else None
    with FleetUnderTest(
        base, workers=options.workers, lease=10.0, settings=SAFE, recipe=recipe, review=options.sets
    ) as fleet:
        fleet.start()
        began = next_kill = time.monotonic()
        sent = 0
        while sent < options.images or fleet.stored(HOT, BULK):
            if sent < options.images and fleet.queued()[0] < 2 * BATCH:
                some = range(sent, min(sent + BATCH, options.images))
                fleet.announce(_write(fleet, some))
                sent = some.stop
            if time.monotonic() >= next_kill + options.every and fleet.queued()[0]:
                next_kill = time.monotonic()
                kills[_kill_something(fleet, chance)] += 1
            fleet.restart_dead()
            if time.monotonic() > began + 4 * options.images / 20 + SETTLE:
                break
            time.sleep(LOOK_AGAIN)
        seconds = time.monotonic() - began
        fleet.wait(lambda: all(not worker.is_down for worker in fleet.workers), "every worker")
        return _audit(fleet, options.images) | {"seconds": round(seconds, 1), "kills": dict(kills)}


def _kill_something(fleet: FleetUnderTest, chance: random.Random) -> str:
    what = chance.choice(["worker", "worker", "worker", "host", "broker"])
    if what == "broker":
        fleet.disconnect()
        fleet.broker.kill()
        time.sleep(BROKER_AWAY)
        fleet.broker.start()
        return what
    count = 1 if what == "worker" else len(fleet.workers) // 2
    for worker in chance.sample(fleet.workers, count):
        if not worker.is_down:
            worker.kill()
    return what


def _audit(fleet: FleetUnderTest, images: int) -> dict[str, object]:
    records, counts = fleet.records(), fleet.done_counts()
    return {
        "images": images,
        "lost": images - len(records),
        "without_event": len(records.keys() - {path for path, _ in counts}),
        "failed": fleet.failures(),
        "wrong": [*fleet.partial()[:20], *map(str, fleet.unexplained()[:20])],
        "temporaries_left": len(fleet.temporaries()),
        "computed": fleet.computed(),
        "events": sum(counts.values()),
    }


# ---------------------------------------------------------------------------------------------------- overhead


def overhead(base: Path, options: argparse.Namespace) -> dict[str, object]:
    """Median over alternating rounds."""
    pairs, memory = [], 0
    for number in range(options.rounds):
        folder = _folder(base / f"folder{number}", options.images)
        queue, memory = _queue(base / f"queue{number}", options.images, memory)
        pairs.append((folder, queue))
    folders, queues = ([1000 * pair[side] / options.images for pair in pairs] for side in (0, 1))
    return {
        "images": options.images,
        "folder_ms": round(statistics.median(folders), 2),
        "queue_ms": round(statistics.median(queues), 2),
        "overhead_ms": round(statistics.median(q - f for f, q in zip(folders, queues, strict=True)), 2),
        "rounds": [(round(f, 2), round(q, 2)) for f, q in zip(folders, queues, strict=True)],
        "broker_bytes": memory,
    }


def _folder(base: Path, images: int) -> float:
    service = ServiceUnderTest(base, folder={"originals": "keep"})
    with service:
        before = _seconds(service.pid)
        service.drop_all({f"{number}.png": sample_image(number) for number in range(images)})
        service.wait(lambda: len(service.named("image.done")) >= images, "all done", timeout=SETTLE)
        return _seconds(service.pid) - before


def _queue(base: Path, images: int, memory: int) -> tuple[float, int]:
    with FleetUnderTest(base, workers=1, lease=30.0) as fleet:
        fleet.start()
        worker = fleet.workers[0]
        before = _seconds(worker.pid)
        fleet.announce([fleet.write(f"{number}.png", sample_image(number)) for number in range(images)])
        worker.wait(lambda: len(worker.named("image.done")) >= images, "all done", timeout=SETTLE)
        fleet.wait_until_settled()
        return _seconds(worker.pid) - before, max(memory, fleet.broker.rss())


# ---------------------------------------------------------------------------------------------------- speed


def names(base: Path, options: argparse.Namespace) -> dict[str, object]:
    with FleetUnderTest(base, workers=0) as fleet:
        announced = [Announcement(ROOT, f"{n // 1000}/{n}.jpg", f"{n}-{n}", "default") for n in range(options.count)]
        used, began = _seconds(fleet.broker.pid), time.monotonic()
        for start in range(0, len(announced), BATCH):
            fleet.announce(announced[start : start + BATCH], HOT)
        seconds = time.monotonic() - began
        return {
            "names": options.count,
            "per_second": round(options.count / seconds),
            "broker_ms_each": round(1000 * (_seconds(fleet.broker.pid) - used) / options.count, 3),
            "broker_bytes": fleet.broker.rss(),
        }


def sustained(base: Path, options: argparse.Namespace) -> dict[str, object]:
    with FleetUnderTest(base, workers=options.workers, lease=30.0) as fleet:
        fleet.start()
        pids = [fleet.broker.pid, *(worker.pid for worker in fleet.workers)]
        used = [_seconds(pid) for pid in pids]
        began, sent, own = time.monotonic(), 0, time.process_time()
        while time.monotonic() < began + options.seconds:
            if fleet.queued()[0] < 2 * BATCH:
                fleet.announce(_write(fleet, range(sent, sent + BATCH)))
                sent += BATCH
            time.sleep(LOOK_AGAIN / 5)
        seconds = time.monotonic() - began
        done = sum(len(worker.named("image.done")) for worker in fleet.workers)
        spent = [after - before for after, before in zip(map(_seconds, pids), used, strict=True)]
        return {
            "workers": options.workers,
            "seconds": round(seconds, 1),
            "done": done,
            "per_second": round(done / seconds, 1),
            "broker_cpu_share": round(spent[0] / seconds, 3),
            "workers_cpu_share": round(sum(spent[1:]) / seconds, 3),
            "feeder_cpu_share": round((time.process_time() - own) / seconds, 3),
            "ms_of_workers_each": round(1000 * sum(spent[1:]) / max(done, 1), 2),
            "broker_bytes": fleet.broker.rss(),
        }


def run(base: Path, options: argparse.Namespace) -> dict[str, object]:
    options.logs.mkdir(parents=True, exist_ok=True)
    size = (options.side, options.side * 3 // 4)
    with FleetUnderTest(base, workers=options.workers, lease=60.0) as fleet:
        announced = [
            fleet.write(f"{number // 1000}/{number}.png", sample_image(number, size=size))
            for number in range(options.images)
        ]
        fleet.start()
        pids = [worker.pid for worker in fleet.workers]
        used, began = sum(map(_seconds, pids)), time.monotonic()
        for start in range(0, len(announced), BATCH):
            fleet.announce(announced[start : start + BATCH])
        fleet.wait(lambda: fleet.stored(HOT, BULK) == 0, "the last image", timeout=SETTLE)
        seconds, spent = time.monotonic() - began, sum(map(_seconds, pids)) - used
        logs = [options.logs / f"worker-{number}.jsonl" for number in range(options.workers)]
        for worker, log in zip(fleet.workers, logs, strict=True):
            shutil.copyfile(worker.log_file, log)
    return {
        "workers": options.workers,
        "images": options.images,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(spent, 2),
        "ms_each": round(1000 * spent / options.images, 3),
        "logs": [str(log) for log in logs],
    }


ACTIONS = {"campaign": campaign, "overhead": overhead, "names": names, "sustained": sustained, "run": run}

if __name__ == "__main__":
    sys.exit(main())
