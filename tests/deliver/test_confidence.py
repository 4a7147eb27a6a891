"""The score: features of drawn mattes with known values, mirroring, size, monotony, reasons, versions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rmbgd.deliver import confidence
from rmbgd.deliver.confidence import Features, features, reasons, score, terms, unusual

Bytes = NDArray[np.uint8]


def boxes(*places: tuple[int, int, int, int], side: int = 256, level: int = 255) -> Bytes:
    alpha = np.zeros((side, side), np.uint8)
    for top, bottom, left, right in places:
        alpha[top:bottom, left:right] = level
    return alpha


def coloured(alpha: Bytes) -> Bytes:
    return np.where(alpha[..., None] >= 128, np.uint8([200, 40, 40]), np.uint8([40, 90, 200])).astype(np.uint8)


def measured(alpha: Bytes) -> Features:
    return features(alpha, coloured(alpha))


PLAIN = measured(boxes((64, 192, 64, 192)))


def test_a_square_has_the_values_of_a_square() -> None:
    assert (0.25, 0.25, 1.0) == (PLAIN.area, PLAIN.coverage, PLAIN.peak)
    assert [0.0] * 7 == [
        PLAIN.soft,
        PLAIN.core,
        PLAIN.band,
        PLAIN.unsteady,
        PLAIN.outside,
        PLAIN.scattered,
        PLAIN.holes,
    ]
    assert (1, 1.0) == (PLAIN.parts, PLAIN.separation)
    assert [] == reasons(PLAIN)


def test_half_alpha_is_undecided() -> None:
    found = measured(boxes((64, 192, 64, 192), level=128))
    assert found.soft == pytest.approx(2, abs=0.02)
    assert found.core == pytest.approx(1, abs=0.001)
    assert found.unsteady == 1


def test_parts_holes_and_borders_are_measured() -> None:
    two = measured(boxes((64, 192, 16, 144), (64, 128, 176, 240)))
    assert (2, 0.25, 0.2) == (two.parts, two.second, pytest.approx(two.scattered))
    ring = boxes((64, 192, 64, 192))
    ring[96:160, 96:160] = 0
    assert measured(ring).holes == pytest.approx(0.25)
    cut = measured(boxes((0, 128, 0, 64)))
    assert (0.5, 0.25, 0.0, 0.0) == (cut.left, cut.top, cut.right, cut.bottom)
    assert ["the subject touches the left and top border"] == reasons(cut)


def test_a_subject_in_the_colours_of_its_background_is_not_separate() -> None:
    alpha = boxes((64, 192, 64, 192))
    assert features(alpha, np.full((256, 256, 3), 90, np.uint8)).separation == pytest.approx(0, abs=1e-6)


def blob() -> tuple[Bytes, Bytes]:
    y, x = np.mgrid[:512, :512]
    alpha = np.clip(400 - 2.2 * np.hypot(1.4 * (y - 250), x - 200), 0, 255).astype(np.uint8)
    rgb = np.dstack([alpha, 255 - alpha, (x // 2).astype(np.uint8)])
    return alpha, rgb


def test_a_mirrored_image_has_the_same_score() -> None:
    alpha, rgb = blob()
    turned = features(np.ascontiguousarray(alpha[:, ::-1]), np.ascontiguousarray(rgb[:, ::-1]))
    assert score(features(alpha, rgb), "u2netp") == pytest.approx(score(turned, "u2netp"), abs=0.005)


@pytest.mark.parametrize("side", [200, 1000, 2300])
def test_the_size_of_the_image_hardly_matters(side: int) -> None:
    alpha, rgb = blob()
    other = [
        np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA), np.uint8) for plane in (alpha, rgb)
    ]
    assert score(features(*other), "u2netp") == pytest.approx(score(features(alpha, rgb), "u2netp"), abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 2), (37, 5)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_every_shape_has_a_score(shape: tuple[int, int], level: int) -> None:
    found = features(np.full(shape, level, np.uint8), np.full((*shape, 3), 7, np.uint8), 0.1)
    assert 0 <= score(found, "u2netp") <= 1
    assert all(math.isfinite(value) for value in terms(found).values())
    assert len(reasons(found)) <= 4


def test_nothing_is_changed_and_the_same_comes_again() -> None:
    alpha, rgb = blob()
    kept = alpha.copy(), rgb.copy()
    assert features(alpha, rgb, 0.02) == features(alpha, rgb, 0.02)
    assert np.array_equal(alpha, kept[0])
    assert np.array_equal(rgb, kept[1])


@pytest.mark.parametrize(("field", "value"), [("soft", 0.5), ("busy", 30.0), ("area", 0.05)])
@pytest.mark.parametrize("disagreement", [None, 0.01])
def test_more_doubt_lowers_the_score(field: str, value: float, disagreement: float | None) -> None:
    calm = replace(PLAIN, busy=1.0, disagreement=disagreement)
    assert score(replace(calm, **{field: value}), "u2netp") < score(calm, "u2netp")


def test_a_matte_that_differs_in_a_wider_frame_is_doubted() -> None:
    low, high = (replace(PLAIN, disagreement=value) for value in (0.01, 0.6))
    assert score(high, "u2netp") < score(low, "u2netp")
    assert ["the network sees another subject in a wider frame"] == reasons(high)


def test_no_weight_is_negative() -> None:
    looks = [look for model in confidence.coefficients()["models"].values() for look in model.values()]
    assert [] == [weight for look in looks for weight in look["weights"].values() if weight < 0]


def test_no_subject_is_the_only_reason() -> None:
    found = measured(boxes())
    assert (0.0, ["no subject was found"]) == (score(found, "u2netp"), reasons(found))


def test_an_unknown_network_is_ranked_by_the_default_coefficients() -> None:
    assert score(PLAIN, "u2netp") == score(PLAIN, "birefnet")


@pytest.fixture
def other_coefficients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def loads(_: str) -> Any:
        return {"feature_version": -1}

    monkeypatch.setattr(json, "loads", loads)
    confidence.coefficients.cache_clear()
    yield
    confidence.coefficients.cache_clear()


@pytest.mark.usefixtures("other_coefficients")
def test_coefficients_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="feature version -1, not"):
        score(PLAIN, "u2netp")


def test_an_area_is_unusual_for_its_folder() -> None:
    history = [0.30 + 0.002 * (number % 10) for number in range(40)]
    assert unusual(0.3, history[:19]) is None
    usual, other = unusual(0.31, history), unusual(0.05, history)
    assert usual is not None
    assert other is not None
    assert usual < 1 < 3.5 < other
