"""What refining alpha's edges gains (imaging/refine.py): errors beside those of the enlarged matte, and its cost.

FOLDER holds photos/ and gt/, with equal stems. In photographs whose truth is soft, and in composites of them (see
`bench filters`; the seed is fixed), errors are those of Rhemann et al., "A perceptually motivated online benchmark for
image matting", 2009, over the pixels near a soft one of the truth (a hundredth of the longer side): SAD, MSE, and the
gradient error at sigma 1.4; each in per cent of the enlarged matte's. Composites on which the network misses the
subject (IoU below 0.7) are left out. IoU is of all photographs that are large enough to be refined.

Numbers of imaging/refine.py were chosen on CHOSEN_ON and composites of these; the other rows were held out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rmbgd.imaging.refine import refine_edges, refines
from rmbgd.imaging.resize import image_to_network, matte_to_image
from tools.benches import filters
from tools.benches.filters import SHARED, Bytes, Case, Floats
from tools.tables import Report, steps, table, values

CHOSEN_ON = ("alphamatting", "product_backpack", "product_grey_sloth_plushie")  # every other foreground by name
SIGMA = 1.4  # pixels
EACH = 4  # composites of each cutout
FOUND = 0.7  # IoU from which a composite counts
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """Before and after: SAD in thousands of pixels, MSE in thousandths, gradient error in thousands; IoU."""

    name: str
    before: Floats
    after: Floats

    @property
    def changes(self) -> list[float]:
        """Of SAD, MSE and gradient error in per cent, and of IoU."""
        apart = self.after - self.before
        return [*(100 * apart[:3] / np.maximum(self.before[:3], 1e-9)).tolist(), float(apart[3])]

    @property
    def chosen_on(self) -> bool:
        return self.name.startswith(CHOSEN_ON)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="u2netp", help="name, folder or file (default: u2netp)")
    parser.add_argument(
        "--folder", type=Path, default=Path(SHARED) / "eval", help="photos/ and gt/ (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of composites (default: 1)")


def run(options: argparse.Namespace) -> Report:
    photos = list(filters.photographs(options.folder))
    random = np.random.default_rng(options.seed)
    grounds = list(filters.parts_without_subject(photos, random))
    if options.quick:
        photos, grounds = [case for case in photos if filters.soft(case)][:1], grounds[:1]
    made = list(filters.composites(photos, grounds, random, 1 if options.quick else EACH))
    alpha_of = mattes(options.model)
    rows, milliseconds = compare(photos, alpha_of, "photographs")
    composites, _ = compare(made, alpha_of, "composites")
    composites = [row for row in composites if row.before[3] >= FOUND or options.quick]
    ious = [row.changes[3] for row in rows]
    shown = [row for row in rows if row.before[0] > 0]
    means = [
        (f"{len(some)} {words}", np.mean([row.changes for row in some], axis=0).tolist())
        for words, some in (
            ("composites, chosen on", [row for row in composites if row.chosen_on]),
            ("composites, held out", [row for row in composites if not row.chosen_on]),
        )
        if some
    ]
    lines = [(f"{row.name}{', chosen on' if row.chosen_on else ''}", row.changes) for row in shown] + means
    worst = min(rows, key=lambda row: row.changes[3], default=None)
    found = {
        "images": {name: dict(zip(("sad", "mse", "gradient", "iou"), each, strict=True)) for name, each in lines},
        "refined": len(rows),
        "iou_before": float(np.mean([row.before[3] for row in rows])) if rows else None,
        "iou_after": float(np.mean([row.after[3] for row in rows])) if rows else None,
        "iou_higher": sum(gain > 2e-4 for gain in ious),
        "iou_lower": sum(gain < -2e-4 for gain in ious),
        "iou_worst": worst.changes[3] if worst else None,
        "iou_worst_image": worst.name if worst else None,
        "milliseconds_a_megapixel": milliseconds,
    }
    cells = [(name, *(f"{each:+.1f} %" for each in changes[:3]), f"{changes[3]:+.4f}") for name, changes in lines]
    about = {key: each for key, each in found.items() if key != "images"}
    return Report(
        [table("Change by refining", "image", "SAD", "MSE", "gradient", "IoU", rows=cells), values("All", about)], found
    )


def mattes(model: str) -> Callable[[Bytes], tuple[Floats, Bytes]]:
    """(matte, the image as the network saw it) of an image."""
    import torch

    from rmbgd.models.load import load_model

    loaded = load_model(model, device="cpu", dtype=torch.float32)
    alpha = filters.network(loaded.module)

    def of(rgb: Bytes) -> tuple[Floats, Bytes]:
        guide = image_to_network(rgb, loaded.input_size, loaded.filter)
        return alpha((guide / 255).astype(np.float32)), guide

    return of


def compare(
    cases: list[Case], mattes: Callable[[Bytes], tuple[Floats, Bytes]], what: str
) -> tuple[list[Row], dict[str, float]]:
    """Of images that are refined; and processor ms a megapixel of one thread, the least of ROUNDS: mean and most."""
    rows, spent = [], []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for index in steps(len(cases), what):
        case = cases[index]
        matte, guide = mattes(case.rgb)
        if not refines((len(matte), matte.shape[1]), *case.truth.shape):
            continue
        plain = matte_to_image(matte, *case.truth.shape)
        refined, least = plain.copy(), float("inf")
        for _ in range(ROUNDS):
            began = time.process_time()
            refine_edges(case.rgb, matte, guide, refined)
            least = min(least, 1e9 * (time.process_time() - began) / case.truth.size)
        spent.append(least)
        rows.append(Row(case.name, errors(case, plain), errors(case, refined)))
    cv2.setNumThreads(threads)
    return rows, {"mean": float(np.mean(spent)), "most": float(np.max(spent))} if spent else {}


def errors(case: Case, alpha: Floats) -> Floats:
    """SAD, MSE and gradient error near the truth's soft pixels, 0 where it has none; IoU."""
    near = band(case.truth) if filters.soft(case) else np.zeros(case.truth.shape, bool)
    apart = np.abs(alpha - case.truth)[near]
    steep = (gradient(alpha) - gradient(case.truth))[near]
    mean = 1e3 * float((apart**2).mean()) if near.any() else 0.0
    return np.array([apart.sum() / 1e3, mean, (steep**2).sum() / 1e3, filters.judged(case, alpha)[0]], np.float32)


def band(truth: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """What is within a hundredth of the longer side of a soft pixel."""
    reach = max(2, round(max(truth.shape) / 100))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(cv2.dilate(((truth > 0.02) & (truth < 0.98)).astype(np.uint8), disc), bool)


def gradient(alpha: Floats) -> Floats:
    """Length of the gradient by derivatives of a Gaussian, each of length 1 as a filter."""
    reach = int(3 * SIGMA + 1)
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * SIGMA**2))
    steep = -x * smooth
    steep = steep / np.sqrt((np.outer(smooth, steep) ** 2).sum())
    return np.hypot(*(
        cv2.sepFilter2D(alpha, cv2.CV_32F, first, second, borderType=cv2.BORDER_REPLICATE)
        for first, second in ((steep, smooth), (smooth, steep))
    )).astype(np.float32)  # fmt: skip
