"""Half files and whole ones of every kind: none that lacks a part may be published, none that is whole be refused.

The real service with an engine that costs nothing. Half files lack 40 to 80 % of their bytes: zeros that were written,
holes, space that was reserved, files that are filled while the service looks on. Whole ones come from every encoder at
hand, with black frames, bands, night skies, screenshots and patterns, plainly or as sparse copies. Zeros in pixels that
are stored as they are, at no page, are no evidence: how many are published with a note is counted apart.

    python -m tools.wholeness [--files 2000] [--each 100] [--seed 1] [--out FILE]

Half of the files are halves. Every second leg lies on the file system of /var/tmp, the others in memory.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from skimage import data as photographs

from rmbgd.mounts import file_system
from tests.support.service import ServiceUnderTest
from tools.campaign import main

PAGE = 4096
STORED = ("bmp", "tif")
FORMATS: dict[str, tuple[str, Callable[[random.Random], dict[str, Any]]]] = {
    "jpg": ("RGB", lambda dice: {"quality": dice.choice([50, 75, 92, 100]), "optimize": dice.random() < 0.5}),
    "progressive.jpg": ("RGB", lambda dice: {"quality": dice.choice([50, 75, 92, 100]), "progressive": True}),
    "restarts.jpg": ("RGB", lambda dice: {"quality": 90, "restart_marker_blocks": dice.choice([1, 7, 50])}),
    "grey.jpg": ("L", lambda dice: {"quality": dice.choice([75, 95]), "optimize": dice.random() < 0.5}),
    "cmyk.jpg": ("CMYK", lambda dice: {"quality": dice.choice([75, 95])}),
    "png": ("RGB", lambda dice: {"compress_level": dice.choice([0, 1, 6])}),
    "webp": ("RGB", lambda dice: {"quality": dice.choice([60, 85, 100]), "method": dice.choice([0, 2, 4])}),
    "lossless.webp": ("RGB", lambda dice: {"lossless": True, "quality": dice.choice([0, 50]), "method": 1}),
    "gif": ("P", lambda _: {}),
    "bmp": ("RGB", lambda _: {}),
    "tif": ("RGB", lambda _: {}),
    "lzw.tif": ("RGB", lambda _: {"compression": "tiff_lzw"}),
    "deflate.tif": ("RGB", lambda _: {"compression": "tiff_adobe_deflate"}),
    "packbits.tif": ("RGB", lambda _: {"compression": "packbits"}),
    "avif": ("RGB", lambda dice: {"quality": dice.choice([60, 90]), "speed": 10}),
}
GAPS = ("zeros", "hole", "reserved", "refilled", "anywhere")
COPIES = ("plain", "pieces", "cp --sparse=always", "tar -S", "rsync -S")
PATIENCE = 600.0  # s for the outcomes of a leg


def scene(dice: random.Random, *, photo: bool = False) -> Image.Image:
    """A photograph, or what may be mistaken for an image with a part that is missing."""
    image = Image.fromarray(getattr(photographs, dice.choice(["astronaut", "coffee", "chelsea"]))())
    width = dice.randint(700, 1500)
    image = image.crop((dice.randint(0, 40), dice.randint(0, 40), *image.size))
    image = image.resize((width, width * image.height // image.width))
    kind = "photo" if photo else dice.choice(["photo", "black", "white", "bands", "night", "screenshot", "pattern"])
    height, even = image.height, dice.choice(["black", "white", "#1e1e1e"])
    match kind:
        case "black" | "white":
            image = Image.new("RGB", image.size, kind)
        case "bands":
            rows = dice.randint(height // 10, height // 3)
            image.paste(even, (0, 0, width, rows))
            image.paste(even, (0, height - rows, width, height))
        case "night":
            shares = np.asarray(image, np.float32) / 255.0
            image = Image.fromarray((200.0 * shares**4 - 40.0).clip(0, 255).astype(np.uint8))
        case "screenshot":
            screen = Image.new("RGB", image.size, even)
            screen.paste(image.resize((width // 3, height // 3)), (dice.randint(0, width // 2), height // 4))
            for y in range(10, height - 20, dice.choice([14, 30, 60])):
                ImageDraw.Draw(screen).text((dice.randint(5, 40), y), f"The quick brown fox, line {y}", fill="grey")
            image = screen
        case "pattern":
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[:: dice.choice([2, 8])], pixels[:, ::16] = 255, 128
            image = Image.fromarray(pixels)
    image.putpixel((0, 0), tuple(dice.randrange(256) for _ in range(3)))  # no two files are equal
    return image


def encoded(dice: random.Random, image: Image.Image, kind: str) -> bytes:
    mode, options = FORMATS[kind]
    target, form = io.BytesIO(), Image.registered_extensions()[f".{kind.rpartition('.')[2]}"]
    image.convert(mode).save(target, form, **options(dice))
    return target.getvalue()


def put_half(service: ServiceUnderTest, dice: random.Random, name: str, data: bytes, gap: str) -> None:
    """A file without 40 to 80 % of its bytes, all at once or, for "refilled", piece by piece in the drop folder."""
    missing = dice.uniform(0.4, 0.8)
    at = dice.uniform(0.05, 0.95 - missing)
    first, behind = int(len(data) * at), int(len(data) * (at + missing))
    if gap != "anywhere":
        first, behind = max(PAGE, first // PAGE * PAGE), behind // PAGE * PAGE
    place = service.input if gap == "refilled" else service.desk
    with open(place / name, "wb", buffering=0) as file:
        if gap == "reserved":
            os.posix_fallocate(file.fileno(), 0, len(data))
        elif gap != "hole":
            file.write(bytes(len(data)))
        if gap == "refilled":
            service.turn()
        for start, end in ((0, first), (behind, len(data))):
            os.pwrite(file.fileno(), data[start:end], start)
    if place is service.desk:
        os.rename(place / name, service.input / name)


def put_whole(service: ServiceUnderTest, name: str, data: bytes, how: str) -> None:
    source, target = service.desk / name, service.input / name
    source.write_bytes(data)
    match how:
        case "plain":
            os.rename(source, target)
        case "pieces":
            with open(target, "wb", buffering=0) as file:
                step = len(data) // 5 + 1
                file.writelines(data[start : start + step] for start in range(0, len(data), step))
        case "tar -S":
            packed = subprocess.run(["tar", "-S", "-C", service.desk, "-c", name], capture_output=True, check=True)
            subprocess.run(["tar", "-S", "-C", service.input, "-x"], input=packed.stdout, check=True)
        case _:
            subprocess.run([*how.split(), source, target], check=True)


def campaign(base: Path, files: int, seed: int) -> dict[str, Any]:
    """Below the folder `base`, or one in /var/tmp. Raises AssertionError for a half file that is published."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(dir="/var/tmp" if seed % 2 else None) as other:  # noqa: S108 - of another kind
        place = Path(other) / "leg" if seed % 2 else base
        settings: dict[str, dict[str, Any]] = {"intake": {"incomplete_timeout": 5.0}, "limits": {"pixels": 4_000_000}}
        with ServiceUnderTest(place, settings=settings) as service:
            return _leg(service, dice, files, file_system(str(place)))


def _leg(service: ServiceUnderTest, dice: random.Random, files: int, kind_of_disk: str) -> dict[str, Any]:
    copies = [how for how in COPIES if shutil.which(how.partition(" ")[0]) or how in ("plain", "pieces")]
    expected: dict[str, tuple[str, str]] = {}  # name -> (what it is, how it came)
    for number in range(files):
        kind = dice.choice(list(FORMATS))
        if number % 2:
            how, name = dice.choice(copies), f"{number}-whole.{kind}"
            put_whole(service, name, encoded(dice, scene(dice), kind), how)
            expected[name] = ("whole", how)
            continue
        how, data, name = dice.choice(GAPS), encoded(dice, scene(dice, photo=True), kind), f"{number}-half.{kind}"
        if len(data) < 8 * PAGE:  # a few even areas: nothing to take away
            continue
        put_half(service, dice, name, data, how)
        expected[name] = ("apart" if how == "anywhere" and kind in STORED else "half", how)
    service.wait_for_endings(len(expected), PATIENCE)
    done = {event["path"]: event for event in service.named("image.done")}
    halves = [name for name, (what, _) in expected.items() if what == "half" and name in done]
    assert not halves, f"half files were published: {halves}"
    failed = {event["path"]: f"{event['reason']}: {event['detail']}" for event in service.named("image.failed")}
    wrong = {name: failed[name] for name, (what, _) in expected.items() if what == "whole" and name in failed}
    for name, why in wrong.items():
        print(f"refused, though whole ({expected[name][1]}, {kind_of_disk}): {name}: {why}", file=sys.stderr)
    counts = Counter(what for what, _ in expected.values())
    sparse = Counter(how for what, how in expected.values() if what == "whole")
    return {
        "halves": counts["half"],
        "halves_published": len(halves),
        "halves_of": dict(Counter(how for what, how in expected.values() if what == "half")),
        "wholes": counts["whole"],
        "wholes_refused": len(wrong),
        "wholes_on": {kind_of_disk: dict(sparse)},
        "refused_on": {kind_of_disk: dict(Counter(expected[name][1] for name in wrong))},
        "stored_zeros": counts["apart"],
        "stored_zeros_published": sum(what == "apart" and name in done for name, (what, _) in expected.items()),
        "unnoted": sum(
            what == "apart" and name in done and "zero_run" not in done[name].get("notes", [])
            for name, (what, _) in expected.items()
        ),
    }


if __name__ == "__main__":
    sys.exit(main("wholeness", campaign, about=__doc__, unit="files", count=2_000, each=100))
