"""The service around a network that costs nothing: start, latency of an image, claims a second, memory of a backlog.

The real process with a null engine, through the launcher of the tests. Networks are bench model's and bench gpu's.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from rmbgd.bench.engine import resident
from rmbgd.bench.samples import drawn, ranked, versions
from rmbgd.clock import SystemClock
from rmbgd.config.load import IntakeSettings, load
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.intake.reconciler import Reconciler
from rmbgd.pipeline.items import Arrival
from rmbgd.pipeline.queue import Receiver, Sender, queue
from rmbgd.publish.publisher import Publisher
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job
from tests.support.service import SHORTENED, ServiceUnderTest
from tools.tables import Report, values

INTAKE = IntakeSettings().model_dump(include=set(SHORTENED))
QUIET = INTAKE["quiet_closed"]


def start_and_latency(base: Path, images: int) -> dict[str, float]:
    """An idle service; one image after another, from the close of its file to the event that follows its rename."""
    files = versions(drawn(8, 1024))
    service = ServiceUnderTest(base, settings={"intake": INTAKE})
    service.fresh_interpreter = True
    began = time.monotonic()
    service.start()
    ready = service.named("service.ready")[0]["monotonic"] - began
    latencies = []
    for _ in range(images):
        name, data = next(files)
        (service.input / name).write_bytes(data)
        closed = time.monotonic()
        latencies.append(service.wait_for("image.done", path=name)["monotonic"] - closed)
    service.stop()
    found = {"ready_s": ready}
    for share in (50, 95):
        latency = ranked(sorted(latencies), share / 100)
        found |= {f"latency_p{share}_s": latency, f"own_p{share}_ms": 1000 * (latency - QUIET)}
    return found


def backlog(base: Path, files: int) -> dict[str, float]:
    """Small images that waited before the start: everything they cost, with an engine that costs nothing."""
    service = ServiceUnderTest(base, settings={"intake": INTAKE})
    service.fresh_interpreter = True  # its memory is its own
    for name, data in islice(versions(drawn(1, 16)), files):
        (service.input / name).write_bytes(data)
    service.start()
    few, rss = max(1, files // 20), []
    for count, timeout in ((few, 600), (files, 1800)):
        service.wait_for_endings(count, timeout=timeout)
        rss.append(resident(service.pid)["rss"] / 1e6)
    service.stop()
    done = service.named("image.done")
    rate = (files - few) / (done[files - 1]["monotonic"] - done[few - 1]["monotonic"])
    return {"backlog": files, "finished_per_s": rate, "rss_early_mb": rss[0], "rss_late_mb": rss[1]}


def claims(base: Path, files: int) -> dict[str, float]:
    """The intake alone, into a queue that takes everything at once: files claimed a second, each commit on the disk."""
    folders = ServiceUnderTest(base)
    for number in range(files):
        (folders.input / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(32) + b"IEND\xaeB`\x82")
    config, clock = load(folders.config), SystemClock()
    ledger, emit = Ledger(base / "ledger.sqlite", clock), RecordedEvents()
    publisher = Publisher(config, ledger, clock, emit)
    given: dict[str, Any] = {"clock": clock, "emit": emit, "heartbeat": NullHeartbeat(), "on_compared": lambda: None}
    intake = Reconciler(config, ledger=ledger, publisher=publisher, **given)
    jobs: tuple[Sender[Job], Receiver[Job]] = queue(config.pipeline.queue, "jobs", clock, intake.wake)
    arrivals: tuple[Sender[Arrival], Receiver[Arrival]] = queue(16, "arrivals", clock)
    intake.recover()
    with ThreadPoolExecutor() as pool, jobs[1], arrivals[1], contextlib.closing(ledger):
        running = pool.submit(intake.run, jobs[0], arrivals[0])
        intake.ended(jobs[1].receive())
        first = time.monotonic()
        for _ in range(files - 1):
            intake.ended(jobs[1].receive())
        seconds = time.monotonic() - first
        intake.close()
        running.result()
    return {"claimed": files, "claims_per_s": (files - 1) / seconds}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=60, help="for the latency (default: 60)")
    parser.add_argument("--backlog", type=int, default=10_000, help="files that wait (default: 10,000)")


def run(chosen: argparse.Namespace) -> Report:
    images, waiting = (3, 40) if chosen.quick else (chosen.images, chosen.backlog)
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as place:
        base = Path(place)
        found = start_and_latency(base / "latency", images)
        found |= claims(base / "claims", waiting)
        found |= backlog(base / "backlog", waiting)
    found = {name: round(value, 4) for name, value in found.items()}
    return Report([values("the service around a null network", found)], found)
