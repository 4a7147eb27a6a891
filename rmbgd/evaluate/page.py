"""The page of `rmbgd eval`: figures with their intervals, and the worst images beside their truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from rmbgd import page
from rmbgd.evaluate.metrics import FIGURES, Pixels, Plane
from rmbgd.evaluate.run import Judge, JudgedPair, UnusablePair
from rmbgd.evaluate.summary import Evaluation, interval, shown
from rmbgd.report.thumbnails import SIDE, Thumbnail, encoded
from rmbgd.wording import printable

TILES = ("s_measure", "weighted_f", "iou", "mae")
FACTS = ("s_measure", "weighted_f", "iou", "boundary_iou", "mae", "sad", "false_foreground")
BY_CATEGORY = (
    "s_measure",
    "weighted_f",
    "iou",
    "boundary_iou",
    "mae",
    "false_foreground",
    "dtssd",
    "moving_edge_error",
)


@dataclass(frozen=True, slots=True)
class MatteCard:
    """One image on the page; `sides` are prediction, truth and difference."""

    name: str
    category: str
    facts: list[str]
    sides: dict[str, Thumbnail]


def template() -> Any:
    """Raises ConfigError where jinja2 is not installed."""
    return page.template("rmbgd.evaluate", "evaluation.html.j2", {"shown": shown, "interval": interval})


def cards(worst: Iterable[JudgedPair], judge: Judge) -> Iterator[MatteCard]:
    """One by one: of each image only its thumbnails stay in memory. One that is gone meanwhile is left out."""
    for each in worst:
        try:
            found, truth = judge.read(each.pair)
        except UnusablePair:
            continue
        alpha, true = (_small(plane) for plane in (found.alpha, truth.alpha))
        sides = {"prediction": _grey(alpha), "truth": _grey(true), "difference": _difference(alpha - true)}
        facts = [f"{FIGURES[name].title} {shown(each.figures[name])}" for name in FACTS if name in each.figures]
        yield MatteCard(
            printable(each.pair.name),
            printable(each.pair.category),
            facts,
            {side: encoded(Image.fromarray(pixels)) for side, pixels in sides.items()},
        )


def _small(plane: Plane) -> Plane:
    share = min(1.0, SIDE / max(plane.shape))
    size = [max(1, round(side * share)) for side in plane.shape[::-1]]
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _grey(plane: Plane) -> Pixels:
    return np.rint(plane * 255).astype(np.uint8)


def _difference(off: Plane) -> Pixels:
    """White where both agree, red where the prediction has too much, blue where it has too little."""
    fade, red, blue = 1 - np.abs(off), 1 + np.minimum(off, 0), 1 - np.maximum(off, 0)
    return _grey(np.dstack([red, fade, blue]))


def render(evaluation: Evaluation, shown_cards: list[MatteCard]) -> str:
    """Raises ConfigError where jinja2 is missing."""
    everything, *categories = evaluation.groups()
    text = template().render(
        evaluation=evaluation,
        place={key: printable(getattr(evaluation, key)) for key in ("predictions", "truth", "dataset")},
        all=everything,
        categories=[(printable(str(group.category)), group) for group in categories],
        kinds=FIGURES,
        tiles=[name for name in TILES if name in everything.figures],
        columns=[name for name in BY_CATEGORY if name in everything.figures],
        unusable=[
            tuple(printable(text or "") for text in (each.pair.name, each.reason, each.detail))
            for each in evaluation.unusable
        ],
        cards=shown_cards,
    )
    return str(text)
