"""Pixels on a device against the host's path: sizes, alpha, colours at edges, output planes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from rmbgd.backends.cuda import postprocess as edges
from rmbgd.backends.cuda import resample
from rmbgd.backends.cuda.postprocess import FINITE, pack, summary
from rmbgd.backends.cuda.resample import area, bands, resize_band, resize_dim, resize_to_network, triangle
from rmbgd.engine.types import OUTPUT_BYTES, OutputPlane
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.edges import HARDEST, LEVEL_SIDE, SOFTEST, clean_edges
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.resampling import Filter

sides = st.integers(1, 300)
seeds = st.integers(0, 99)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def soft_matte(height: int, width: int) -> np.ndarray:
    """A disc with a wide soft border and some texture: float32 [height, width]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    return np.clip(2.5 - 8 * distance + 0.1 * np.sin(x), 0, 1).astype(np.float32)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Threads of small kernels wait for each other where the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture
def narrow_bands(monkeypatch):
    monkeypatch.setattr(resample, "BAND_PIXELS", 2500)


@given(sides, sides, sides, sides, seeds)
@settings(max_examples=25)
def test_an_image_at_the_networks_size_is_pillows(height, width, network_height, network_width, seed):
    """Within one level of Pillow's bilinear, which rounds twice, whatever the sizes."""
    rgb = noise(height, width, seed)
    found = resize_to_network(torch.from_numpy(rgb), (network_height, network_width)).numpy()
    expected = np.asarray(Image.fromarray(rgb).resize((network_width, network_height), Image.Resampling.BILINEAR))
    assert np.abs(found - expected).max() <= 1.01


def test_an_image_in_bands_is_the_same(narrow_bands):
    """Bit for bit: a band sees the rows beyond its border."""
    rgb = torch.from_numpy(noise(301, 257))
    in_bands = resize_to_network(rgb, (64, 48))
    resample.BAND_PIXELS = 1 << 20
    assert torch.equal(in_bands, resize_to_network(rgb, (64, 48)))


@given(sides, sides, sides, sides, seeds)
@settings(max_examples=25)
def test_alpha_at_full_size_is_the_hosts(matte_height, matte_width, height, width, seed):
    """Within 1e-5, whatever the sizes; and its bands are the whole's, bit for bit."""
    matte = np.random.default_rng(seed).random((matte_height, matte_width), np.float32)
    alpha = torch.from_numpy(matte)
    whole = resize_band(alpha, (height, width), (0, height)).numpy()
    cuts = [(0, height // 3), (height // 3, height)]
    parts = [resize_band(alpha, (height, width), (first, last)).numpy() for first, last in cuts if first < last]
    np.testing.assert_allclose(whole, matte_to_image(matte, height, width), atol=1e-5)
    assert np.array_equal(np.concatenate(parts), whole)


@given(st.integers(1, 400), st.integers(1, 400))
def test_an_area_is_opencvs(inputs, outputs):
    """The mean over an output's span, as INTER_AREA has it, within 1e-3 of the values' range (its own threshold)."""
    inputs, outputs = max(inputs, outputs), min(inputs, outputs)
    values = np.random.default_rng(inputs).random((1, inputs), np.float32)
    found = resize_dim(torch.from_numpy(values), 1, area, outputs).numpy()
    expected = cv2.resize(values, (outputs, 1), interpolation=cv2.INTER_AREA).reshape(1, outputs)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", [triangle, area])
@given(inputs=st.integers(1, 3000), outputs=st.integers(1, 3000))
@settings(max_examples=20)
def test_weights_sum_to_one_within_the_input(kind, inputs, outputs):
    """No sample outside, no light lost, and a span holds all that an output needs."""
    if kind is area:
        inputs, outputs = max(inputs, outputs), min(inputs, outputs)
    taps = kind(inputs, outputs)
    middle = outputs // 2
    first, last = taps.span(middle, middle + 1)
    np.testing.assert_allclose(taps.weight.sum(axis=0), 1, atol=1e-5)
    assert 0 <= taps.index.min() <= taps.index.max() < inputs
    assert first <= taps.index[:, middle].min() <= taps.index[:, middle].max() < last


@given(st.integers(1, 10_000), st.integers(1, 100_000))
def test_bands_cover_every_row_once(rows, width):
    found = bands(rows, width)
    assert [row for first, last in found for row in range(first, last)] == list(range(rows))


def cleaned(rgb: np.ndarray, matte: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the device, band by band, and by the host; and alpha at full size."""
    size, pixels, full = rgb.shape[:2], torch.from_numpy(rgb.copy()), torch.from_numpy(matte)
    (colours,) = edges.estimate([edges.coarse(pixels, full)])
    parts = [
        edges.corrected(pixels[slice(*rows)], resize_band(full, size, rows), colours, rows, size[0])
        for rows in bands(*size)
    ]
    expected, alpha = np.dstack([rgb, rgb[:, :, :1]]), matte_to_image(matte, *size)
    clean_edges(rgb, alpha, expected)
    return torch.cat(parts).numpy(), expected[:, :, :3], alpha


@pytest.mark.slow
@pytest.mark.parametrize("photo", [data.astronaut, data.coffee, data.chelsea])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.3])
def test_clean_edges_are_the_hosts(photo, scale, narrow_bands):
    """Within one level, on at most 0.1 % of the soft pixels; elsewhere the photograph's own colours."""
    rgb = photo()
    rgb = np.asarray(Image.fromarray(rgb).resize((round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))))
    found, expected, alpha = cleaned(rgb, soft_matte(320, 320))
    soft = (alpha >= SOFTEST) & (alpha <= HARDEST)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference[soft].max(axis=1) > 0).mean() <= 1e-3
    assert np.array_equal(found[~soft], rgb[~soft])
    assert np.abs(found.astype(int) - rgb)[soft].mean() > 1  # something was done


@given(sides, sides, seeds)
@settings(max_examples=15)
def test_any_size_can_be_cleaned(height, width, seed):
    """Also a single pixel, and strips; within three levels of the host on noise, whose estimates have steep slopes."""
    assert max(edges.coarse_size(30 * height, 30 * width)) <= LEVEL_SIDE
    found, expected, _ = cleaned(noise(height, width, seed), soft_matte(40, 40))
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_images_estimated_together_are_as_alone():
    levels = [torch.rand(4, 60, 80) * 255 for _ in range(3)]
    for level in levels:
        level[3] /= 255
    together = edges.estimate(levels)
    alone = torch.cat([edges.estimate([level]) for level in levels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("output", list(OutputPlane))
@pytest.mark.parametrize("with_source_alpha", [False, True])
def test_a_plane_is_the_hosts(output, with_source_alpha):
    """Alpha beyond 0..1, alpha of the source multiplied in: equal, but for ties between two levels."""
    rng = np.random.default_rng(3)
    alpha = rng.uniform(-0.2, 1.2, (50, 70)).astype(np.float32)
    source_alpha = rng.integers(0, 256, alpha.shape, np.uint8) if with_source_alpha else None
    rgb = noise(*alpha.shape)
    if output is OutputPlane.RGBA8:
        expected = np.empty((*alpha.shape, 4), np.uint8)
        compose_rgba(rgb, alpha, source_alpha, expected, clean=False)
    else:
        expected = np.empty(alpha.shape, np.uint8 if output is OutputPlane.ALPHA8 else np.uint16)
        quantise_alpha(alpha, source_alpha, expected)
    out = torch.empty(alpha.size * OUTPUT_BYTES[output], dtype=torch.uint8)
    own = None if source_alpha is None else torch.from_numpy(source_alpha)
    pack(output, torch.from_numpy(rgb), torch.from_numpy(alpha), own, out)
    found = out.numpy().view(expected.dtype).reshape(expected.shape)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-3


def test_the_summary_measures_each_answer_and_believes_the_network_that_one_is_not_finite():
    mattes = torch.tensor([[[0.0, 0.5], [1.0, 0.5]], [[0.0, 0.0], [0.0, float("nan")]]])
    good, bad = summary(mattes, torch.tensor([True, True])).tolist()
    assert good == pytest.approx([0.5, 1.0, 0.75, 0.5, 1.0])
    assert bad[FINITE] == 0.0
    assert summary(torch.zeros(1, 2, 2), torch.tensor([False]))[0, FINITE] == 0.0


def test_the_networks_own_size_passes_unchanged():
    rgb = noise(32, 32)
    assert np.array_equal(
        resize_to_network(torch.from_numpy(rgb), (32, 32)).numpy(), image_to_network(rgb, (32, 32), Filter.BILINEAR)
    )
