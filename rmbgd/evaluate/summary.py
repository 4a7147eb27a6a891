"""Means of figures with bootstrap intervals, over all images and by category; the JSON of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rmbgd import __version__
from rmbgd.evaluate.metrics import FIGURES
from rmbgd.evaluate.run import MISSING, JudgedPair

RESAMPLES, AT_ONCE = 2000, 50  # drawn with replacement; so many are in memory at a time
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 20_170_412


@dataclass(frozen=True, slots=True)
class MeanFigure:
    """Of one figure: mean over the images that have it, bounds of its 95 % interval; None with fewer than two."""

    mean: float
    low: float | None
    high: float | None
    images: int


@dataclass(frozen=True, slots=True)
class EvaluatedGroup:
    """All images, where `category` is None, or those of one category."""

    category: str | None
    images: int
    figures: dict[str, MeanFigure]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `rmbgd eval` found. `overlap`: data sets that `model` was trained on and `dataset` may share images with."""

    predictions: str
    truth: str
    dataset: str
    model: str | None
    overlap: tuple[str, ...]
    judged: list[JudgedPair]
    without_truth: list[str]

    @property
    def unusable(self) -> list[JudgedPair]:
        """Those without a prediction last: they may be many, and hide what is broken."""
        return sorted(
            (each for each in self.judged if each.reason is not None), key=lambda each: each.reason == MISSING
        )

    @property
    def usable(self) -> list[JudgedPair]:
        return [each for each in self.judged if each.reason is None]

    def worst(self, number: int) -> list[JudgedPair]:
        """Those of the least S-measure, which alone every image has."""
        return sorted(self.usable, key=lambda each: each.figures["s_measure"])[:number]

    def groups(self) -> list[EvaluatedGroup]:
        """Of all images, then by category where there are some."""
        kinds = sorted({each.pair.category for each in self.usable} - {""})
        parts = [(kind, [each for each in self.usable if each.pair.category == kind]) for kind in kinds]
        return [EvaluatedGroup(kind, len(some), estimates(some)) for kind, some in [(None, self.usable), *parts]]

    def document(self) -> dict[str, Any]:
        """For JSON: docs/schema/evaluation.schema.json."""
        return {
            "rmbgd": __version__,
            "predictions": self.predictions,
            "truth": self.truth,
            "dataset": self.dataset,
            "model": self.model,
            "overlap": list(self.overlap),
            "without_truth": self.without_truth,
            "resamples": RESAMPLES,
            "groups": [asdict(group) for group in self.groups()],
            "images": [
                asdict(each.pair)
                | {key: getattr(each, key) for key in ("width", "height", "reason", "detail", "figures")}
                for each in self.judged
            ],
        }


def estimates(judged: Sequence[JudgedPair]) -> dict[str, MeanFigure]:
    """Of each figure that an image has, in the order of FIGURES. Percentile bootstrap over images (Efron 1979)."""
    names = [name for name in FIGURES if any(name in each.figures for each in judged)]
    if not names:
        return {}
    values = np.array([[each.figures.get(name, np.nan) for name in names] for each in judged])
    there = ~np.isnan(values)
    filled, counted = np.where(there, values, 0.0), there.astype(np.float64)
    images = len(judged)
    rng = np.random.default_rng(SEED)
    means = []
    for _ in range(RESAMPLES // AT_ONCE):
        drawn = np.array(
            [np.bincount(row, minlength=images) for row in rng.integers(0, images, (AT_ONCE, images))], float
        )
        with np.errstate(invalid="ignore"):  # a sample may hold no image that has the figure
            means.append(drawn @ filled / (drawn @ counted))
    bounds = np.nanpercentile(np.concatenate(means), INTERVAL, axis=0)
    found = {}
    for at, name in enumerate(names):
        having = int(there[:, at].sum())
        low, high = (float(bound) if having > 1 else None for bound in bounds[:, at])
        found[name] = MeanFigure(float(filled[:, at].sum()) / having, low, high, having)
    return found


def shown(value: float) -> str:
    """Four digits behind the point of a share, fewer of what is larger."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def interval(estimate: MeanFigure) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{shown(estimate.low)} to {shown(estimate.high)}"
