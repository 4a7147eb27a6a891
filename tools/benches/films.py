"""A 720p film through the service around a network that costs nothing: H.264 in, each format of films out, steady.

The real process with a null engine whose alpha has hard edges. Processor time is that of the service and of the film's
process together; memory that of both, at a tenth of the film and at its end.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from rmbgd.bench.engine import resident
from rmbgd.naming import FILM_EXTENSIONS
from tests.support.service import ServiceUnderTest
from tools.benches.frames import SIZE, frames
from tools.tables import Report, table

RATE = 25
LOOK_EVERY = 0.2  # s


def made_film(count: int, size: tuple[int, int]) -> bytes:
    """Walks there and back again, with sound."""
    file = io.BytesIO()
    images = [np.asarray(cv2.imdecode(np.frombuffer(each, np.uint8), 1), np.uint8) for each in frames(min(count, 48))]
    with av.open(file, "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        for number in range(count):
            place = number % (2 * len(images) - 2 or 1)
            image = images[place if place < len(images) else 2 * len(images) - 2 - place]
            shown = av.VideoFrame.from_ndarray(np.asarray(cv2.resize(image, size), np.uint8), "bgr24")
            shown.pts = number
            container.mux(video.encode(shown))
        container.mux(video.encode(None))
    return file.getvalue()


class _Memory(threading.Thread):
    """MB of the service and of its film's process, as often as LOOK_EVERY."""

    def __init__(self, service: ServiceUnderTest) -> None:
        super().__init__(daemon=True)
        self._service, self.over = service, threading.Event()
        self.found: list[float] = []

    def run(self) -> None:
        while not self.over.wait(LOOK_EVERY):
            processes = [self._service.pid, *self._service.children()]
            self.found.append(sum(resident(each)["rss"] for each in processes if Path(f"/proc/{each}").exists()) / 1e6)


def measured(base: Path, film: str, data: bytes, count: int) -> dict[str, float]:
    service = ServiceUnderTest(
        base,
        folder={"originals": "delete", "kind": "films", "temporal": "steady"},
        recipe={"film": film},
        settings={"pipeline": {"arena_bytes": 256 << 20, "free_bytes_minimum": 0}},
        options={"engine": {"hard": True}},
    )
    service.fresh_interpreter = True
    service.start()
    memory, began, before = _Memory(service), time.monotonic(), _processor_seconds(service.pid)
    service.drop("film.mp4", data)
    service.wait_for("film.started")
    memory.start()
    done = service.wait_for("image.done", timeout=7200)
    seconds = time.monotonic() - began
    memory.over.set()
    memory.join()
    spent = _processor_seconds(service.pid) - before
    service.stop()
    early = memory.found[len(memory.found) // 10] if memory.found else 0.0
    found = {"frames_per_s": count / seconds, "processor_ms": 1000 * spent / count, "mb_out": done["bytes_out"] / 1e6}
    return found | {"rss_early_mb": early, "rss_most_mb": max(memory.found, default=0.0)}


def _processor_seconds(process: int) -> float:
    """With that of its children that have ended."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=500, help="of the film (default: 500)")
    parser.add_argument("--height", type=int, default=SIZE[1], help="of the film, rows (default: 720)")
    parser.add_argument(
        "--films", nargs="+", choices=list(FILM_EXTENSIONS), default=list(FILM_EXTENSIONS), help="formats"
    )


def run(chosen: argparse.Namespace) -> Report:
    count = 20 if chosen.quick else chosen.frames
    size = (chosen.height * SIZE[0] // SIZE[1] // 2 * 2, chosen.height)
    data = made_film(count, size)
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as place:
        found = {film: measured(Path(place) / film, film, data, count) for film in chosen.films}
    heads = [*dict.fromkeys(key for each in found.values() for key in each)]
    rows = [[film, *(round(each[key], 1) for key in heads)] for film, each in found.items()]
    return Report([table(f"a film of {count} frames, {size[0]}x{size[1]}", "film", *heads, rows=rows)], found)
