"""Files that broke decoders, and the largest that limits allow: right pixels or the right reason, in bounded memory."""

from __future__ import annotations

import csv
import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rmbgd.imaging.png import write_png
from tests.imaging.builders import exif, ihdr, photo, saved
from tests.support.shared_data import shared

HERE = Path(__file__).parent
GIGABYTE = 1 << 30

Outcomes = tuple[dict[str, dict[str, object]], dict[str, object]]  # what the worker says of each file, and of itself

# What Pillow alone reads differently, and why we are right.
OTHERWISE = {
    "made_png_16bit_gray.png": "Pillow clips 16-bit grey to white",
    "imagepng_issue_430.png": "Pillow stumbles over a damaged profile that pixels do not need",
    "pillow_unknown_compression_method.png": "likewise",
}


def outcomes_of(folder: Path) -> Outcomes:
    command = [sys.executable, str(HERE / "hostile_worker.py"), str(folder)]
    worker = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, cwd=HERE.parents[1])
    assert worker.returncode == 0, worker.stderr[-2000:]
    lines = [json.loads(line) for line in worker.stdout.splitlines()]
    return {str(line["name"]): line for line in lines[:-1]}, lines[-1]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return outcomes_of(shared("hostile") / "files")


def digest_by_pillow(path: Path) -> str:
    with Image.open(path) as opened:
        mode = "RGBA" if opened.has_transparency_data else "RGB"
        return hashlib.sha256(ImageOps.exif_transpose(opened).convert(mode).tobytes()).hexdigest()


@pytest.mark.integration
def test_every_hostile_file_ends_as_it_should(outcomes: Outcomes) -> None:
    with (HERE / "hostile_expected.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    expected = {row["file"]: (row["outcome"], row["waits"] == "yes") for row in rows}
    seen = {name: (line["outcome"], line.get("waits", False)) for name, line in outcomes[0].items()}
    assert {name: seen[name] for name in seen if seen[name] != expected.get(name)} == {}
    assert seen.keys() == expected.keys()


@pytest.mark.integration
def test_hostile_images_have_the_pixels_that_pillow_sees(outcomes: Outcomes) -> None:
    images = {name: line["pixels"] for name, line in outcomes[0].items() if "pixels" in line}
    compared = images.keys() - OTHERWISE.keys()
    assert len(images) > 90
    assert [] == [name for name in compared if digest_by_pillow(shared("hostile") / "files" / name) != images[name]]


@pytest.mark.integration
def test_no_hostile_file_starts_a_process_or_takes_much_memory(outcomes: Outcomes) -> None:
    """Bombs stay packed: less than a tenth of what one of them unpacks to. EPS never reaches Ghostscript."""
    facts = outcomes[1]
    assert (facts["started"], facts["children_rss"]) == ([], 0)
    assert int(str(facts["peak_rss_bytes"])) < GIGABYTE // 4


@pytest.fixture(scope="module")
def largest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images of just under 50 megapixels, 8000 x 6250, in the formats whose decoders take the most memory."""
    folder = tmp_path_factory.mktemp("largest")
    tile = np.dstack([photo(250, 250), np.arange(250 * 250, dtype=np.uint32).reshape(250, 250).astype(np.uint8)])
    rgba = np.tile(tile, (25, 32, 1))
    with (folder / "rgba.png").open("wb") as stream:
        write_png(rgba, stream.write, level=0)
    rgb = Image.fromarray(np.ascontiguousarray(rgba[:, :, :3]))
    rgb.save(folder / "progressive.jpg", quality=60, progressive=True)
    rgb.save(folder / "turned.jpg", quality=60, exif=b"Exif\0\0" + exif(orientation=6))
    rgb.save(folder / "lzw.tif", compression="tiff_lzw")
    flat = Image.new("RGBA", (8000, 6250), (10, 200, 30, 128))
    flat.save(folder / "flat.webp", lossless=True, quality=0, method=0)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.integration
def test_the_largest_images_allowed_are_decoded_in_less_than_a_gigabyte(largest: Path) -> None:
    images, facts = outcomes_of(largest)
    sizes = {name: line["outcome"] for name, line in images.items()}
    assert sizes.pop("turned.jpg") == "6250x8000"
    assert set(sizes.values()) == {"8000x6250"}
    assert int(str(facts["peak_rss_bytes"])) < GIGABYTE


@pytest.mark.integration
def test_bombs_made_of_a_header_are_refused_unread(tmp_path: Path) -> None:
    black = np.zeros((1, 8, 3), np.uint8)
    small, bitmap = saved(black, "PNG"), saved(black, "BMP")
    for name, width, height in (("a", 30_000, 30_000), ("b", 2**31 - 1, 2**31 - 1), ("c", 1, 50_000_000)):
        (tmp_path / f"{name}.png").write_bytes(small[:8] + ihdr(width, height, 8, 2) + small[33:])
        (tmp_path / f"{name}.bmp").write_bytes(bitmap[:18] + struct.pack("<II", width, height) + bitmap[26:])
    images, facts = outcomes_of(tmp_path)
    assert {line["outcome"] for line in images.values()} == {"too_large"}
    assert int(str(facts["peak_rss_bytes"])) < GIGABYTE // 4
