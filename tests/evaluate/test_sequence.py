"""Sequences with truth: error at edges that move, frames that are missing, sizes that change, and `eval --sequence`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmbgd.cli.main import main
from rmbgd.errors import Exit
from rmbgd.evaluate.pairs import MaskPair
from rmbgd.evaluate.sequence import by_sequence, moving_edge_error, size_changes
from tests.imaging.builders import saved


def disc(at: float, radius: float = 20) -> np.ndarray:
    y, x = np.mgrid[:80, :120]
    return np.clip(radius + 0.5 - np.hypot(x - at, y - 40), 0, 1).astype(np.float32)


def test_edges_that_stand_still_have_no_error() -> None:
    assert moving_edge_error(disc(50) * 0, disc(50), disc(50)) is None


def test_a_late_matte_has_a_larger_error_at_moving_edges() -> None:
    truth = disc(54)
    errors = [moving_edge_error(disc(at), truth, disc(50)) for at in (54, 53, 50)]
    assert 0 == errors[0] < errors[1] < errors[2]


def test_what_is_far_from_moving_edges_does_not_count() -> None:
    alpha = disc(54)
    alpha[:, :10] = alpha[35:45, 50:58] = 0.5
    assert 0 == moving_edge_error(alpha, disc(54), disc(50))


def pairs(*names: str) -> list[MaskPair]:
    return [MaskPair(name, f"/t/{name}.png", f"/p/{name}.png", name.partition("/")[0]) for name in names]


@pytest.mark.parametrize("step", [1, 12])
def test_gaps_break_the_sequence_and_are_said(step: int) -> None:
    numbers = [n * step for n in (1, 2, 3, 6, 7)]
    found, missing = by_sequence(pairs(*(f"shop/walk/f_{n}" for n in numbers), "shop/pan/x"))
    assert {"shop/walk", "shop/pan"} == {frame.category for frame, _ in found}
    starts = [frame.name for frame, before in found if before is None]
    assert ["shop/pan/x", f"shop/walk/f_{step}", f"shop/walk/f_{6 * step}"] == starts
    assert [f"frames are missing between shop/walk/f_{3 * step} and f_{6 * step}"] == missing


def test_names_without_numbers_have_no_gaps_and_categories_stay() -> None:
    given = pairs("a/one", "a/two", "b/three")
    found, missing = by_sequence(given, categories=True)
    assert ([], ["a", "a", "b"]) == (missing, [frame.category for frame, _ in found])
    assert [None, "a/one", None] == [before and before.name for _, before in found]


def test_sizes_that_change_are_said_within_a_sequence_alone() -> None:
    sizes = [("a/1", 8, 4), ("a/2", 8, 4), ("a/3", 4, 4), ("b/1", 9, 9)]
    assert ["a/3 has 4 x 4 pixels, the frame before it 8 x 4"] == size_changes(sizes)


@pytest.fixture
def rmbgd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(each) for each in arguments])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A disc that moves; the matte of `late` is a frame behind."""
    for name, behind in (("late", 4), ("right", 0)):
        for number in range(1, 5):
            for side, at in (("masks", 40 + 4 * number - behind), ("truth", 40 + 4 * number)):
                path = tmp_path / side / name / f"frame_{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(saved((255 * disc(at)).astype(np.uint8), "PNG"))
    return tmp_path / "masks", tmp_path / "truth"


def test_sequences_are_rows_with_their_mean(folders: tuple[Path, Path], rmbgd: Any) -> None:
    status, out, err = rmbgd("eval", "--sequence", *folders)
    assert (Exit.OK, "") == (status, err)
    lines = [line.split("  ") for line in out.splitlines()]
    named = ("late", "right", "mean of sequences")
    rows = {line[0]: [float(each) for each in " ".join(line).split()[-2:]] for line in lines if line[0] in named}
    assert [0, 0] == rows["right"]
    assert rows["late"][1] > 0.05
    assert [pytest.approx(each / 2, abs=0.01) for each in rows["late"]] == rows["mean of sequences"]


def test_missing_frames_and_other_sizes_end_with_status_1(folders: tuple[Path, Path], rmbgd: Any) -> None:
    masks, truth = folders
    (masks / "right" / "frame_0002.png").unlink()
    (truth / "late" / "frame_0003.png").unlink()
    (masks / "right" / "frame_0004.png").write_bytes(saved(np.zeros((4, 4), np.uint8), "PNG"))
    status, out, err = rmbgd("eval", "--sequence", *folders)
    assert status == Exit.FAILED
    assert "rmbgd eval: frames are missing between late/frame_0002 and frame_0004\n" == err
    assert "right/frame_0002: missing_prediction: " in out
    assert "right/frame_0004: size_differs: " in out
