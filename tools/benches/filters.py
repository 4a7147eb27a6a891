"""Which filter brings images to a network's size best: every filter, on photographs and composites with truth.

FOLDER holds photos/ and gt/, with equal stems; a mask of 0, 128 and 255 alone means "ignore" by 128. Composites are
made of those photographs whose mask is soft, cut out and laid over other photographs (parts without a subject) and over
drawn grounds; the seed is fixed. Alpha is float32, at the image's size. Each filter is compared, image by image, with
the one that the registry names now, or --against:

IoU, MAE  means; a subject is alpha above 0.5
gain      mean difference of IoU, and of MAE (less is better), with a 90 % interval by paired bootstrap over both sets
better    on how many images IoU is higher, and lower, by more than 0.002
without   the gain on the photographs without the one image that changes most
wins      IoU is no lower on either set, MAE is better, and the intervals of both gains exclude 0
empty     of the grounds by themselves, how many have a subject (a pixel in a hundred above 0.5)

`maximum`: levels divided by the image's largest; `stretched`: alpha stretched to 0..1. rembg does both, with Lanczos,
and enlarges the matte in bytes, by Lanczos, too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.imaging.edges import clean_edges
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.resampling import Filter
from tools.tables import Report, steps, table

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
SHARED = os.environ.get("RMBGD_SHARED", "../shared")
RESAMPLES = 10_000
GROUND = 200  # pixels; the shortest side of a part of a photograph that serves as ground
SIDES = (400, 2400)  # pixels; of a composite
EACH = 6  # composites of each cutout
KINDS = 5  # of drawn grounds
EMPTY = 20  # photographed grounds that are looked at by themselves


@dataclass(frozen=True)
class Case:
    """truth: float32 [H, W], 0..1; counted: bool [H, W], where it is known."""

    name: str
    rgb: Bytes
    truth: Floats
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class Way:
    """How an image becomes alpha, but for the network; `maximum` and `stretched` as above, `bytes_up` as rembg."""

    resize: Callable[[Bytes], Bytes]
    maximum: bool = False
    stretched: bool = False
    bytes_up: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="u2netp", help="name, folder or file (default: u2netp)")
    parser.add_argument(
        "--folder", type=Path, default=Path(SHARED) / "eval", help="photos/ and gt/ (default: %(default)s)"
    )
    parser.add_argument("--against", metavar="FILTER", help="what gains are counted from (default: the registry's)")
    parser.add_argument("--seed", type=int, default=0, help="of composites and resamples (default: 0)")


def run(options: argparse.Namespace) -> Report:
    import torch

    from rmbgd.models.load import load_model

    loaded = load_model(options.model, device="cpu", dtype=torch.float32)
    now, size = options.against or str(loaded.filter), loaded.input_size
    alpha_of = network(loaded.module)
    photos = list(photographs(options.folder))
    random = np.random.default_rng(options.seed)
    grounds = list(parts_without_subject(photos, random))
    each, kinds = EACH, KINDS
    if options.quick:
        photos, grounds, each, kinds = [case for case in photos if soft(case)][:1], grounds[:1], 1, 0
    made = list(composites(photos, grounds, random, each))
    sets = {"photographs": photos} | ({"composites": made} if made else {})
    empty = [*grounds[:EMPTY], *(drawn(kind, 480, 640, random) for kind in range(kinds))]
    ways = ways_of(size)
    scores: dict[str, dict[str, Floats]] = {way: {} for way in ways}
    for kind, cases in sets.items():
        rows: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for index in steps(len(cases), kind):
            known: dict[bytes, Floats] = {}
            for way, how in ways.items():
                rows[way].append(judged(cases[index], matte(how, cases[index].rgb, alpha_of, known)))
        for way in ways:
            scores[way][kind] = np.array(rows[way], np.float32)
    subjects = dict.fromkeys(ways, 0)
    for index in steps(len(empty), "empty scenes"):
        known = {}
        for way, how in ways.items():
            subjects[way] += int((matte(how, empty[index], alpha_of, known) > 0.5).mean() > 0.01)
    return report(
        options.model, now, scores, subjects, len(empty), {kind: [c.name for c in sets[kind]] for kind in sets}
    )


# --- images


def photographs(folder: Path) -> Iterator[Case]:
    for mask in sorted((folder / "gt").iterdir()):
        photo = next((folder / "photos").glob(f"{mask.stem}.*"))
        with Image.open(photo) as image, Image.open(mask) as truth:
            rgb, levels = np.asarray(image.convert("RGB")), np.asarray(truth.convert("L"))
        counted = levels != 128 if set(np.unique(levels)) <= {0, 128, 255} else np.ones(levels.shape, bool)
        yield Case(mask.stem, rgb, np.asarray(levels / 255, np.float32), counted)


def soft(case: Case) -> bool:
    return bool(((case.truth > 0.1) & (case.truth < 0.9) & (case.truth != np.float32(128 / 255))).mean() > 5e-4)


def parts_without_subject(cases: list[Case], random: np.random.Generator) -> Iterator[Bytes]:
    """The largest of some random parts of each photograph in which the mask is empty."""
    for case in cases:
        height, width = case.truth.shape
        best: Bytes | None = None
        for _ in range(60):
            h, w = (int(random.integers(GROUND, max(side, GROUND) + 1)) for side in (height, width))
            top, left = (int(random.integers(0, max(1, side - part + 1))) for side, part in ((height, h), (width, w)))
            here = np.s_[top : top + h, left : left + w]
            part = case.rgb[here]
            if min(part.shape[:2]) >= GROUND and case.counted[here].all() and case.truth[here].max() < 0.01:
                best = part if best is None or part.size > best.size else best
        if best is not None:
            yield best


def drawn(kind: int, height: int, width: int, random: np.random.Generator) -> Bytes:
    """A ground without a subject: plain, a gradient, blotches, stripes, or a sensor's noise on grey."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    first, second = random.integers(0, 256, (2, 3))
    if kind == 2:
        share = cv2.resize(random.random((6, 6)), (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind == 3:
        share = np.sin(2 * np.pi * (x + random.uniform(-1, 1) * y) * random.integers(5, 40)) / 2 + 0.5
    else:
        share = (x + y) / 2 * (kind == 1)
    ground = first + (second - first) * share[..., None] * (0.5 if kind == 3 else 1.0)
    grain = random.normal(0, 12.0 if kind == 4 else 2.0, ground.shape)
    return np.array((ground + grain).clip(0, 255), np.uint8)


def composites(cases: list[Case], grounds: list[Bytes], random: np.random.Generator, each: int) -> Iterator[Case]:
    """Each cutout, its colours cleaned, somewhere on photographed grounds and, one in three, on drawn ones."""
    for case in (case for case in cases if soft(case)):
        rgba = np.dstack([case.rgb, case.rgb[:, :, :1]])
        clean_edges(case.rgb, case.truth, rgba)
        colours = rgba[:, :, :3]
        rows, columns = (np.flatnonzero(case.truth.max(axis=axis) > 0.01) for axis in (1, 0))
        cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for number in range(each):
            long = int(np.exp(random.uniform(*np.log(SIDES))))  # many small ones, few large
            height, width = random.permutation([long, int(long * random.uniform(0.6, 1))])
            if number % 3 and grounds:
                chosen = grounds[random.integers(len(grounds))]
                ground = cv2.resize(chosen, (width, height), interpolation=cv2.INTER_CUBIC)
            else:
                ground = drawn(int(random.integers(KINDS)), height, width, random)
            inside = case.truth[cut].shape
            scale = random.uniform(0.4, 0.95) * min(height / inside[0], width / inside[1])
            size = [max(1, round(side * scale)) for side in inside[::-1]]
            fore, part = (cv2.resize(of[cut], size, interpolation=cv2.INTER_AREA) for of in (colours, case.truth))
            truth = np.zeros((height, width), np.float32)
            top, left = (int(random.integers(0, side + 1)) for side in np.subtract(truth.shape, part.shape))
            here = np.s_[top : top + part.shape[0], left : left + part.shape[1]]
            truth[here] = part
            rgb = np.array(ground, np.uint8)
            rgb[here] = np.rint(part[..., None] * fore + (1 - part[..., None]) * ground[here])
            yield Case(f"{case.name} {number}", rgb, truth, np.ones(truth.shape, bool))


# --- ways


def ways_of(size: tuple[int, int]) -> dict[str, Way]:
    ways = {str(each): Way(partial(image_to_network, size=size, filter=each)) for each in Filter}
    for name in ("hamming", "bicubic", "lanczos"):
        ways[name] = Way(partial(pillows, size=size, name=name))
    ways["linear"] = Way(lambda rgb: np.asarray(cv2.resize(rgb, size[::-1]), np.uint8))  # not antialiased
    for name in ("box", "lanczos"):
        ways[f"{name} maximum"] = Way(ways[name].resize, maximum=True)
        ways[f"{name} stretched"] = Way(ways[name].resize, stretched=True)
    ways["rembg"] = Way(ways["lanczos"].resize, maximum=True, stretched=True, bytes_up=True)
    return ways


def pillows(rgb: Bytes, size: tuple[int, int], name: str) -> Bytes:
    return np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling[name.upper()]), np.uint8)


def network(module: object) -> Callable[[Floats], Floats]:
    """Levels 0..1, float32 [h, w, 3], to alpha float32 [h, w]."""
    import torch

    from rmbgd.backends.planes import DEVIATION, MEAN

    def alpha(levels: Floats) -> Floats:
        inputs = torch.from_numpy(((levels - np.array(MEAN)) / DEVIATION).transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            return np.asarray(torch.sigmoid(module(inputs))[0, 0].numpy(), np.float32)  # type: ignore[operator]

    return alpha


def matte(way: Way, rgb: Bytes, alpha_of: Callable[[Floats], Floats], known: dict[bytes, Floats]) -> Floats:
    """Alpha of the image, at its size. `known`: of the inputs that the network has seen."""
    small = way.resize(rgb)
    top = max(1, int(small.max())) if way.maximum else 255
    levels = np.minimum(small.astype(np.float32) / top, 1)
    key = levels.tobytes()
    if key not in known:
        known[key] = alpha_of(levels)
    alpha = known[key]
    if way.stretched:
        low, high = float(alpha.min()), float(alpha.max())
        alpha = (alpha - low) / max(high - low, 1e-6)
    if way.bytes_up:
        levels_up = Image.fromarray((255 * alpha).astype(np.uint8)).resize(rgb.shape[1::-1], Image.Resampling.LANCZOS)
        return np.asarray(levels_up, np.float32) / np.float32(255)
    return matte_to_image(alpha, *rgb.shape[:2])


# --- figures


def judged(case: Case, alpha: Floats) -> tuple[float, float]:
    """(IoU, MAE)."""
    inside, subject = (alpha > 0.5) & case.counted, (case.truth > 0.5) & case.counted
    overlap = (inside & subject).sum() / max(1, (inside | subject).sum())
    return float(overlap), float(np.abs(alpha - case.truth)[case.counted].mean())


def interval(gains: Floats, seed: int = 0) -> tuple[float, float, float]:
    """(mean, 5 %, 95 %) of paired differences, by bootstrap."""
    chosen = np.random.default_rng(seed).integers(0, len(gains), (RESAMPLES, len(gains)))
    low, high = np.quantile(gains[chosen].mean(axis=1), (0.05, 0.95))
    return float(gains.mean()), float(low), float(high)


def report(
    model: str,
    now: str,
    scores: Mapping[str, Mapping[str, Floats]],
    subjects: Mapping[str, int],
    empty: int,
    names: Mapping[str, list[str]],
) -> Report:
    rows, found = [], {}
    for way, each in scores.items():
        means = {kind: tuple(map(float, score.mean(axis=0))) for kind, score in each.items()}
        before = {kind: score.mean(axis=0) for kind, score in scores[now].items()}
        gains = {kind: (each[kind] - scores[now][kind]) * (1, -1) for kind in each}
        union = np.concatenate(list(gains.values()))
        iou, mae = interval(union[:, 0]), interval(union[:, 1])
        wins = all(means[kind][0] >= before[kind][0] for kind in each) and min(iou[1], mae[1]) > 0
        first = gains["photographs"][:, 0]
        most = int(np.abs(first).argmax())
        without = float(np.delete(first, most).mean())
        better = [int((sign * union[:, 0] > 0.002).sum()) for sign in (1, -1)]
        found[way] = {
            "means": means, "iou_gain": iou, "mae_gain": mae, "better": better, "without": without,
            "without_image": names["photographs"][most], "wins": wins, "empty_with_subject": subjects[way],
        }  # fmt: skip
        cells = [f"{value:.4f}" for kind in each for value in means[kind]]
        spans = [f"{100 * m:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]" for m, low, high in (iou, mae)]
        ending = (f"{100 * without:+.2f}", "yes" if wins else "", f"{subjects[way]}/{empty}")
        rows.append((way, *cells, *spans, f"{better[0]}:{better[1]}", *ending))
    heads = [head for kind in names for head in (f"IoU {kind[:6]}.", "MAE")]
    heads += ["IoU gain, %", "MAE gain, %", "better", "without", "wins", "empty"]
    sizes = " and ".join(f"{len(each)} {kind}" for kind, each in names.items())
    title = f"{model}, {sizes}; gains over {now}"
    return Report([table(title, "filter", *heads, rows=rows)], {"model": model, "now": now, "ways": found})
