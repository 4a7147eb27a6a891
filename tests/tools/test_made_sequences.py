"""Made sequences: the same again, exact alpha, cuts where they are said to be, files in number order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tools.benches import temporal
from tools.made_sequences import KINDS, Material, frames, material, write

SIZE = (192, 108)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.mktemp("none") / "absent")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_sequences(kind: str, shapes: Material) -> None:
    one, two, other = (list(frames(kind, seed, shapes, count=4, size=SIZE)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    assert not np.array_equal(one[0][0], other[0][0])
    for rgb, alpha in one:
        assert ((108, 192, 3), (108, 192), np.uint8) == (rgb.shape, alpha.shape, alpha.dtype)
        assert 0.02 < (alpha > 127).mean() < 0.7


def test_only_what_moves_changes_the_truth(shapes: Material) -> None:
    moved = {}
    for kind in KINDS:
        truths = [alpha.astype(int) for _, alpha in frames(kind, 3, shapes, count=6, size=SIZE)]
        moved[kind] = max(np.abs(b - a).mean() for a, b in pairwise(truths))
    assert moved.pop("rest") == 0 < min(moved.values())
    assert moved["cut"] == max(moved.values())


def test_files_have_numbers(shapes: Material, tmp_path: Path) -> None:
    assert 3 == write(tmp_path, "pan", frames("pan", 1, shapes, count=3, size=SIZE), "jpg")
    assert ["frame_0001.jpg", "frame_0002.jpg", "frame_0003.jpg"] == sorted(
        x.name for x in (tmp_path / "pan").iterdir()
    )
    assert 3 == len(list((tmp_path / "truth" / "pan").glob("frame_*.png")))


def test_an_unknown_kind_is_refused(shapes: Material) -> None:
    with pytest.raises(ValueError, match="no kind 'swim'"):
        next(frames("swim", 1, shapes))


def test_the_bench_tells_a_filter_from_a_ghost_and_from_ice(shapes: Material) -> None:
    shown = list(frames("walk", 1, shapes, count=8, size=(320, 180)))
    random = np.random.default_rng(1)
    rgb, truth = (np.array([each[side] for each in shown]) for side in (0, 1))
    noisy = np.clip(truth + random.normal(0, 40, (8, 1, 1)) * (truth > 0), 0, 255).astype(np.uint8)
    sequence = temporal.MadeSequence("walk", 1, rgb, truth, noisy)
    found = {name: temporal.judged(sequence, begun(sequence)) for name, begun in temporal.FILTERS.items()}
    assert found["steady"]["warped_error"] < 0.7 * found["per frame"]["warped_error"]
    assert found["ema"]["edges"] > 1.2 * found["steady"]["edges"]
    assert found["frozen"]["lag"] > 0.5 > abs(found["steady"]["lag"])
