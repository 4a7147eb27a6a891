"""Images per second without a network: rmbgd's imaging against the common way, interleaved in one run.

Both ways start at a JPEG file (quality 90, 4:2:0, with profile and 300 dpi) and end at a published output file
(temporary name, then rename; without a sync). The network is null: both make its input, uint8 [1024, 1024, 3], and take
a ready 1024 x 1024 alpha for its answer.

rmbgd       what the service calls, hashing and limits included, in planes that exist already.
common way  Pillow throughout: decode, LANCZOS to the network's size, LANCZOS of the 8-bit alpha back, Image.composite
            on transparent black, save at the format's defaults (lossless for WebP, as rmbgd's default is).

Every kind of output of rmbgd is decoded with Pillow and with OpenCV and compared with what was to be stored.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from rmbgd.bench.samples import drawn
from rmbgd.config.load import LimitSettings, Recipe
from rmbgd.deliver.arrange import arrange
from rmbgd.imaging.compose import Pixels, compose_rgba, quantise_alpha
from rmbgd.imaging.decode import decode_into, probe, read_limited
from rmbgd.imaging.encode import encode
from rmbgd.imaging.pillow import configure_opencv, configure_pillow
from rmbgd.imaging.resize import matte_to_image
from rmbgd.naming import EXTENSIONS
from tools.tables import Report, steps, table

NETWORK = 1024  # pixels a side
SIZES = "1024,2000"  # pixels a side
LIMITS = LimitSettings()


class Way(NamedTuple):
    """One row: a recipe, worked off by us, or in the common way that ours are compared with (`against`)."""

    name: str
    recipe: Recipe
    against: str = ""
    clean: bool = False


WAYS = (
    Way("common way, PNG", Recipe()),
    Way("rmbgd, PNG", Recipe(), against="common way, PNG"),
    Way("rmbgd, PNG, edges cleaned", Recipe(), against="common way, PNG", clean=True),
    Way("common way, mask", Recipe(content="mask")),
    Way("rmbgd, mask", Recipe(content="mask"), against="common way, mask"),
    Way("common way, WebP lossless", Recipe(format="webp")),
    Way("rmbgd, WebP lossless", Recipe(format="webp"), against="common way, WebP lossless"),
)


def matte(rng: np.random.Generator) -> NDArray[np.float32]:
    """A ragged, soft-edged ellipse, float32 [1024, 1024]: some 58 % transparent, 8 % soft."""
    y, x = np.mgrid[0:NETWORK, 0:NETWORK].astype(np.float32) / NETWORK
    distance = 1.0 - np.hypot((x - 0.5) / 0.42, (y - 0.55) / 0.48)
    for cells, strength in ((8, 0.10), (24, 0.06), (80, 0.035), (200, 0.02)):
        grid = rng.standard_normal((cells, cells), np.float32)
        distance += strength * cv2.resize(grid, (NETWORK, NETWORK), interpolation=cv2.INTER_CUBIC)
    ramp = np.clip((distance - np.quantile(distance, 0.6)) / 0.05, 0.0, 1.0)
    return np.asarray(cv2.GaussianBlur(ramp, (0, 0), 1.0), np.float32)


class Workbench(NamedTuple):
    source: Path
    folder: Path
    alpha: NDArray[np.float32]


@functools.cache
def plane(_thread: int, *shape: int) -> NDArray[np.uint8]:
    """Memory that a thread uses for each of its images, as the service uses its arena."""
    return np.zeros(shape, np.uint8)


def rmbgd_way(bench: Workbench, way: Way, target: Path) -> Pixels:
    """One image as the service works it off, from path to published name. What was to be stored."""
    with bench.source.open("rb", buffering=0) as source:
        data = read_limited(source.fileno(), LIMITS)
    digest = hashlib.sha256(data).hexdigest()
    header = probe(data, LIMITS, animated="refuse", metadata=way.recipe.metadata)
    thread, size = threading.get_ident(), header.size[::-1]
    rgb = plane(thread, *size, 3)
    facts = decode_into(data, header, rgb, None, sha256=digest)
    if size != (NETWORK, NETWORK):
        channels = torch.from_numpy(rgb).permute(2, 0, 1)[None]
        torch.nn.functional.interpolate(channels, (NETWORK, NETWORK), mode="bilinear", antialias=True)
    alpha = matte_to_image(bench.alpha, *size)
    if way.recipe.content == "mask":
        mask = plane(thread, *size)
        quantise_alpha(alpha, None, mask)
        stored = arrange(None, mask, way.recipe).pixels
    else:
        rgba = plane(thread, *size, 4)
        compose_rgba(rgb, alpha, None, rgba, clean=way.clean)
        stored = arrange(rgba, None, way.recipe).pixels
    temporary, hashed = target.with_suffix(".part"), hashlib.sha256()
    with temporary.open("wb", buffering=0) as stream:

        def write(piece: bytes | memoryview) -> None:
            hashed.update(piece)
            stream.write(piece)

        encode(stored, way.recipe, facts, write)
    temporary.rename(target)
    return stored


def common_way(bench: Workbench, way: Way, target: Path) -> None:
    """One image as widely used tools work it off."""
    with Image.open(bench.source) as opened:
        photo = opened.convert("RGB")
    np.asarray(photo.resize((NETWORK, NETWORK), Image.Resampling.LANCZOS))
    small = Image.fromarray(np.asarray(bench.alpha * 255.0, np.uint8))
    mask = small.resize(photo.size, Image.Resampling.LANCZOS)
    is_mask = way.recipe.content == "mask"
    cutout = mask if is_mask else Image.composite(photo, Image.new("RGBA", photo.size, 0), mask)
    temporary = target.with_suffix(".part")
    cutout.save(temporary, way.recipe.format, lossless=True)  # which PNG does not ask for
    temporary.rename(target)


def run_batch(bench: Workbench, way: Way, pool: ThreadPoolExecutor, threads: int, count: int) -> tuple[float, float]:
    """(images a second, processor milliseconds an image) of `count` images a thread."""

    def work(thread: int) -> None:
        target = bench.folder / f"out{thread}{EXTENSIONS[way.recipe.format]}"
        for _ in range(count):
            (rmbgd_way if way.against else common_way)(bench, way, target)

    cpu, wall = time.process_time(), time.perf_counter()
    list(pool.map(work, range(threads)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return threads * count / wall, 1000.0 * cpu / (threads * count)


def verify(bench: Workbench, way: Way) -> None:
    """One output of `way`, read back by two decoders: every pixel, the profile and the resolution."""
    target = bench.folder / f"verify{EXTENSIONS[way.recipe.format]}"
    stored = np.array(rmbgd_way(bench, way, target))
    data = target.read_bytes()
    by_pillow, header = np.asarray(Image.open(target)), probe(data, LIMITS, animated="refuse", metadata=())
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert by_opencv is not None
    if stored.ndim == 3:
        by_opencv = cv2.cvtColor(by_opencv, cv2.COLOR_BGRA2RGBA)
    assert np.array_equal(by_pillow, stored), f"{way.name}: Pillow reads other pixels than were stored"
    assert np.array_equal(by_opencv, stored), f"{way.name}: OpenCV reads other pixels than were stored"
    assert header.dpi is not None, f"{way.name}: the resolution is lost"
    assert abs(header.dpi[0] - 300) < 0.1, f"{way.name}: the resolution is {header.dpi}"
    assert (header.icc_profile is not None) == (stored.ndim == 3), f"{way.name}: the profile is lost"


def measure(side: int, rounds: int, threads: int, quick: bool) -> list[dict[str, Any]]:
    rates: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-") as name, ThreadPoolExecutor(threads) as pool:
        folder = Path(name)
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options: dict[str, Any] = {"quality": 90, "subsampling": "4:2:0", "icc_profile": profile, "dpi": (300, 300)}
        Image.fromarray(drawn(1, side)[0].rgb).save(folder / "photo.jpg", **options)
        bench = Workbench(folder / "photo.jpg", folder, matte(np.random.default_rng(7)))
        for way in WAYS:
            if way.against:
                verify(bench, way)
        for number in steps(rounds + 1, f"{side} x {side}"):  # the first one warms up
            for way in WAYS:
                slow = way.recipe.format == "webp" and not way.against
                many = round(16 * (1024 / side) ** 2) * (3 if way.against else 1)
                count = 1 if number == 0 or slow or quick else many
                rate = run_batch(bench, way, pool, threads, count)
                rates[way.name] += [rate] if number else []
                sizes[way.name] = (folder / f"out0{EXTENSIONS[way.recipe.format]}").stat().st_size
    medians = {name: [statistics.median(each) for each in zip(*pairs, strict=True)] for name, pairs in rates.items()}
    rows = []
    for way in WAYS:
        (speed, cpu), size = medians[way.name], sizes[way.name]
        row = {"way": way.name, "size": side, "images_per_second": speed, "cpu_milliseconds": cpu, "output_bytes": size}
        if way.against:
            base_speed, base_cpu = medians[way.against]
            row |= {"times_faster": speed / base_speed, "times_less_cpu": base_cpu / cpu}
            row |= {"times_the_bytes": size / sizes[way.against]}
        rows.append({key: round(each, 3) if isinstance(each, float) else each for key, each in row.items()})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default=SIZES, help=f"sides, in pixels (default: {SIZES})")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")


def run(chosen: argparse.Namespace) -> Report:
    configure_pillow(LIMITS)
    configure_opencv()
    torch.set_num_threads(1)
    if chosen.quick:
        chosen.sizes, chosen.rounds = "1024", 1
    sides = map(int, chosen.sizes.split(","))
    found = [row for side in sides for row in measure(side, chosen.rounds, chosen.threads, chosen.quick)]
    title = f"null network, {chosen.threads} threads, medians of {chosen.rounds} rounds"
    keys = list(found[1])  # of a way of ours: all
    heads = [key.replace("_", " ") for key in keys]
    shown = table(title, *heads, rows=[[row.get(key) for key in keys] for row in found])
    return Report([shown], {"threads": chosen.threads, "rounds": chosen.rounds, "rows": found})
