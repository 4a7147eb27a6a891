"""Output planes on a device, by plain torch, against the host's path: alpha, colours at edges, any size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from rmbgd.backends.cuda.postprocess import FINITE, coarse_size, summary
from rmbgd.engine.types import OutputPlane
from rmbgd.imaging.edges import HARDEST, LEVEL_SIDE, SOFTEST
from rmbgd.imaging.resize import matte_to_image
from rmbgd.models.finish import area, resized, triangle
from tests.support.finish import Image as Case
from tests.support.finish import disc, finished, noise

sides = st.integers(1, 300)
seeds = st.integers(0, 99)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Threads of small kernels wait for each other where the machine is busy."""
    torch.set_num_threads(1)


@given(sides, sides, sides, sides, seeds)
@settings(max_examples=25)
def test_alpha_at_full_size_is_the_hosts(matte_height, matte_width, height, width, seed):
    """Within 1e-5, whatever the sizes."""
    matte = np.random.default_rng(seed).random((matte_height, matte_width), np.float32)
    found = resized(torch.from_numpy(matte), (height, width), triangle).numpy()
    np.testing.assert_allclose(found, matte_to_image(matte, height, width), atol=1e-5)


@given(st.integers(1, 400), st.integers(1, 400))
def test_an_area_is_opencvs(inputs, outputs):
    """The mean over an output's span, as INTER_AREA has it, within 1e-3 of the values' range (its own threshold)."""
    inputs, outputs = max(inputs, outputs), min(inputs, outputs)
    values = np.random.default_rng(inputs).random((1, inputs), np.float32)
    found = resized(torch.from_numpy(values), (1, outputs), area).numpy()
    expected = cv2.resize(values, (outputs, 1), interpolation=cv2.INTER_AREA).reshape(1, outputs)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", [triangle, area])
@given(inputs=st.integers(1, 3000), outputs=st.integers(1, 3000))
@settings(max_examples=20)
def test_weights_sum_to_one(kind, inputs, outputs):
    if kind is area:
        inputs, outputs = max(inputs, outputs), min(inputs, outputs)
    torch.testing.assert_close(kind(inputs, outputs, CPU).sum(1), torch.ones(outputs), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("photo", [data.astronaut, data.coffee, data.chelsea])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.3])
def test_clean_edges_are_the_hosts(photo, scale):
    """Within one level, on at most 0.1 % of the soft pixels; elsewhere the photograph's own colours."""
    rgb = photo()
    rgb = np.asarray(Image.fromarray(rgb).resize((round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))))
    matte = disc(320, 320)
    ((found, expected),) = finished([Case(rgb)], [matte])
    alpha = matte_to_image(matte, *rgb.shape[:2])
    soft = (alpha >= SOFTEST) & (alpha <= HARDEST)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference[soft][:, :3].max(axis=1) > 0).mean() <= 1e-3
    assert np.array_equal(found[~soft][:, :3], rgb[~soft])
    assert np.abs(found[..., :3].astype(int) - rgb)[soft].mean() > 1  # something was done


@given(sides, sides, seeds)
@settings(max_examples=15)
def test_any_size_can_be_cleaned(height, width, seed):
    """Also a single pixel, and strips; within three levels of the host on noise, whose estimates have steep slopes."""
    assert max(coarse_size(30 * height, 30 * width)) <= LEVEL_SIDE
    ((found, expected),) = finished([Case(noise(height, width, seed))], [disc(40, 40)])
    assert np.abs(found.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("output", list(OutputPlane))
@pytest.mark.parametrize("with_source_alpha", [False, True])
def test_a_plane_is_the_hosts(output, with_source_alpha):
    """Alpha of the source multiplied in: equal, but for ties between two levels."""
    matte = np.random.default_rng(3).random((50, 70), np.float32)
    own = noise(50, 70, seed=4)[..., 0] if with_source_alpha else None
    ((found, expected),) = finished([Case(noise(50, 70), own, output, clean=False)], [matte])
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-3


def test_the_summary_measures_each_answer_and_believes_the_network_that_one_is_not_finite():
    mattes = torch.tensor([[[0.0, 0.5], [1.0, 0.5]], [[0.0, 0.0], [0.0, float("nan")]]])
    good, bad = summary(mattes, torch.tensor([True, True])).tolist()
    assert good == pytest.approx([0.5, 1.0, 0.75, 0.5, 1.0])
    assert bad[FINITE] == 0.0
    assert summary(torch.zeros(1, 2, 2), torch.tensor([False]))[0, FINITE] == 0.0
