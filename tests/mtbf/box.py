"""A machine on simulated time that writes the event log that the service would write. Every event is checked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import strategies as st

from rmbgd.events import EVENTS, problems_with
from rmbgd.mtbf.command import add_arguments

EPOCH = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
HOUR = 3600.0


class Box:
    def __init__(self, name: str = "box", *, heartbeat: float = 60.0, host: str | None = None):
        self.name, self.heartbeat, self.host = name, heartbeat, host
        self.wall, self.mono = EPOCH, 50.0
        self.boots, self.pid, self.jobs = 1, 1000, 0
        self.lines: list[str] = []
        self.device, self.in_flight = "cuda:0", 0
        self.temperature: float | None = 60.0
        self.paused: str | None = None

    def set(self, **attributes: object) -> Box:
        vars(self).update(attributes)
        return self

    def sleep(self, seconds: float) -> Box:
        return self.set(wall=self.wall + seconds, mono=self.mono + seconds)

    def step_clock(self, seconds: float) -> Box:
        return self.set(wall=self.wall + seconds)

    def reboot(self, seconds: float = 30.0) -> Box:
        return self.set(wall=self.wall + seconds, mono=5.0, boots=self.boots + 1)

    def emit(self, event: str, *, pid: int | None = None, **keys: object) -> Box:
        assert problems_with(event, keys) == []
        envelope = {
            "event": event,
            "level": EVENTS[event].level,
            "time": datetime.fromtimestamp(self.wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "monotonic": round(self.mono, 3),
            "boot_id": f"{self.name}-boot-{self.boots}",
            "pid": self.pid if pid is None else pid,
            "version": "0.1.0",
        }
        self.lines.append(json.dumps(envelope | keys))
        return self

    def launch(self) -> Box:
        """A process that says that it starts, and no more."""
        self.pid += 1
        host = {"host": self.host} if self.host else {}
        return self.emit(
            "service.start", config="/etc/rmbgd/rmbgd.toml", folders=["shop"], device="auto", python="3.11",
            heartbeat=self.heartbeat, **host,
        )  # fmt: skip

    def start(self, *, ready_after: float = 2.0) -> Box:
        self.launch().sleep(ready_after)
        return self.emit("service.ready", seconds=ready_after, device=self.device, recovered=0)

    def health(self) -> Box:
        state = {"state": "ok"} if self.temperature is None else {"state": "ok", "temperature": self.temperature}
        return self.emit(
            "health", uptime=1.0, device=self.device, done=0, failed=0, postponed=0, waiting=0,
            in_flight=self.in_flight, oldest_waiting=0.0, rss_bytes=1, descriptors=1, threads=1, arena_bytes=0,
            arena_resident=0, channels={}, paused=self.paused, ledger_rows=0, engine={"devices": {self.device: state}},
        )  # fmt: skip

    def serve(self, seconds: float) -> Box:
        """Beat for so long; the last heartbeat falls on the end when it divides evenly."""
        left = seconds
        while left > self.heartbeat - 1e-9:
            self.sleep(self.heartbeat).health()
            left -= self.heartbeat
        return self.sleep(left)

    def image(self, *, total: float = 300.0, device: str | None = None, **changes: object) -> Box:
        self.jobs += 1
        times = {"wait": 1.0, "decode": 20.0, "queue": 3.0, "engine": total / 2, "encode": 30.0, "total": total}
        keys = {
            "job": self.jobs, "folder": "shop", "path": f"{self.jobs}.jpg", "attempt": 1, "milliseconds": times,
            "output": f"{self.jobs}.png", "device": device or self.device, "model": "m", "width": 1, "height": 1,
            "format": "JPEG", "bytes_in": 1, "bytes_out": 1, "coverage": 0.5, "soft": 0.1, "verdict": "ok", "batch": 1,
            "reused": False, "sha256_in": f"{self.jobs:x}", "sha256_out": "",
        }  # fmt: skip
        return self.emit("image.done", **keys | changes)

    def refuse(self, reason: str = "truncated", stage: str = "decode") -> Box:
        self.jobs += 1
        return self.emit(
            "image.failed", job=self.jobs, folder="shop", path=f"{self.jobs}.jpg", attempt=1,
            milliseconds={"total": 5.0}, reason=reason, detail="", stage=stage,
        )  # fmt: skip

    def fail(self, stage: str = "finish", error: str = "") -> Box:
        return self.emit("service.failed", stage=stage, error=error, traceback="")

    def stop(self, cause: str = "SIGTERM", exit_code: int = 0, seconds: float = 1.0) -> Box:
        self.emit("service.stopping", cause=cause, in_flight=0).sleep(seconds)
        return self.emit("service.stop", exit_code=exit_code, seconds=seconds, returned=0)

    def recorded(self, result: str = "signal", code: str = "killed", status: str = "KILL", **more: object) -> Box:
        """What the exit recorder writes, in a process of its own."""
        return self.emit("service.exit", pid=90_000 + self.pid, result=result, code=code, status=status, **more)

    def failover(self, reason: str = "temperature", images: int = 1) -> Box:
        return self.set(device="cpu").emit(
            "engine.failover", **{"from": "cuda:0", "to": "cpu"}, reason=reason, reading=86.0, threshold=85.0,
            images=list(range(1, images + 1)), model="u2netp",
        )  # fmt: skip

    def failback(self) -> Box:
        self.set(device="cuda:0")
        return self.emit("engine.failback", **{"from": "cpu", "to": "cuda:0"}, seconds=1.0, model="m")

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in self.lines))
        return path


PARTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["serve", "freeze"]), st.integers(1, 120)),
        st.tuples(st.sampled_from(["stop", "kill", "vanish", "fail", "reboot", "power"]), st.integers(1, 90)),
        st.tuples(st.just("bad start"), st.integers(1, 30)),
    ),
    max_size=14,
)
FAILED = ("exit-code", "exited", "70")
PLAYED: dict[str, Callable[[Box, int], Box]] = {
    "serve": Box.serve,
    "freeze": lambda box, seconds: box.sleep(seconds).health(),
    "stop": lambda box, seconds: box.stop(seconds=1).sleep(seconds).start(),
    "kill": lambda box, seconds: box.recorded().sleep(seconds).start(),
    "vanish": lambda box, seconds: box.sleep(seconds).start(),
    "fail": lambda box, seconds: box.fail().recorded(*FAILED).sleep(seconds).start(),
    "reboot": lambda box, seconds: box.stop(seconds=1).reboot(seconds).start(),
    "power": lambda box, seconds: box.reboot(seconds).start(),
    "bad start": lambda box, s: box.stop(seconds=1).sleep(s).launch().sleep(1).recorded(*FAILED).sleep(s).start(),
}


def play(parts: list[tuple[str, int]], dropped: set[int]) -> Box:
    """A history from its parts; lines whose number is in `dropped` are lost, but for starts and readies."""
    box = Box(heartbeat=10).start()
    for what, amount in parts:
        PLAYED[what](box, amount)
    kept = ("service.start", "service.ready", "service.exit", "service.failed")
    box.lines = [
        line
        for number, line in enumerate(box.lines)
        if number not in dropped or any(f'"{word}"' in line for word in kept)
    ]
    return box


def options(*words: object) -> argparse.Namespace:
    """What `rmbgd mtbf` makes of these words."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])
