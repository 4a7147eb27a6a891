"""The service around a network that costs nothing: start, latency of an image, claims a second, memory of a backlog.

The real process with a null engine, through the launcher of the tests. Networks are bench model's and bench gpu's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from rmbgd.bench.engine import resident
from rmbgd.bench.samples import drawn, versions
from rmbgd.clock import SystemClock
from rmbgd.config.load import IntakeSettings, load
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.intake.reconciler import Reconciler
from rmbgd.pipeline.items import Arrival
from rmbgd.pipeline.queue import Receiver, Sender, queue
from rmbgd.publish.publisher import Publisher
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job
from tests.support.images import encoded
from tests.support.service import SHORTENED, ServiceUnderTest
from tools.tables import Report, table

INTAKE = IntakeSettings().model_dump(include=set(SHORTENED))
QUIET = INTAKE["quiet_closed"]
WANTED = {
    "help_median_s": "< 0.3",
    "ready_s": "< 2",
    "latency_p95_s": f"< 1.0, of which {QUIET} settling",
    "own_p95_ms": "< 100",
    "claims_per_s": ">= 500",
}


def service_below(base: Path) -> ServiceUnderTest:
    """With the settings of the service itself where tests have their own, in a fresh interpreter."""
    service = ServiceUnderTest(base, settings={"intake": INTAKE})
    service.fresh_interpreter = True
    return service


def start_and_latency(base: Path, images: int) -> dict[str, float]:
    """An idle service; one image after another, from the close of its file to the event that follows its rename."""
    files = versions(drawn(8, 1024))
    service = service_below(base)
    began = time.monotonic()
    service.start()
    ready = service.named("service.ready")[0]["monotonic"] - began
    latencies = []
    for _ in range(images):
        name, data = next(files)
        (service.input / name).write_bytes(data)
        closed = time.monotonic()
        latencies.append(service.wait_for("image.done", path=name)["monotonic"] - closed)
    began = time.monotonic()
    service.stop()
    found = {"ready_s": ready, "idle_stop_s": time.monotonic() - began}
    for name, latency in zip(("p50", "p95"), np.percentile(latencies, [50, 95]).tolist(), strict=True):
        found |= {f"latency_{name}_s": latency, f"own_{name}_ms": 1000 * (latency - QUIET)}
    return found


def backlog(base: Path, files: int) -> dict[str, float]:
    """Small images that waited before the start: everything they cost, with an engine that costs nothing."""
    service = service_below(base)
    data = encoded(np.full((16, 16, 3), 200, np.uint8))
    for number in range(files):
        (service.input / f"{number}.png").write_bytes(data + number.to_bytes(4, "little"))
    service.start()
    assert service.process is not None
    few, rss = max(1, files // 20), []
    for count, timeout in ((few, 600), (files, 1800)):
        service.wait_for_endings(count, timeout=timeout)
        rss.append(resident(service.process.pid)["rss"] / 1e6)
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

    def emit(_event: str, /, **_: object) -> None:
        pass

    ledger = Ledger(base / "ledger.sqlite", clock)
    jobs: tuple[Sender[Job], Receiver[Job]]
    intake = Reconciler(
        config,
        ledger=ledger,
        publisher=Publisher(config, ledger, clock, emit),
        clock=clock,
        emit=emit,
        heartbeat=NullHeartbeat(),
        on_compared=lambda: None,
    )
    jobs = queue(config.pipeline.queue, "jobs", clock, intake.wake)
    arrivals: tuple[Sender[Arrival], Receiver[Arrival]] = queue(16, "arrivals", clock)
    intake.recover()
    thread = threading.Thread(target=intake.run, args=(jobs[0], arrivals[0]))
    thread.start()
    first = 0.0
    with jobs[1], arrivals[1]:
        for _ in range(files):
            intake.ended(jobs[1].receive())
            first = first or time.monotonic()
        seconds = time.monotonic() - first
        intake.close()
        thread.join()
    ledger.close()
    return {"claimed": files, "claims_per_s": (files - 1) / seconds}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=60, help="for the latency (default: 60)")
    parser.add_argument("--backlog", type=int, default=10_000, help="files that wait (default: 10,000)")


def run(chosen: argparse.Namespace) -> Report:
    images, waiting = (3, 40) if chosen.quick else (chosen.images, chosen.backlog)
    taken = []
    for _ in range(1 if chosen.quick else 9):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "rmbgd", "--help"], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.monotonic() - began)
    found: dict[str, float] = {"help_median_s": statistics.median(taken)}
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as place:
        base = Path(place)
        found |= start_and_latency(base / "latency", images)
        found |= claims(base / "claims", waiting)
        found |= backlog(base / "backlog", waiting)
    rows = [(name, f"{value:.3f}", WANTED.get(name)) for name, value in found.items()]
    shown = table("the service around a null network", "figure", "value", "wanted", rows=rows)
    return Report([shown], {name: round(value, 4) for name, value in found.items()})
