"""Metrics: those of published implementations on recorded cases, and what each must say where the answer is known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.evaluate import metrics
from rmbgd.evaluate.metrics import FIGURES, Mask, Plane, figures
from tests.evaluate.cases import HEIGHT, NAMES, WIDTH, case

# S-measure, weighted F, MAE and IoU by pysodmetrics 1.6.2, the others by mmedit 0.16.1, each on the whole image. Both
# stretch some predictions to the full range: where that would show (pale), only what they do not stretch is recorded.
RECORDED = {
    "noise": {
        "s_measure": 0.8841331,
        "weighted_f": 0.7525259,
        "mae": 0.0947077,
        "iou": 0.8076095,
        "sad": 1.0228431,
        "mse": 0.0393947,
        "gradient": 2.3757432,
        "connectivity": 0.7656255,
    },
    "holes": {
        "s_measure": 0.8715819,
        "weighted_f": 0.8129843,
        "mae": 0.0783976,
        "iou": 0.7786372,
        "sad": 0.8466941,
        "mse": 0.0473683,
        "gradient": 2.7592177,
        "connectivity": 0.9518138,
    },
    "soft": {
        "s_measure": 0.9318991,
        "weighted_f": 0.9045291,
        "iou": 0.8662614,
        "sad": 0.4006549,
        "mse": 0.0105511,
        "gradient": 0.5430347,
        "connectivity": 0.4117647,
    },
    "touching": {
        "s_measure": 0.5023188,
        "weighted_f": 0.5121324,
        "mae": 0.1517378,
        "iou": 0.5725910,
        "sad": 1.6387686,
        "mse": 0.0823305,
        "gradient": 2.2977569,
        "connectivity": 1.0929372,
    },
    "specks": {
        "s_measure": 0.5550816,
        "weighted_f": 0.3912062,
        "mae": 0.1750817,
        "iou": 0.2349859,
        "sad": 1.8908824,
        "mse": 0.1207844,
        "gradient": 0.9005974,
        "connectivity": 1.8586668,
    },
    "pale": {
        "s_measure": 0.8059414,
        "weighted_f": 0.4512898,
        "mae": 0.2259245,
        "iou": 0.8474639,
        "connectivity": 2.5656550,
    },
}
# By mmedit 0.16.1 with the band as its trimap; it asks that the prediction is right outside of it.
RECORDED_BAND = {
    "sad_band": 0.4004510,
    "mse_band": 0.0455778,
    "gradient_band": 0.5332782,
    "connectivity_band": 0.4117647,
}
TOLERANCE = 1e-5


def planes(name: str) -> tuple[Plane, Plane]:
    found, truth = (pixels.astype(np.float32) / np.float32(255) for pixels in case(name))
    return found, truth


def disc(row: float, column: float, radius: float, size: int = 64) -> Plane:
    y, x = np.mgrid[0:size, 0:size]
    return (np.hypot(y - row, x - column) <= radius).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_published_implementations(name: str) -> None:
    found = figures(*planes(name))
    assert {key: found[key] for key in RECORDED[name]} == pytest.approx(RECORDED[name], abs=TOLERANCE)


def test_figures_of_the_band_are_those_of_a_published_implementation() -> None:
    found, truth = planes("soft")
    inside = np.where(metrics.unknown_band(truth), found, truth)
    measured = figures(inside, truth)
    assert {key: measured[key] for key in RECORDED_BAND} == pytest.approx(RECORDED_BAND, abs=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_boundary_is_what_erosion_takes_away(name: str) -> None:
    """As the paper puts it: eroded by 3 x 3 pixels as often as the diagonal asks for, with background all around."""
    solid = planes(name)[1] > 0.5
    times = max(1, round(0.02 * math.hypot(HEIGHT, WIDTH)))
    padded = cv2.copyMakeBorder(solid.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=times)[1:-1, 1:-1]
    assert (metrics.boundary(solid) == (solid & (eroded == 0))).all()


def test_a_right_answer_has_the_best_of_everything() -> None:
    """But S-measure and weighted F, which compare with the foreground, where the truth is soft."""
    soft = planes("soft")[1]
    for exact, left_out in ((np.round(soft), set()), (soft, {"s_measure", "weighted_f"})):
        found = {name: value for name, value in figures(exact, exact).items() if name not in left_out}
        assert {name: pytest.approx(float(FIGURES[name].higher_is_better)) for name in found} == found


@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_figures_stay_within_their_range(name: str, other: str) -> None:
    found = figures(planes(name)[0], planes(other)[1])
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    bounded = ("s_measure", "weighted_f", "iou", "boundary_iou", "mae", "mse", "mse_band")
    assert all(found.get(key, 0) <= 1 + 1e-6 for key in bounded)
    assert found.keys() <= FIGURES.keys()


@pytest.mark.parametrize(("found", "share"), [(0.0, 0.0), (0.4, 0.0), (0.6, 1.0)])
def test_an_empty_scene_is_judged_by_false_foreground(found: float, share: float) -> None:
    """Overlap with nothing means nothing, so it has none."""
    measured = figures(np.full((20, 30), found, np.float32), np.zeros((20, 30), np.float32))
    assert share == measured["false_foreground"]
    assert 1 - found == pytest.approx(measured["s_measure"])
    assert not measured.keys() & {"weighted_f", "iou", "boundary_iou", "sad_band"}


def test_a_full_scene_has_a_structure_too() -> None:
    measured = figures(np.full((20, 30), 0.75, np.float32), np.ones((20, 30), np.float32))
    assert (0.75, 1.0) == (pytest.approx(measured["s_measure"]), measured["iou"])
    assert "false_foreground" not in measured


@pytest.mark.parametrize("solid", [disc(0, 0, 1), disc(63, 63, 1), disc(63, 63, 0), np.ones((1, 1), np.float32)])
def test_subjects_in_a_corner_and_of_a_pixel_have_figures(solid: Plane) -> None:
    """A quarter of the image, or an object, may have no pixel, or only one."""
    assert all(math.isfinite(value) for value in figures(solid * np.float32(0.9), solid).values())


def test_the_band_reaches_ten_pixels_beyond_soft_ones_at_1024() -> None:
    truth = np.zeros((40, 1024), np.float32)
    truth[20, 500] = 0.5
    rows, columns = np.nonzero(metrics.unknown_band(truth))
    assert (10, 30, 490, 510) == (rows.min(), rows.max(), columns.min(), columns.max())
    assert len(rows) == sum(y * y + x * x <= 100 for y in range(-10, 11) for x in range(-10, 11))
    assert not metrics.unknown_band(np.round(truth)).any()


def test_specks_are_errors_of_connectivity_more_than_a_wider_edge() -> None:
    truth, speck, wide = disc(30, 30, 15), disc(55, 55, 3), disc(30, 30, 15.5)
    apart = metrics.connectivity_errors(np.maximum(truth, speck), truth)
    assert apart.sum() == pytest.approx(speck.sum())
    assert np.count_nonzero(metrics.connectivity_errors(wide, truth)) == np.count_nonzero(wide - truth)


def test_a_blurred_edge_is_an_error_of_gradient() -> None:
    truth = disc(30, 30, 15)
    blurred = [np.asarray(cv2.GaussianBlur(truth, (0, 0), sigma)) for sigma in (0.5, 1.0, 2.0)]
    errors = [metrics.gradient_errors(each, truth).sum() for each in blurred]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_flicker_is_what_changes_otherwise_than_the_truth() -> None:
    still, moved = disc(30, 30, 10), disc(30, 33, 10)
    assert 0 == metrics.dtssd(moved, moved, still, still)
    assert 0 == metrics.dtssd(still * 0.5, still, still * 0.5, still)  # wrong, but it does not flicker
    change = float(np.mean((moved - still) ** 2))
    assert metrics.dtssd(still, moved, still, still) == pytest.approx(100 * math.sqrt(change))


def test_rim_error_is_of_colours_in_the_band_alone() -> None:
    truth = planes("soft")[1]
    band = metrics.unknown_band(truth)
    red = np.zeros((*truth.shape, 3), np.uint8)
    red[:, :, 0] = 255
    outside = np.where(band[:, :, None], red, np.uint8(77))
    assert 0 == metrics.rim_error(truth, red, truth, red) == metrics.rim_error(truth, outside, truth, red)
    dark = red // 255 * 204  # a fifth darker, seen through the alpha, in one of three channels
    wanted = 0.2 * float(truth[band].mean()) / 3
    assert wanted == pytest.approx(metrics.rim_error(truth, dark, truth, red), abs=1e-6)
    assert metrics.rim_error(np.round(truth), red, np.round(truth), red) is None


def test_of_equally_near_pixels_the_left_one_counts() -> None:
    """As in SciPy's exact transform; on the recorded cases the right one would be off by up to 9e-4."""
    solid: Mask = np.zeros((9, 9), bool)
    solid[4, 2] = solid[4, 6] = True
    error = np.zeros((9, 9), np.float32)
    error[4, 2], error[4, 6] = 0.25, 0.75
    spread = metrics._with_nearest(error, solid, metrics._distance(~solid))
    assert [0.25, 0.25, 0.25, 0.75] == [spread[4, column] for column in (1, 3, 4, 5)]
