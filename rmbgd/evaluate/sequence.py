"""Evaluate mattes of a film's frames with truth: what sequences there are, frames that lack, error at moving edges.

dtSSD is in metrics.py. Its larger part, where things move, is error that moves with them, and no flicker; the error at
moving edges says how large that is, and rises when a filter trails behind.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np

from rmbgd.evaluate.metrics import BAND_RADIUS, HALF, Mask, Plane
from rmbgd.evaluate.pairs import MaskPair, in_sequence

MOVED = 0.1  # of alpha, by which the truth must change for an edge to move
Frames = list[tuple[MaskPair, MaskPair | None]]


def moving_edge_error(alpha: Plane, truth: Plane, truth_before: Plane) -> float | None:
    """Mean of |alpha - truth| around edges of the truth that moved since the frame before; None where none did.

    All float32 [H, W] in 0..1. Around: within BAND_RADIUS of the longer side, as in the unknown band.
    """
    band = _around(_edges(truth)) & _around(np.abs(truth - truth_before) > MOVED)
    return float(np.abs(alpha - truth)[band].mean(dtype=np.float64)) if band.any() else None


def _edges(truth: Plane) -> Mask:
    solid = (truth > HALF).astype(np.uint8)
    outline = np.asarray(cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))) > 0
    return outline | ((truth > 0) & (truth < 1))


def _around(mask: Mask) -> Mask:
    radius = max(1, round(BAND_RADIUS * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc)) > 0


def by_sequence(pairs: Iterable[MaskPair], *, categories: bool = False) -> tuple[Frames, list[str]]:
    """Each frame with the one before it, and what is missing, in words. A sub-folder is a sequence and a category.

    categories  the pairs have their own already

    Frames are missing where numbers leave out more than they do elsewhere in the sequence. Across such a gap there is
    no frame before: what lies in between is no flicker.
    """
    named = [pair if categories else replace(pair, category=os.path.dirname(pair.name)) for pair in pairs]
    frames = in_sequence(named)
    usual = _usual_steps(frames)
    found: Frames = []
    missing = []
    for frame, before in frames:
        step = _step(before, frame)
        least = usual.get(os.path.dirname(frame.name))
        if before is None or step is None or step == least:
            found.append((frame, before))
            continue
        found.append((frame, None))
        missing.append(f"frames are missing between {before.name} and {os.path.basename(frame.name)}")
    return found, missing


def _usual_steps(frames: Frames) -> dict[str, int]:
    """Of each folder the most frequent difference of two numbers; of several the least."""
    steps: dict[str, Counter[int]] = {}
    for frame, before in frames:
        if (step := _step(before, frame)) is not None:
            steps.setdefault(os.path.dirname(frame.name), Counter())[step] += 1
    return {folder: min(counts, key=lambda step: (-counts[step], step)) for folder, counts in steps.items()}


def _step(before: MaskPair | None, frame: MaskPair) -> int | None:
    """Of the last numbers in both names; None where one has none."""
    numbers = [re.findall("[0-9]+", os.path.basename(each.name)) for each in (before, frame) if each is not None]
    return int(numbers[1][-1]) - int(numbers[0][-1]) if len(numbers) == 2 and all(numbers) else None


def size_changes(sizes: Sequence[tuple[str, int, int]]) -> list[str]:
    """Where the size changes within a sequence, in words: no flicker is measured there. Of (name, width, height)."""
    found = []
    for (before, *last), (name, *size) in pairwise(sizes):
        if os.path.dirname(before) == os.path.dirname(name) and size != last:
            found.append(f"{name} has {size[0]} x {size[1]} pixels, the frame before it {last[0]} x {last[1]}")
    return found
