"""720p frames through the service around a network that costs nothing: JPEG in, PNG out, ledger and fsync, in order.

The real process with a null engine whose alpha has hard edges. One row for each way to treat the frames, in one run, so
that their ratios hold on a shared machine; the processor time is the service's whole process's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rmbgd.bench.engine import resident
from tests.support.service import ServiceUnderTest
from tools.tables import Report, table

SIZE = (1280, 720)
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "images": ({}, {"edge_colours": "keep"}),
    "in order": ({"kind": "frames"}, {"edge_colours": "keep"}),
    "in order, steady": ({"kind": "frames", "temporal": "steady"}, {"edge_colours": "keep"}),
    "in order, steady, clean edges": ({"kind": "frames", "temporal": "steady"}, {"edge_colours": "clean"}),
}
STAGES = ("decode", "steady", "edges", "encode", "sync", "total")


def frames(count: int) -> list[bytes]:
    """A subject that walks across a still, textured room: green is low in the room and high in the subject."""
    width, height = SIZE
    rng = np.random.default_rng(3)
    room = cv2.resize(rng.integers(0, 90, (90, 160, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
    cloth = cv2.resize(rng.integers(0, 60, (36, 64, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
    cloth = cv2.add(cloth, np.array([60.0, 190.0, 90.0, 0.0]))
    made = []
    for number in range(count):
        centre = (int(width * (0.3 + 0.4 * number / count)), height * 2 // 3)
        shape = np.zeros((height, width), np.uint8)
        cv2.ellipse(shape, centre, (150, 260), 8 * np.sin(number / 5), 0, 360, 255, -1)
        cv2.circle(shape, (centre[0], centre[1] - 300), 90, 255, -1)
        soft = (cv2.GaussianBlur(shape, (0, 0), 1.5) / np.float32(255))[:, :, None]
        image = soft * cloth + (1 - soft) * room + rng.normal(0, 2, room.shape)
        made.append(bytes(cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]))
    return made


def numbered(jpeg: bytes, number: int) -> bytes:
    """With a comment, so that no two files are equal."""
    return jpeg[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + jpeg[2:]


def measured(
    base: Path, count: int, threads: int, folder: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, float]:
    service = ServiceUnderTest(
        base,
        folder={"originals": "delete", **folder},
        recipe=dict(recipe),
        settings={"pipeline": {"arena_bytes": 256 << 20, "free_bytes_minimum": 0, "finish_threads": threads}},
        options={"engine": {"hard": True}},
    )
    service.fresh_interpreter = True
    data = frames(min(count, 48))
    for number in range(count):
        # There and back again, so that each follows from the one before.
        place = number % (2 * len(data) - 2 or 1)
        image = data[place if place < len(data) else 2 * len(data) - 2 - place]
        (service.input / f"frame_{number:05}.jpg").write_bytes(numbered(image, number))
    few = max(1, count // 10)
    service.start()
    service.wait_for_endings(few, timeout=600)
    early = processor_seconds(service.pid), resident(service.pid)["rss"] / 1e6
    service.wait_for_endings(count, timeout=1800)
    late = processor_seconds(service.pid), resident(service.pid)["rss"] / 1e6
    service.stop()
    done = service.named("image.done")
    seconds = done[-1]["monotonic"] - done[few - 1]["monotonic"]
    found = {"frames_per_s": (count - few) / seconds, "processor_ms": 1000 * (late[0] - early[0]) / (count - few)}
    for stage in STAGES:
        found[f"{stage}_ms"] = float(np.mean([each["milliseconds"].get(stage, 0.0) for each in done[few:]]))
    if folder:
        found["out_of_order"] = sum(b["frame"] < a["frame"] for a, b in itertools.pairwise(done))
    return found | {"rss_early_mb": early[1], "rss_late_mb": late[1]}


def processor_seconds(process: int) -> float:
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--finish-threads", type=int, default=4, help="pipeline.finish_threads (default: 4)")
    parser.add_argument("--frames", type=int, default=1000, help="for each way (default: 1,000)")


def run(chosen: argparse.Namespace) -> Report:
    count = 20 if chosen.quick else chosen.frames
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as place:
        found = {
            way: measured(Path(place) / str(number), count, chosen.finish_threads, *given)
            for number, (way, given) in enumerate(WAYS.items())
        }
    heads = [*dict.fromkeys(key for each in found.values() for key in each)]
    rows = [[way, *(round(each[key], 1) if key in each else None for key in heads)] for way, each in found.items()]
    return Report([table("720p frames through the service", "way", *heads, rows=rows)], found)
