"""Thumbnails: what they show, of which file, and what hostile files cannot do."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.report.page import prepare
from rmbgd.report.thumbnails import PIXELS, SIDE, Thumbnail, of_original, of_output, thumbnail
from rmbgd.store.reading import Ending, oddest, reading
from tests.imaging.builders import cmyk_profile, decoded, exif, ihdr, photo, saved
from tests.support.shared_data import shared
from tests.support.workspace import Workspace, done, torn

LIMITS = LimitSettings()


@pytest.fixture(scope="module", autouse=True)
def decoders() -> None:
    prepare(LIMITS)


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()


def pixels(found: Thumbnail | None, mode: str = "RGB") -> np.ndarray:
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found.uri.removeprefix("data:image/webp;base64,")))) as image:
        assert image.format == "WEBP"
        assert image.size == (found.width, found.height)
        return np.asarray(image.convert(mode)).astype(int)


def endings(it: Workspace) -> list[Ending]:
    with reading(it.ledger.path) as db:
        return oddest(db, 0, 9)


def ended(it: Workspace) -> Ending:
    return endings(it)[0]


@pytest.mark.parametrize(
    "data",
    [
        saved(photo(900, 1200), "JPEG"),
        saved(photo(900, 1200), "JPEG", exif=exif(orientation=6)),
        saved(photo(900, 1200), "TIFF"),
        saved(photo(90, 120), "PNG"),
        saved(Image.fromarray(photo(900, 1200)).convert("P"), "PNG"),
        saved(Image.fromarray(photo(900, 1200)).convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        saved(photo(900, 1200)[..., 0].astype(np.uint16) * 257, "PNG"),
        saved(photo(900, 1200), "WEBP", lossless=True),
    ],
    ids=["jpeg", "turned", "tiff", "small", "palette", "cmyk", "16-bit", "webp"],
)
def test_a_thumbnail_shows_the_image(data: bytes) -> None:
    """As the pipeline decodes it, upright and small."""
    found, (rgb, _, _) = thumbnail(data, LIMITS), decoded(data)
    height, width = rgb.shape[:2]
    assert max(found.width, found.height) == min(SIDE, max(width, height))
    assert abs(found.width / found.height - width / height) < 0.02
    small = Image.fromarray(rgb).resize((found.width, found.height), Image.Resampling.BOX)
    assert np.abs(pixels(found) - np.asarray(small).astype(int)).mean() < 6


def test_a_cutout_keeps_its_alpha() -> None:
    cutout = np.dstack([photo(600, 600), np.zeros((600, 600), np.uint8)])
    cutout[:300, :, 3] = 255
    alpha = pixels(thumbnail(saved(cutout, "PNG"), LIMITS), "RGBA")[..., 3]
    assert (alpha[: SIDE // 2 - 3].min(), alpha[SIDE // 2 + 3 :].max()) == (255, 0)


def test_two_hundred_images_make_no_large_page() -> None:
    """Two thumbnails each, of real photographs, in 6 MB."""
    photographs = sorted((shared("eval") / "photos").glob("*.jpg"))[::6]
    average = sum(len(thumbnail(path.read_bytes(), LIMITS).uri) for path in photographs) / len(photographs)
    assert 2 * 200 * average < 6e6


def test_a_bomb_is_refused_by_its_header() -> None:
    side = int(PIXELS**0.5) + 1
    with pytest.raises(ImageError) as error:
        thumbnail(b"\x89PNG\r\n\x1a\n" + ihdr(side, side, 8, 6) + bytes(100), LIMITS)
    assert error.value.reason is Reason.TOO_LARGE


@pytest.mark.slow
def test_hostile_files_give_a_thumbnail_or_an_image_error() -> None:
    shown = 0
    for path in sorted((shared("hostile") / "files").iterdir()):
        try:
            shown += max(pixels(thumbnail(path.read_bytes(), LIMITS)).shape) <= SIDE
        except ImageError:
            continue
    assert shown > 50


@pytest.mark.parametrize(("settings", "role"), [({}, "done"), ({"originals": "keep"}, "input")])
def test_original_and_output_are_found_where_they_went(tmp_path: Path, settings: dict[str, object], role: str) -> None:
    it = Workspace(tmp_path, **settings)
    original, cutout = saved(photo(60, 80), "PNG"), saved(np.zeros((60, 80, 4), np.uint8), "PNG")
    it.drop("s/a.png", original)
    it.work("s/a.png", cutout)
    assert it.files(role) == {"s/a.png": original}
    image = ended(it)
    assert of_original(image, it.folder, LIMITS) == thumbnail(original, LIMITS)
    assert of_output(image, it.folder, LIMITS) == thumbnail(cutout, LIMITS)
    it.close()


def test_an_original_whose_name_was_taken_in_done_is_found(it: Workspace) -> None:
    first, second = saved(photo(60, 80), "PNG"), saved(photo(60, 90, 1), "PNG")
    for data in (first, second):
        it.drop("a.png", data)
        it.work("a.png", b"cutout" + data)
    assert set(it.files("done")) == {"a.png", "a~2.png"}
    images = endings(it)
    assert [of_original(image, it.folder, LIMITS) for image in images] == [
        thumbnail(d, LIMITS) for d in (second, first)
    ]
    assert of_output(images[1], it.folder, LIMITS) is None, "the second one's cutout stands there now"


def test_a_refused_original_is_found_in_failed(it: Workspace) -> None:
    it.drop("a.png", saved(photo(60, 80), "PNG"))
    job = it.claim("a.png")
    it.publisher.quarantine.set_aside(job, torn(job))
    image = ended(it)
    assert of_original(image, it.folder, LIMITS) is not None
    assert of_output(image, it.folder, LIMITS) is None


def test_what_is_gone_or_a_link_is_not_shown(it: Workspace, tmp_path: Path) -> None:
    """Root runs this: a link in a folder of others must not show what they may not read."""
    data = saved(photo(60, 80), "PNG")
    it.drop("s/a.png", data)
    it.publish(job := it.claim("s/a.png"), data, outcome=done(job))
    image = ended(it)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "a.png").write_bytes(data)
    placed = [it.roots["done"] / "s", it.roots["output"] / "s"]
    for folder in placed:
        (folder / "a.png").unlink()
    assert [of_original(image, it.folder, LIMITS), of_output(image, it.folder, LIMITS)] == [None, None]
    for folder in placed:
        os.symlink(secret / "a.png", folder / "a.png")
    for side in (of_original, of_output):
        with pytest.raises(ImageError, match="link"):
            side(image, it.folder, LIMITS)
    for folder in placed:
        (folder / "a.png").unlink()
        folder.rmdir()
        os.symlink(secret, folder)
    assert [of_original(image, it.folder, LIMITS), of_output(image, it.folder, LIMITS)] == [None, None]
