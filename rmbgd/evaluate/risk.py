"""Risk and coverage: which share of the failures a review of the lowest scores finds, beside the ideal order.

An image fails whose IoU with the truth is below 0.7, or which has foreground where the truth has none. Images of equal
score count as in random order: of what holds only some of them, the expected value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.config.settings import LimitSettings
from rmbgd.deliver.confidence import features, score
from rmbgd.errors import ConfigError
from rmbgd.evaluate.pairs import MaskPair, paired
from rmbgd.evaluate.run import JudgedPair, UnusablePair, read_matte, read_photograph
from rmbgd.evaluate.summary import INTERVAL, RESAMPLES, SEED

RIGHT = 0.7  # IoU, from which on a matte is right
FALSE_FOREGROUND = 0.0005  # share of the image, above which a matte of nothing is wrong; as recipe.empty_below
SHARES = 0.05, 0.1, 0.2  # of the images, that are reviewed

Floats = NDArray[np.float64]
Failures = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ReviewedShare:
    """Of the failures, the share `found` where the lowest `share` of the images is reviewed, with its 95 % interval."""

    share: float
    images: int
    found: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class RiskCurve:
    """`aurc`: mean share of failures among the best 1, 2, ... all images; `ideal`: with all failures lowest."""

    images: int
    failures: int
    reviewed: list[ReviewedShare]
    aurc: float
    ideal: float


def failed(judged: JudgedPair) -> bool:
    found = judged.figures
    return found["iou"] < RIGHT if "iou" in found else found["false_foreground"] > FALSE_FOREGROUND


def risk_curve(scores: Sequence[float], failures: Sequence[bool], shares: Sequence[float] = SHARES) -> RiskCurve:
    """Intervals by percentile bootstrap over images; None where no image fails. Raises ValueError for no images."""
    values, wrong = np.array(scores, float), np.array(failures, bool)
    if not len(values):
        raise ValueError("there are no images to rank; a bug")
    rng = np.random.default_rng(SEED)
    drawn = [rng.integers(0, len(values), len(values)) for _ in range(RESAMPLES if wrong.any() else 0)]
    samples = [found_by(values[each], wrong[each], shares) for each in drawn if wrong[each].any()]
    bounds = np.percentile(samples, INTERVAL, axis=0) if samples else None
    reviewed = [
        ReviewedShare(
            share,
            reviewed_of(len(values), share),
            found,
            None if bounds is None else float(bounds[0, at]),
            None if bounds is None else float(bounds[1, at]),
        )
        for at, (share, found) in enumerate(zip(shares, found_by(values, wrong, shares), strict=True))
    ]
    return RiskCurve(len(values), int(wrong.sum()), reviewed, aurc(values, wrong), aurc(-wrong.astype(float), wrong))


def reviewed_of(images: int, share: float) -> int:
    """How many images are reviewed: at least one."""
    return max(1, round(share * images))


def found_by(scores: Floats, failures: Failures, shares: Sequence[float]) -> list[float]:
    """For each share of the images that is reviewed, the share of the failures among them; 1 where none fails."""
    found = np.cumsum(_expected(scores, failures))
    if not failures.any():
        return [1.0] * len(shares)
    return [float(found[reviewed_of(len(scores), share) - 1]) / int(failures.sum()) for share in shares]


def aurc(scores: Floats, failures: Failures) -> float:
    """Area under the risk-coverage curve (Geifman, El-Yaniv 2017), 0..1; lower is better."""
    kept = np.cumsum(_expected(scores, failures)[::-1])
    return float((kept / np.arange(1, len(kept) + 1)).mean())


def _expected(scores: Floats, failures: Failures) -> Floats:
    """From the lowest score on, how likely the image at each place fails: those of one score share their failures."""
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    share = np.bincount(group, weights=failures) / count
    return np.asarray(np.repeat(share, count), np.float64)


# --- scores


def scores_for(
    pairs: Iterable[MaskPair], where: str, truths: str, model: str, limits: LimitSettings
) -> dict[str, float]:
    """By the names of pairs: from a folder of photographs, or the JSON lines that the service wrote.

    Raises ConfigError for a file without scores.
    """
    if not os.path.isdir(where):
        return dict(_recorded(pairs, _lines(Path(where))))
    photographs = {pair.name: pair.prediction for pair in paired(where, truths)[0]}
    found = {}
    for pair in pairs:
        photograph = photographs.get(pair.name)
        if photograph is None or pair.prediction is None:
            continue
        try:
            rgb, alpha = read_photograph(photograph, limits), read_matte(pair.prediction, limits).alpha
        except UnusablePair:
            continue
        if rgb.shape[:2] == alpha.shape:
            found[pair.name] = score(features(np.rint(alpha * 255).astype(np.uint8), rgb), model)
    return found


def _lines(path: Path) -> dict[str, float]:
    """Scores by every ending of the path in `output`, or in `name`; of two that end alike, the later one counts.

    Raises ConfigError and OSError.
    """
    known: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue
        name = (row.get("output") or row.get("name")) if isinstance(row, dict) else None
        if isinstance(name, str) and isinstance(row.get("score"), int | float):
            parts = os.path.splitext(name)[0].split("/")
            known |= {"/".join(parts[at:]): float(row["score"]) for at in range(len(parts))}
    if not known:
        raise ConfigError(
            [f"{path}: no line of it has a score and an output; give a log of image.done, or photographs"]
        )
    return known


def _recorded(pairs: Iterable[MaskPair], known: dict[str, float]) -> Iterator[tuple[str, float]]:
    for pair in pairs:
        names = [pair.name] if pair.prediction is None else [os.path.splitext(pair.prediction)[0], pair.name]
        found = next((known[name] for name in names if name in known), None)
        if found is not None:
            yield pair.name, found
