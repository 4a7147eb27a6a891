"""What it costs to look for parts of a file that were never written, beside the pipeline around a null network.

For each format of tools/wholeness.py, of a photograph and of one on black: processor time of the look, in milliseconds
a megapixel and as a share of the processor time that an image takes from its file to its cutout. Of JPEG the whole
header is counted, since the scans are walked with it. A share is a ratio of one run, alternating.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from skimage import data as photographs

from rmbgd.config.load import EngineSettings, LimitSettings, Recipe, ServiceSettings
from rmbgd.imaging.decode import probe
from rmbgd.imaging.formats import Header
from rmbgd.imaging.unwritten import NO_TRACES, check_written
from rmbgd.service.destination import plan
from rmbgd.service.oneshot import once
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import in_process
from tools.tables import Report, table
from tools.wholeness import FORMATS, encoded

SIZE, QUICK_SIZE = (2400, 1800), (320, 240)  # pixels
TIMES = 5  # looks in a row
MOST_MS, MOST_SHARE = 1.0, 0.03  # a megapixel; of the pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")


def run(options: argparse.Namespace) -> Report:
    size, rounds = (QUICK_SIZE, 1) if options.quick else (SIZE, options.rounds)
    megapixels, rows, found = size[0] * size[1] / 1e6, [], {}
    for name, image in subjects(size).items():
        for kind in FORMATS:
            data = encoded(random.Random(1), image, kind)
            looks, ways = zip(*((look(data), whole_way(data, kind)) for _ in range(rounds)), strict=True)
            cost, share = median(looks) / megapixels * 1000, median(looks) / median(ways)
            found[f"{name}, {kind}"] = {"ms_per_megapixel": round(cost, 4), "share": round(share, 5)}
            rows.append((f"{name}, {kind}", f"{cost:.3f}", f"{share:.2%}"))
    over = [key for key, each in found.items() if each["ms_per_megapixel"] > MOST_MS or each["share"] > MOST_SHARE]
    shown = table("Looking for parts that were never written", "image", "ms a megapixel", "of the pipeline", rows=rows)
    return Report([shown], {"checks": found, "over": over}, status=int(bool(over) and not options.quick))


def subjects(size: tuple[int, int]) -> dict[str, Image.Image]:
    """A photograph with a sensor's noise, and a part of it on black."""
    grain = np.random.default_rng(0).normal(0, 4, (size[1], size[0], 1))
    pixels = np.asarray(Image.fromarray(photographs.astronaut()).resize(size)) + grain  # type: ignore[no-untyped-call]
    photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    black = Image.new("RGB", size)
    black.paste(photo.crop((size[0] // 3, 0, size[0] // 2, size[1])), (size[0] // 3, 0))
    return {"photo": photo, "on black": black}


def look(data: bytes) -> float:
    """Seconds of the processor; of other formats than JPEG without the header."""
    header = _header(data)
    began = time.process_time()
    for _ in range(TIMES):
        if header.format == "JPEG":
            header = _header(data)
        check_written(data, header, NO_TRACES, accept=True)
    return (time.process_time() - began) / TIMES


def _header(data: bytes) -> Header:
    return probe(data, LimitSettings(), animated="first_frame", metadata=())


def whole_way(data: bytes, kind: str) -> float:
    """Seconds of the processor from a file to its cutout, by way of `rmbgd once` with an engine that costs little."""
    made = in_process(lambda context: FakeBackend(context.arena.block))
    engine, service = EngineSettings(device="cpu"), ServiceSettings()
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / f"image.{kind}", Path(place) / "out"
        source.write_bytes(data)
        began = time.process_time()
        asked = plan([str(source)], str(target))
        summary = once(asked, Recipe(), engine=engine, service=service, emit=_nothing, build_devices=made)
        spent = time.process_time() - began
    if summary.done != 1:
        raise RuntimeError(f"{kind}: {summary.problems}")
    return spent


def _nothing(_event: str, /, **_keys: object) -> None: ...
