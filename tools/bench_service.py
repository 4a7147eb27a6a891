"""The service around a network that costs nothing: start, latency of an image, claims a second, memory of a backlog.

Starts the real process with a null engine, by calling the composition root as the command line does. Says nothing about
any network: tools/bench_model.py does. Prints a table, then one JSON line.

    python tools/bench_service.py [--pictures 60] [--backlog 10000]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

QUIET = 0.5  # s; intake.quiet_closed, the default
LAUNCH = """
import sys
from pathlib import Path
from rmbgd import daemon
from rmbgd.testing.engine import FakeBackend
delay = sys.argv[2]
make = lambda parts: FakeBackend(parts.arena.block, [f"delay:{delay}"] * 100000 if float(delay) else ())
sys.exit(daemon.run(Path(sys.argv[1]), engine_factory=make))
"""


class Service:
    """The process on folders below `base`, its events as they come, and its memory."""

    def __init__(self, base: Path, *, delay: float = 0.0) -> None:
        self.base = base
        for name in ("input", "output", "done", "failed", "state", "run"):
            (base / name).mkdir(parents=True, exist_ok=True)
        config = base / "rmbgd.toml"
        places = "\n".join(f'{name} = "{base / name}"' for name in ("input", "output", "done", "failed"))
        config.write_text(
            f'[service]\nstate_directory = "{base / "state"}"\nruntime_directory = "{base / "run"}"\n'
            f'[[folder]]\nname = "bench"\n{places}\n'
        )
        self.began = time.monotonic()
        command = [sys.executable, "-c", LAUNCH, str(config), str(delay)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._heard = threading.Condition()
        self._events: list[tuple[float, dict[str, object]]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                self._events.append((time.monotonic(), json.loads(line)))
                self._heard.notify_all()

    def named(self, name: str) -> list[tuple[float, dict[str, object]]]:
        return [each for each in list(self._events) if each[1]["event"] == name]

    def wait(self, name: str, count: int = 1, timeout: float = 600.0) -> tuple[float, dict[str, object]]:
        with self._heard:
            if not self._heard.wait_for(lambda: len(self.named(name)) >= count, timeout):
                raise SystemExit(
                    f"the service said no {name} number {count} in {timeout} s; its log: {self._events[-3:]}"
                )
            return self.named(name)[count - 1]

    def resident(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> float:
        """Seconds from SIGTERM to the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        self._reader.join()
        if code:
            raise SystemExit(f"the service ended with {code}; its log: {self._events[-3:]}")
        return time.monotonic() - began


def photograph(path: Path, number: int, side: int) -> None:
    """A smooth image with a little noise, about as dense as a photograph."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (random.uniform(1, 6) * x + random.uniform(1, 6) * y)) for _ in range(3)]
    pixels = np.stack(waves, axis=-1) * 90 + 128 + random.normal(0, 3, (side, side, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def help_seconds(runs: int = 9) -> list[float]:
    taken = []
    for _ in range(runs):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "rmbgd", "--help"], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.monotonic() - began)
    return taken


def start_and_latency(base: Path, images: int) -> dict[str, float]:
    """An idle service; one image after another, from the close of its file to the event that follows its rename."""
    sources = [base / f"{number}.jpg" for number in range(8)]
    base.mkdir()
    for number, source in enumerate(sources):
        photograph(source, number, 1024)
    service = Service(base / "service")
    ready = service.wait("service.ready")[0] - service.began
    latencies, own = [], []
    for number in range(images):
        data = sources[number % len(sources)].read_bytes() + number.to_bytes(4, "little")  # none equals another
        target = base / "service" / "input" / f"{number}.jpg"
        target.write_bytes(data)
        closed = time.monotonic()
        heard, _ = service.wait("image.done", number + 1)
        latencies.append(heard - closed)
        own.append(heard - closed - QUIET)
    stopped = service.stop()
    return {
        "ready_s": ready,
        "latency_p50_s": statistics.median(latencies),
        "latency_p95_s": float(np.percentile(latencies, 95)),
        "own_p50_ms": 1000 * statistics.median(own),
        "own_p95_ms": 1000 * float(np.percentile(own, 95)),
        "idle_stop_s": stopped,
    }


def backlog(base: Path, files: int) -> dict[str, float]:
    """Small images that waited before the start: everything they cost, with an engine that costs nothing."""
    base.mkdir()
    one = base / "one.png"
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(one)
    data = one.read_bytes()
    place = base / "service" / "input"
    place.mkdir(parents=True)
    for number in range(files):
        (place / f"{number}.png").write_bytes(data + number.to_bytes(4, "little"))
    service = Service(base / "service")
    first, _ = service.wait("image.done", max(1, files // 20))
    early = service.resident()
    last, _ = service.wait("image.done", files, timeout=1800)
    late = service.resident()
    service.stop()
    done = files - max(1, files // 20)
    return {
        "backlog": files,
        "finished_per_s": done / (last - first),
        "rss_early_mb": early / 1e6,
        "rss_late_mb": late / 1e6,
    }


def claims(base: Path, files: int) -> dict[str, float]:
    """The intake alone, into a line that takes everything at once: files claimed a second, each commit on the disk."""
    from rmbgd.clock import SystemClock
    from rmbgd.config.load import load
    from rmbgd.events import EVENTS
    from rmbgd.heartbeat import NullHeartbeat
    from rmbgd.intake.reconciler import Reconciler
    from rmbgd.intake.watcher import FolderWatch, Hints
    from rmbgd.pipeline.items import Arrival
    from rmbgd.pipeline.queue import Receiver, Sender, queue
    from rmbgd.publish.publisher import Publisher
    from rmbgd.store.ledger import Ledger
    from rmbgd.store.records import Job

    for name in ("input", "output", "done", "failed"):
        (base / name).mkdir(parents=True)
    for number in range(files):
        (base / "input" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(32) + b"IEND\xaeB`\x82")
    config_path = base / "rmbgd.toml"
    places = "\n".join(f'{name} = "{base / name}"' for name in ("input", "output", "done", "failed"))
    config_path.write_text(f'[[folder]]\nname = "bench"\n{places}\n')
    config, clock, started = load(config_path), SystemClock(), threading.Event()

    def emit(event: str, /, **_: object) -> None:
        assert event in EVENTS

    ledger = Ledger(base / "ledger.sqlite", clock)
    publisher = Publisher(config, ledger, clock, emit)
    jobs: tuple[Sender[Job], Receiver[Job]]
    intake = Reconciler(
        config,
        ledger=ledger,
        publisher=publisher,
        clock=clock,
        emit=emit,
        heartbeat=NullHeartbeat(),
        on_compared=started.set,
    )
    jobs = queue(config.pipeline.queue, "jobs", clock, intake.wake)
    door: tuple[Sender[Arrival], Receiver[Arrival]] = queue(16, "door", clock)
    hints = Hints(config.intake.hints_maximum, intake.wake)
    intake.attach(hints, [FolderWatch(folder, config.intake, hints, emit, clock) for folder in config.folder])
    intake.recover()
    thread = threading.Thread(target=intake.run, args=(jobs[0], door[0]))
    thread.start()
    first = 0.0
    with jobs[1], door[1]:
        for _ in range(files):
            intake.ended(jobs[1].receive())
            first = first or time.monotonic()
        seconds = time.monotonic() - first
        intake.close()
        thread.join()
    ledger.close()
    return {"claimed": files, "claims_per_s": (files - 1) / seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60, help="for the latency")
    parser.add_argument("--backlog", type=int, default=10_000, help="files that wait")
    options = parser.parse_args()
    figures: dict[str, float] = {"help_median_s": statistics.median(help_seconds())}
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as place:
        base = Path(place)
        figures |= start_and_latency(base / "latency", options.pictures)
        figures |= claims(base / "claims", options.backlog)
        figures |= backlog(base / "backlog", options.backlog)
    table = Table("figure", "value", "wanted")
    wanted = {
        "help_median_s": "< 0.3",
        "ready_s": "< 2",
        "latency_p95_s": f"< 1.0, of which {QUIET} settling",
        "own_p95_ms": "< 100",
        "claims_per_s": ">= 500",
    }
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}", wanted.get(name, ""))
    Console().print(table)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
