"""The temporal filter: flicker is damped, what is new shows at once, what moves is not late, cuts begin anew."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rmbgd.sequence.temporal import (
    WEIGHT,
    FrameFigures,
    Memory,
    guide_of,
    looked_ahead,
    measured,
    steady,
    unfiltered,
)

Bytes = NDArray[np.uint8]
HEIGHT, WIDTH = 180, 320
SEEDS = st.integers(0, 2**32 - 1)


def texture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Bytes:
    coarse = np.random.default_rng(seed).integers(20, 235, (height // 6, width // 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def film(across: float, count: int = 6, *, seed: int = 1, pan: bool = False) -> list[tuple[Bytes, Bytes]]:
    """A textured disc that moves by `across` pixels a frame before a texture that stands still, or moves with it."""
    back, front = texture(seed), texture(seed + 1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = []
    for number in range(count):
        away = across * number
        alpha = np.clip((48 - np.hypot(x - 100 - away, y - 90)) / 6, 0, 1)[:, :, None]
        shift = np.array([[1.0, 0, away], [0, 1, 0]])
        moved = cv2.warpAffine(front, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_WRAP)
        behind = cv2.warpAffine(back, shift, (WIDTH, HEIGHT), borderMode=cv2.BORDER_WRAP) if pan else back
        rgb = np.rint(alpha * moved + (1 - alpha) * behind).astype(np.uint8)
        found.append((rgb, np.rint(255 * alpha[:, :, 0]).astype(np.uint8)))
    return found


def flickering(alpha: Bytes, random: np.random.Generator, by: float = 25) -> Bytes:
    """With coarse noise, as networks have it, at the outline."""
    grain = cv2.resize(random.normal(0, by, (HEIGHT // 10, WIDTH // 10)), (WIDTH, HEIGHT))
    near = cv2.dilate(cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3))), np.ones((9, 9))) > 0
    return np.clip(alpha + np.where(near, grain, 0), 0, 255).astype(np.uint8)


def through(frames: list[tuple[Bytes, Bytes]], **options: object) -> tuple[list[Bytes], list[FrameFigures]]:
    memory: Memory | None = None
    published, figures = [], []
    for rgb, alpha in frames:
        out, memory, found = steady(rgb, alpha, memory, **options)
        published.append(out)
        figures.append(found)
    return published, figures


def off(one: Bytes, other: Bytes) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize(
    ("size", "small"), [((720, 1280), (360, 640)), ((90, 61), (90, 61)), ((1000, 700), (640, 448))]
)
def test_a_guide_has_its_longest_side(size: tuple[int, int], small: tuple[int, int]) -> None:
    guide = guide_of(np.full((*size, 3), 77, np.uint8))
    assert (small, np.uint8, 77) == (guide.shape, guide.dtype, guide.max())


def test_the_first_frame_is_published_as_it_is() -> None:
    rgb, alpha = film(0, 1)[0]
    out, memory, figures = steady(rgb, alpha, None)
    assert np.array_equal(out, alpha)
    assert out is not alpha
    assert (FrameFigures(None, None, None, "first"), out.shape) == (figures, memory.alpha.shape)


def test_an_equal_frame_changes_nothing() -> None:
    published, figures = through(film(0, 3))
    assert off(published[2], published[0]) < 0.02
    assert figures[2].reset is None
    assert figures[2].still_change == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("across", [0, 1.5, 4])
@pytest.mark.parametrize("plate", [None, "median"])
def test_flicker_is_damped_and_edges_are_not_late(across: float, plate: str | None) -> None:
    random, true = np.random.default_rng(3), film(across, 10, pan=True)
    noisy = [(rgb, flickering(alpha, random)) for rgb, alpha in true]
    published, figures = through(noisy, plate=plate)
    flicker = [
        np.mean([off(now.astype(float) - t1, last.astype(float) - t0) for now, last, t1, t0 in
                 zip(some[1:], some, [t for _, t in true[1:]], [t for _, t in true], strict=False)])
        for some in (published, [alpha for _, alpha in noisy])
    ]  # fmt: skip
    assert flicker[0] < (0.8 if across else 0.5) * flicker[1]
    errors = [
        np.mean([off(one, alpha) for one, (_, alpha) in zip(some, true, strict=True)])
        for some in (published, [alpha for _, alpha in noisy])
    ]
    assert errors[0] < errors[1]
    lags = [each.lag for each in figures if each.lag is not None]
    assert bool(lags) == (across > 0)
    assert all(abs(lag) < 0.3 for lag in lags)


def test_a_frozen_matte_is_late() -> None:
    """Although it is the steadiest."""
    frames = film(4, 6)
    memory: Memory | None = None
    lags = []
    for rgb, alpha in frames:
        memory, found = measured(rgb, alpha, frames[0][1], memory)
        lags.append(found.lag)
    assert lags[0] is None
    assert min(lag for lag in lags[1:] if lag is not None) > 0.6


def test_a_matte_that_nobody_filters_has_no_lag() -> None:
    memory: Memory | None = None
    for rgb, alpha in film(4, 4):
        out, memory, found = unfiltered(rgb, alpha, memory)
        assert np.array_equal(out, alpha)
        assert found.lag in (None, 0)


def test_a_new_object_shows_at_once() -> None:
    (rgb, alpha), *_ = film(0, 1)
    _, memory, _ = steady(rgb, alpha, None)
    new, seen = rgb.copy(), alpha.copy()
    new[40:140, 220:300] = texture(9)[40:140, 220:300] // 3 * 2 + 80
    seen[40:140, 220:300] = 255
    out, _, figures = steady(new, seen, memory)
    assert figures.reset is None
    assert out[60:120, 240:280].mean() > 245


def test_a_cut_begins_anew() -> None:
    before, after = film(0, 1)[0], film(0, 1, seed=40)[0]
    dark = (after[0] // 4, after[1])
    _, memory, _ = steady(*before, None)
    for rgb, alpha in (after, dark):
        out, _, figures = steady(rgb, alpha, memory)
        assert "cut" == figures.reset
        assert np.array_equal(out, alpha)


def test_another_size_begins_anew() -> None:
    rgb, alpha = film(0, 1)[0]
    _, memory, _ = steady(rgb, alpha, None)
    for part in (np.s_[:100], np.s_[:, :200]):
        out, _, figures = steady(np.ascontiguousarray(rgb[part]), np.ascontiguousarray(alpha[part]), memory)
        assert ("size", True) == (figures.reset, np.array_equal(out, alpha[part]))


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 3), (17, 23), (20, 900), (700, 31), (36, 36)])
def test_the_smallest_frames_pass(shape: tuple[int, int]) -> None:
    rgb, alpha = np.full((*shape, 3), 90, np.uint8), np.full(shape, 130, np.uint8)
    published, _ = through([(rgb, alpha)] * 2, plate="median")
    assert np.array_equal(published[1], alpha)


EVERY_SIZE = """
import numpy as np
from rmbgd.sequence.temporal import steady

rng = np.random.default_rng(7)
sides = [1, 7, 8, 9, 15, 16, 17, 20, 23, 24, 25, 30, 31, 32, 33, 48, 63, 64, 80, 90, 91, 96, 100, 129, 640, 1300]
for height in sides:
    for width in sides:
        if height * width <= 200_000:
            memory = None
            for _ in range(2):
                rgb, alpha = rng.integers(0, 256, (height, width, 3), np.uint8), np.full((height, width), 99, np.uint8)
                memory = steady(rgb, alpha, memory)[1]
"""


@pytest.mark.integration
def test_no_size_of_a_frame_crashes() -> None:
    """OpenCV's flow reads beyond low frames where it chooses its scales by itself. In a process that may die of it."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_PERTURB_": "165"}
    done = subprocess.run([sys.executable, "-c", EVERY_SIZE], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_alpha_and_plate_must_have_the_size_of_the_frame() -> None:
    rgb, alpha = film(0, 1)[0]
    with pytest.raises(ValueError, match="alpha is"):
        steady(rgb, alpha[1:], None)
    with pytest.raises(ValueError, match="the plate is"):
        steady(rgb, alpha, None, plate=np.zeros((3, 3), np.uint8))


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([None, "median"]))
def test_the_past_weighs_no_more_than_its_bound(seed: int, plate: str | None) -> None:
    """A frame that stands still, whatever the mattes: the published one lies within WEIGHT of the way to the past."""
    random = np.random.default_rng(seed)
    rgb = texture(seed)
    past, present = (
        np.repeat(np.repeat(random.integers(0, 256, (9, 16)), 20, 0), 20, 1).astype(np.uint8) for _ in "ab"
    )
    _, memory, _ = steady(rgb, past, None, plate=plate)
    out, _, _ = steady(rgb, present, memory, plate=plate)
    inner = np.s_[10::20, 10::20]  # far from other values
    p, n, o = (each[inner].astype(float) for each in (past, present, out))
    assert (
        (np.abs(o - n) <= WEIGHT * np.abs(p - n) + 1).all()
        if plate is None
        else (np.abs(o - n) <= WEIGHT * 255 + 1).all()
    )
    assert np.abs(o - n).max() > 0.3 * np.abs(p - n).max()


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([None, "median"]))
def test_equal_inputs_give_equal_outputs_and_stay_as_they_are(seed: int, plate: str | None) -> None:
    random = np.random.default_rng(seed)
    frames = [(rgb, flickering(alpha, random)) for rgb, alpha in film(2, 3, seed=seed % 1000)]
    kept = [(rgb.copy(), alpha.copy()) for rgb, alpha in frames]
    for rgb, alpha in frames:
        rgb.flags.writeable = alpha.flags.writeable = False
    one, two = through(frames, plate=plate), through(frames, plate=plate)
    assert one[1] == two[1]
    assert all(np.array_equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert all(
        np.array_equal(a, b) for pair, same in zip(frames, kept, strict=True) for a, b in zip(pair, same, strict=True)
    )


def test_a_memory_without_its_small_matte_gives_the_same() -> None:
    """A memory may come from a file that has only what must be kept."""
    (rgb, alpha), (then, later) = film(2, 2)
    _, memory, _ = steady(rgb, alpha, None)
    assert np.array_equal(steady(then, later, memory)[0], steady(then, later, replace(memory, small=None))[0])


def test_a_known_empty_scene_takes_ghosts_away() -> None:
    """What the network sees for a moment in the empty scene is halved at once; the subject keeps its alpha."""
    (rgb, alpha), *_ = film(0, 1)
    empty = guide_of(texture(1))
    _, memory, _ = steady(rgb, alpha, None, plate=empty)
    ghost = alpha.copy()
    ghost[130:170, 220:300] = 200
    with_plate, _, _ = steady(rgb, ghost, memory, plate=empty)
    assert with_plate[140:160, 230:290].mean() < 90
    assert off(with_plate[50:130, 60:140], alpha[50:130, 60:140]) < 1


def test_a_plate_is_learned_where_there_is_background_alone() -> None:
    frames = film(0, 4)
    memory: Memory | None = None
    for rgb, alpha in frames:
        _, memory, _ = steady(rgb, alpha, memory, plate="median")
    assert memory is not None
    assert memory.plate is not None
    assert (memory.plate[60:120, 70:130] == 255).all()
    assert np.abs(memory.plate[:, 200:].astype(int) - np.minimum(guide_of(frames[0][0]), 250)[:, 200:]).max() <= 1


def ahead(frames: list[tuple[Bytes, Bytes]], count: int) -> list[Bytes]:
    """What a film that is known `count` frames ahead becomes."""
    seen = [(rgb, looked_ahead(frames[at : at + count + 1])) for at, (rgb, _) in enumerate(frames)]
    return through(seen)[0]


@pytest.mark.parametrize("across", [0, 1.5])
def test_frames_ahead_damp_flicker_further(across: float) -> None:
    random, true = np.random.default_rng(5), film(across, 12, pan=True)
    noisy = [(rgb, flickering(alpha, random)) for rgb, alpha in true]
    flicker = [
        np.mean([off(some[at].astype(float) - true[at][1], some[at - 1].astype(float) - true[at - 1][1]) for at in
                 range(2, 10)])
        for some in (through(noisy)[0], ahead(noisy, 1), ahead(noisy, 2))
    ]  # fmt: skip
    assert flicker[0] > 1.1 * flicker[1]
    assert flicker[1] > flicker[2]


def test_no_frames_ahead_change_nothing_and_a_cut_is_not_looked_over() -> None:
    frames = film(2, 4)
    assert looked_ahead(frames[:1]) is frames[0][1]
    assert all(np.array_equal(one, other) for one, other in zip(ahead(frames, 0), through(frames)[0], strict=True))
    other = (texture(50), np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert np.array_equal(looked_ahead([frames[0], other]), frames[0][1])
