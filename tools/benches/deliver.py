"""What the files of an image cost: a set beside its files one by one, the check, subjects, score and preview.

Milliseconds of processor time of one core, medians; frames are made of a drawn subject with soft edges. A set is what
the finish stage does of one output plane: arrange, encode, read again, check; without the disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.config.presets import built_in, resolve
from rmbgd.config.settings import Look
from rmbgd.deliver import confidence, subjects
from rmbgd.deliver.arrange import arrange
from rmbgd.deliver.check import check
from rmbgd.deliver.make import Rules, make
from rmbgd.deliver.preview import preview
from rmbgd.imaging.formats import SourceFacts
from tools.tables import Report, table

Bytes = NDArray[np.uint8]

SET = {
    "webp, transparent": Look(format="webp"),
    "jpeg, amazon-main": resolve(Look(preset="amazon-main"), built_in()),
    "tiff, matte": Look(format="tiff", content="mask"),
}
SIDES = {"1,024 x 1,024": (1024, 1024), "12 megapixels": (3000, 4000)}
REASONS = ["amazon-main: border: cut by the left of the photograph; required: touches no border"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")


def run(options: argparse.Namespace) -> Report:
    cv2.setNumThreads(1)
    rounds = 1 if options.quick else options.rounds
    shapes = {"96 x 128": (96, 128)} if options.quick else SIDES
    found: dict[str, dict[str, float]] = {name: dict(_figures(*shape, rounds)) for name, shape in shapes.items()}
    rows = [(row, *(f"{found[name][row]:.1f}" for name in shapes)) for row in next(iter(found.values()))]
    return Report([table("Processor time, ms", "", *shapes, rows=rows)], found)


def _figures(height: int, width: int, rounds: int) -> Iterator[tuple[str, float]]:
    rgba = scene(height, width, 1)
    alpha, rgb = np.ascontiguousarray(rgba[:, :, 3]), np.ascontiguousarray(rgba[:, :, :3])
    facts = SourceFacts("JPEG", "RGB", (width, height), 1, None, None, {}, "")
    alone = [_median(lambda look=look: _file(rgba, look, facts), rounds) for look in SET.values()]  # type: ignore[misc]
    yield from zip(SET, alone, strict=True)
    yield "the three by themselves", sum(alone)
    yield "the three as a set", _median(lambda: [_file(rgba, look, facts) for look in SET.values()], rounds)
    data = _file(rgba, SET["jpeg, amazon-main"], facts)
    yield "check of the finished jpeg", _median(lambda: check(data, built_in()["amazon-main"]), rounds)
    for count in (1, 40):
        many = np.ascontiguousarray(scene(height, width, count)[:, :, 3])
        yield f"subjects, {count}", _median(lambda many=many: subjects.find_subjects(many, minimum=0.005), rounds)  # type: ignore[misc]
    features = confidence.features(alpha, rgb)
    yield "score", _median(lambda: confidence.score(confidence.features(alpha, rgb), "u2netp"), rounds)
    yield "reasons in words", _median(lambda: confidence.reasons(features), rounds)
    yield "preview for people", _median(lambda: preview(rgb, alpha, REASONS), rounds)


def scene(height: int, width: int, count: int) -> Bytes:
    """RGBA with `count` discs of soft edges on noise."""
    rows = max(1, round((count * height / width) ** 0.5))
    columns = -(-count // rows)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cell = height / rows, width / columns
    radius = 0.4 * min(cell)
    distance = np.hypot(y % cell[0] - cell[0] / 2, x % cell[1] - cell[1] / 2)
    alpha = np.clip((radius - distance) / 4 + 0.5, 0, 1)
    noise = np.random.default_rng(1).integers(0, 60, (height, width, 3), np.uint8)
    colours = cv2.GaussianBlur(noise, (0, 0), 2) + np.array([150, 60, 40], np.uint8)
    return np.dstack([colours, np.rint(255 * alpha).astype(np.uint8)])


def _file(rgba: Bytes, look: Look, facts: SourceFacts) -> bytes:
    buffer = bytearray()
    frame = arrange(rgba, None, look, last=False)
    rules = Rules(built_in()[look.preset], lambda: bytes(buffer), ()) if look.preset else None
    make(frame, look, facts, buffer.extend, rules)
    return bytes(buffer)


def _median(action: Callable[[], object], rounds: int) -> float:
    action()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        action()
        spent.append(1000 * (time.process_time() - began))
    return float(np.median(spent))
