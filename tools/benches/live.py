"""A live frame beside a backlog: from the close of its file to its publication, idle and while stills, frames of a film
and the file of another are worked on.

The real process around a network that takes the same time for each batch. A live frame may wait for the batch that
runs; for nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from rmbgd.bench.samples import drawn, ranked, versions
from tests.support.service import ServiceUnderTest
from tools.benches.films import made_film
from tools.benches.frames import SIZE, frames, numbered
from tools.tables import Report, values

FOLDERS: dict[str, dict[str, Any]] = {
    "live": {"kind": "frames", "temporal": "steady", "latency": "realtime", "frame_wait": 0.2},
    "frames": {"kind": "frames", "temporal": "steady"},
    "films": {"kind": "films", "temporal": "steady"},
}


def latencies(base: Path, count: int, service_time: float, backlog: int) -> tuple[list[float], list[float]]:
    """Seconds from the close of each live frame to its event, the first ten left out; and of the others' batches."""
    folders: list[dict[str, Any]] = []
    for name, settings in FOLDERS.items():
        roots = {role: base / name / role for role in ("input", "output", "failed")}
        for root in roots.values():
            root.mkdir(parents=True)
        folders.append(
            {"name": name, "originals": "delete", **{role: str(path) for role, path in roots.items()}, **settings}
        )
    service = ServiceUnderTest(
        base,
        settings={"pipeline": {"arena_bytes": 256 << 20, "free_bytes_minimum": 0}, "arrays": {"folder": folders}},
        options={"engine": {"hard": True, "delay": service_time}},
    )
    service.fresh_interpreter = True
    data = frames(48)
    stills = versions(drawn(8, 1600))
    for number, (name, image) in enumerate(islice(stills, backlog)):
        (service.input / name).write_bytes(image)
        (base / "frames/input" / f"{number:05}.jpg").write_bytes(numbered(data[number % 48], number))
    if backlog:
        (base / "films/input/film.mp4").write_bytes(made_film(2 * backlog, SIZE))
    service.start()
    if backlog:
        service.wait_for_endings(4)
        service.wait_for("film.started")
    closed = []
    for number in range(count + 10):
        began = time.monotonic()
        with open(base / "live/input" / f"{number:05}.jpg", "wb") as file:
            file.write(numbered(data[number % 48], number))
        closed.append(time.monotonic())
        time.sleep(max(0.0, began + 3 * service_time - time.monotonic()))
    service.wait(lambda: len(service.named("image.done", folder="live")) == len(closed), "live frames")
    ended = {each["frame"]: each["monotonic"] for each in service.named("image.done", folder="live")}
    is_over = service.ended_count() >= len(closed) + 2 * backlog or service.named("image.done", folder="films")
    left = not backlog or not is_over
    service.kill()
    if not left:
        raise RuntimeError("the backlog was done before the live frames were; give more of it")
    others = [each for each in service.named("image.done") if each["folder"] != "live"]
    batches = sorted(each["milliseconds"]["engine"] / 1000 for each in others)
    return sorted(ended[number] - closed[number] for number in range(10, len(closed))), batches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=100, help="live ones (default: 100)")
    parser.add_argument(
        "--backlog", type=int, default=600, help="stills, and frames, that wait; the film has twice as many"
    )
    parser.add_argument("--service-time", type=float, default=0.1, help="s that a batch takes (default: 0.1)")


def run(chosen: argparse.Namespace) -> Report:
    count, backlog = (5, 150) if chosen.quick else (chosen.frames, chosen.backlog)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as place:
        for name, waiting in (("idle", 0), ("loaded", backlog)):
            seconds, batches = latencies(Path(place) / name, count, chosen.service_time, waiting)
            found |= {f"{name}_p{share}_ms": round(1000 * ranked(seconds, share / 100), 1) for share in (50, 95)}
    found["added_p95_ms"] = round(found["loaded_p95_ms"] - found["idle_p95_ms"], 1)
    found["batch_p95_ms"] = round(1000 * ranked(batches, 0.95), 1)
    return Report([values("live frames beside a backlog", found)], found)
