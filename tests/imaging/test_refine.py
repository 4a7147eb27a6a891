"""Refined alpha: sharper where the image's colours explain the matte, and as it was elsewhere."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.backends.planes import finish
from rmbgd.engine.types import OutputPlane, Region, region_bytes, view
from rmbgd.imaging.refine import BAND_ROWS, GAP, LARGEST_NETWORK, fit, refine_edges, refines
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.resampling import Filter
from tests.support.shared_data import shared
from tools.benches import refine as bench
from tools.benches.filters import photographs, soft

SIZE = (48, 64)  # of mattes
SCALE = 6
FORE, BACK = (200, 150, 90), (40, 60, 120)


def refined(rgb: np.ndarray, matte: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(enlarged, refined) alpha."""
    plain = matte_to_image(matte, *rgb.shape[:2])
    alpha = plain.copy()
    refine_edges(rgb, matte, image_to_network(rgb, matte.shape, Filter.BOX), alpha)
    return plain, alpha


def scene(truth: np.ndarray, fore=FORE, back=BACK) -> tuple[np.ndarray, np.ndarray]:
    """(an image of that alpha, the matte of a network that blurs)."""
    share = truth[..., None]
    rgb = np.rint(share * np.array(fore) + (1 - share) * np.array(back)).astype(np.uint8)
    matte = cv2.resize(truth, SIZE[::-1], interpolation=cv2.INTER_AREA)
    return rgb, cv2.GaussianBlur(matte, (0, 0), 0.8)


def noise(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def halves() -> np.ndarray:
    """1 left of column 189, which lies within a pixel of the matte."""
    truth = np.zeros((SIZE[0] * SCALE, SIZE[1] * SCALE), np.float32)
    truth[:, :189] = 1
    return truth


def widths(alpha: np.ndarray) -> np.ndarray:
    """Of each row, how many pixels are neither nearly 0 nor nearly 1."""
    return ((alpha > 0.1) & (alpha < 0.9)).sum(axis=1)


@pytest.mark.parametrize("fore", [FORE, (90, 90, 90), (41, 60, 180)])
def test_a_sharp_edge_becomes_sharp_and_stays_where_it_is(fore):
    truth = halves()
    plain, alpha = refined(*scene(truth, fore))
    assert widths(plain).min() >= 16
    assert widths(alpha).max() <= 4
    assert np.array_equal(alpha > 0.5, truth > 0.5)
    assert (alpha[:, 188] - alpha[:, 189]).min() > 0.7
    assert np.abs(alpha - truth).mean() < 0.4 * np.abs(plain - truth).mean()


def test_grey_images_are_refined():
    truth = halves()
    _, alpha = refined(*scene(truth, (180, 180, 180), (60, 60, 60)))
    assert widths(alpha).max() <= 4


def test_a_thin_line_is_kept():
    """Three pixels of the image, half a pixel of the matte."""
    truth = np.zeros((SIZE[0] * SCALE, SIZE[1] * SCALE), np.float32)
    cv2.line(truth, (20, 30), (350, 260), 1.0, 3)
    plain, alpha = refined(*scene(truth))
    line = truth == 1
    assert (alpha[line] > plain[line]).all()
    assert alpha[~line].mean() < plain[~line].mean()


def test_a_flat_image_says_nothing_about_edges():
    """To the bit, whatever the matte."""
    _, matte = scene(halves())
    plain, alpha = refined(np.full((SIZE[0] * SCALE, SIZE[1] * SCALE, 3), 77, np.uint8), matte)
    assert np.array_equal(plain, alpha)


def test_an_image_that_does_not_explain_the_matte_changes_little():
    _, matte = scene(halves())
    plain, alpha = refined(noise(SIZE[0] * SCALE, SIZE[1] * SCALE, 3), matte)
    assert np.abs(alpha - plain).mean() < 0.01


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_alpha_without_an_edge_is_untouched(value):
    """To the bit, and so is what lies away from an edge."""
    plain, alpha = refined(noise(300, 400, 3), np.full(SIZE, value, np.float32))
    assert np.array_equal(plain, alpha)


def test_texture_away_from_an_edge_makes_no_holes():
    """Where the matte is 1 all around, alpha is, though the colours there would mean less beside the edge."""
    rgb, matte = scene(halves())
    guide = image_to_network(rgb, matte.shape, Filter.BOX)
    rgb[::3, :189] = BACK
    alpha = matte_to_image(matte, *rgb.shape[:2])
    solid = matte_to_image(cv2.erode(matte, np.ones((3, 3))), *rgb.shape[:2]) > 0.95
    assert solid[0, 189 - 3 * SCALE]
    refine_edges(rgb, matte, guide, alpha)
    assert alpha[solid].min() > 0.949
    assert alpha[~solid & (rgb[..., 0] == BACK[0])].min() < 0.5


sides = st.integers(1, 40)


@given(sides, sides, st.integers(1, 130), st.integers(1, 130), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_alpha_stays_within_what_the_matte_holds_nearby(rows, columns, more_rows, more_columns, seed):
    """Images of any size, single pixels among them, and mattes as rough as can be."""
    height, width = rows + more_rows, columns + more_columns
    matte = (noise(rows, columns, seed=seed) / 255).astype(np.float32)
    matte[: rows // 2] = 1
    _, alpha = refined(noise(height, width, 3, seed=seed), matte)
    window = np.ones((3, 3), np.uint8)
    least, greatest = (matte_to_image(of(matte, window), height, width) for of in (cv2.erode, cv2.dilate))
    assert (alpha >= least - 1e-5).all()
    assert (alpha <= greatest + 1e-5).all()


@given(st.integers(0, 99), st.sampled_from([(97, 131), (144, 192), (481, 203), (150, 900)]))
@settings(max_examples=20, deadline=None)
def test_bands_and_runs_give_what_all_at_once_gives(seed, size):
    """Two soft blobs farther apart than GAP, an image of several bands."""
    assert size[0] > BAND_ROWS
    random = np.random.default_rng(seed)
    matte = np.zeros(SIZE, np.float32)
    for _ in range(2):
        centre = int(random.integers(4, SIZE[1] - 4)), int(random.integers(4, SIZE[0] - 4))
        cv2.circle(matte, centre, int(random.integers(1, GAP)), 1.0, -1)
    matte = cv2.GaussianBlur(matte, (0, 0), 0.7)
    rgb = cv2.resize(noise(12, 16, 3, seed=seed), size[::-1], interpolation=cv2.INTER_CUBIC)
    _, alpha = refined(rgb, matte)
    linear = matte_to_image_of_planes(fit(matte, image_to_network(rgb, SIZE, Filter.BOX)), size)
    window = np.ones((3, 3), np.uint8)
    least, greatest = (matte_to_image(of(matte, window), *size) for of in (cv2.erode, cv2.dilate))
    expected = np.clip((linear[..., :3] * rgb).sum(axis=2) + linear[..., 3], least, greatest)
    np.testing.assert_allclose(alpha, expected, atol=1e-4)


def matte_to_image_of_planes(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.dstack([matte_to_image(np.ascontiguousarray(planes[..., i]), *size) for i in range(planes.shape[2])])


@pytest.mark.parametrize(
    ("network", "image", "expected"),
    [
        ((320, 320), (640, 640), False),
        ((320, 320), (641, 400), True),
        ((320, 320), (400, 641), True),
        ((320, 320), (319, 5000), False),  # the matte is made smaller along one side
        ((1024, 1024), (4000, 6000), False),
        ((LARGEST_NETWORK, LARGEST_NETWORK + 1), (4000, 6000), False),
    ],
)
def test_images_more_than_twice_as_long_or_wide_as_a_small_network_are_refined(network, image, expected):
    assert refines(network, *image) == expected


@pytest.mark.parametrize("output", list(OutputPlane))
def test_every_output_plane_holds_the_refined_alpha(output):
    truth = halves()
    rgb, matte = scene(truth)
    height, width = truth.shape
    region = Region(0, height, width, False, output)
    block = np.zeros(region_bytes(height, width, source_alpha=False, output=output), np.uint8)
    slot = view(block, region)
    slot.rgb[...] = rgb
    errors, colours = [], []
    for guide in (None, image_to_network(rgb, SIZE, Filter.BOX)):
        finish(slot, matte, clean=True, guide=guide)
        plane = slot.alpha if slot.rgba is None else slot.rgba[..., 3]
        assert plane is not None
        errors.append(np.abs(plane / np.iinfo(plane.dtype).max - truth).max())
        if slot.rgba is not None:  # cleaned by the refined alpha
            colours.append(np.abs(slot.rgba[:, 189:195, :3].astype(int) - FORE).mean())
    assert errors[1] < 0.2 < 0.4 < errors[0]
    assert colours == sorted(colours, reverse=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mattes_of_photographs_come_nearer_to_their_truth():
    """None of the ten with soft truth loses in any error, and on no more than one in twenty IoU is lower by 0.001."""
    cases = list(photographs(shared("eval")))
    rows, _ = bench.compare(cases, bench.mattes("u2netp"), "photographs")
    names = {case.name for case in cases if soft(case)}
    changes = np.array([row.changes for row in rows if row.name in names])
    assert len(changes) == 10
    assert changes[:, :3].max() <= -0.5
    assert (changes[:, :3].mean(axis=0) <= (-10, -12, -18)).all()
    gains = np.array([row.changes[3] for row in rows])
    assert gains.mean() >= 0.0015
    assert gains.min() >= -0.002
    assert (gains < -0.001).mean() <= 0.05
