"""Masks as they are read from files, and what becomes of pairs that cannot be compared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rmbgd.config.load import LimitSettings
from rmbgd.errors import Reason
from rmbgd.evaluate.metrics import figures
from rmbgd.evaluate.pairs import MaskPair
from rmbgd.evaluate.run import COLOUR, MISSING, SIZE, UNREADABLE, Judge, UnusablePair, read_matte
from tests.evaluate.cases import case
from tests.imaging.builders import photo, saved

LIMITS = LimitSettings()
SHARES = np.linspace(0, 1, 48 * 64, dtype=np.float64).reshape(48, 64)
GREY8, GREY16 = (np.rint(SHARES * top).astype(kind) for top, kind in ((255, np.uint8), (65535, np.uint16)))


def written(path: Path, pixels: NDArray[Any], form: str = "PNG", **options: Any) -> str:
    path.write_bytes(saved(pixels, form, **options))
    return str(path)


def cutout(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.dstack([photo(*alpha.shape), alpha])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_masks_of_16_bits_keep_them(form: str, tmp_path: Path) -> None:
    alpha = read_matte(written(tmp_path / "a", GREY16, form), LIMITS).alpha
    assert (np.float32, 1.0) == (alpha.dtype, alpha.max())
    assert np.abs(alpha - SHARES).max() < 1 / 65535


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "WEBP", "JPEG"])
def test_grey_masks_of_8_bits_are_read_in_every_format(form: str, tmp_path: Path) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    pixels = GREY8 if form != "WEBP" else np.dstack([GREY8] * 3)
    alpha = read_matte(written(tmp_path / "a", pixels, form, **options), LIMITS).alpha
    assert np.abs(alpha - GREY8 / 255).max() < (0.02 if form == "JPEG" else 1e-6)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_of_cutouts_the_alpha_channel_counts(form: str, tmp_path: Path) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    matte = read_matte(written(tmp_path / "a", cutout(GREY8), form, **options), LIMITS)
    assert (matte.alpha == GREY8.astype(np.float32) / np.float32(255)).all()
    assert matte.colours is not None


def test_a_mask_saved_as_a_colour_jpeg_is_grey(tmp_path: Path) -> None:
    path = written(tmp_path / "a", np.dstack([GREY8] * 3), "JPEG", quality=75)
    assert np.abs(read_matte(path, LIMITS).alpha - GREY8 / 255).mean() < 0.01


def test_a_mask_that_is_stored_lying_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for pixels in (GREY8, GREY16):
        path = written(tmp_path / "a", pixels, "PNG", exif=exif)
        assert np.abs(read_matte(path, LIMITS).alpha - np.rot90(SHARES, -1)).max() < 1 / 500


def test_links_to_masks_are_followed(tmp_path: Path) -> None:
    written(tmp_path / "a.png", GREY8)
    (tmp_path / "b.png").symlink_to("a.png")
    assert GREY8.shape == read_matte(str(tmp_path / "b.png"), LIMITS).alpha.shape


def outcome(folder: Path, prediction: bytes | None, truth: bytes, **options: Any) -> tuple[str | None, str]:
    """(reason, detail)"""
    paths = [folder / "prediction.png", folder / "truth.png"]
    for path, data in zip(paths, (prediction, truth), strict=True):
        path.write_bytes(data or b"")
    pair = MaskPair("x", str(paths[1]), None if prediction is None else str(paths[0]))
    found = Judge(LimitSettings(**options)).one(pair)
    assert bool(found.figures) is (found.reason is None)
    return found.reason, found.detail or ""


def test_pairs_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    mask, other, colour = saved(GREY8, "PNG"), saved(GREY8[:, :-1], "PNG"), saved(photo(48, 64), "PNG")
    assert (None, "") == outcome(tmp_path, mask, mask)
    assert (MISSING, "there is no prediction of this name") == outcome(tmp_path, None, mask)
    assert (SIZE, "the prediction has 63 x 48 pixels, the truth 64 x 48") == outcome(tmp_path, other, mask)
    assert COLOUR == outcome(tmp_path, colour, mask)[0] == outcome(tmp_path, mask, colour)[0]
    reason, detail = outcome(tmp_path, mask[:-20], mask)
    assert (Reason.TRUNCATED, True) == (reason, detail.startswith(str(tmp_path / "prediction.png: ")))
    assert Reason.UNIDENTIFIED == outcome(tmp_path, mask, b"no image, but long enough")[0]
    assert Reason.EMPTY == outcome(tmp_path, b"", mask)[0]
    assert Reason.TOO_LARGE == outcome(tmp_path, mask, mask, pixels=1000)[0]


def test_what_is_no_file_or_gone_is_unreadable(tmp_path: Path) -> None:
    truth = written(tmp_path / "truth.png", GREY8)
    os.mkfifo(tmp_path / "pipe.png")
    judge = Judge(LIMITS)
    reasons = [judge.one(MaskPair("x", truth, str(tmp_path / name))).reason for name in ("pipe.png", "gone.png")]
    assert [Reason.NOT_REGULAR, UNREADABLE] == reasons


@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_the_order_of_the_pairs(workers: int, tmp_path: Path) -> None:
    """Whichever ends first."""
    large, small = (written(tmp_path / f"{n}.png", np.full((n, n), 255, np.uint8)) for n in (400, 4))
    pairs = [MaskPair(str(number), path, path) for number, path in enumerate([large, small] * 10)]
    found = list(Judge(LIMITS).all([(pair, None) for pair in pairs], workers))
    assert pairs == [each.pair for each in found]
    assert [400, 4] * 10 == [each.width for each in found]


def test_pixels_that_nobody_knows_are_background_in_both(tmp_path: Path) -> None:
    found, truth = case("noise")
    unknown = truth.copy()
    unknown[30:60, 50:90] = 128
    paths = [written(tmp_path / name, pixels) for name, pixels in (("a", found), ("b", unknown))]
    left = [np.where(unknown == 128, 0, pixels).astype(np.float32) / 255 for pixels in (found, truth)]
    judged = Judge(LIMITS, ignore=128).one(MaskPair("x", paths[1], paths[0]))
    assert figures(left[0], left[1]) == pytest.approx(judged.figures)


def test_frames_have_flicker_and_cutouts_a_rim(tmp_path: Path) -> None:
    found, truth = case("soft")
    paths = [written(tmp_path / name, cutout(pixels)) for name, pixels in (("a", found), ("b", truth))]
    pair = MaskPair("x", paths[1], paths[0])
    assert "dtssd" not in Judge(LIMITS).one(pair).figures
    again = Judge(LIMITS).one(pair, before=pair).figures
    assert 0 == again["dtssd"]
    assert 0 < again["rim_error"] < 0.5
    assert "dtssd" not in Judge(LIMITS).one(pair, before=MaskPair("w", paths[1], None)).figures
    grey = written(tmp_path / "c", truth)
    assert "rim_error" not in Judge(LIMITS).one(MaskPair("x", grey, paths[0])).figures


def test_masks_with_a_palette_are_read_by_its_colours(tmp_path: Path) -> None:
    """Of a film's object masks, say, whose palette is red and green: those are no greys."""
    image = Image.fromarray(GREY8).convert("P")
    image.save(tmp_path / "a.png")
    assert np.abs(read_matte(str(tmp_path / "a.png"), LIMITS).alpha - GREY8 / 255).max() < 1e-6
    image.putpalette([0, 0, 0, 128, 0, 0] * 128)
    image.save(tmp_path / "a.png")
    with pytest.raises(UnusablePair, match=COLOUR):
        read_matte(str(tmp_path / "a.png"), LIMITS)
