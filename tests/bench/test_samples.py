"""Images to measure with: drawn ones, and the operator's."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmbgd.bench import samples as images
from rmbgd.config.load import LimitSettings
from rmbgd.errors import ConfigError


def test_drawn_images_are_the_same_everywhere() -> None:
    """Two draws agree byte for byte; two numbers do not."""
    first, second = images.drawn(2, 64), images.drawn(2, 64)

    assert [each.data for each in first] == [each.data for each in second]
    assert first[0].data != first[1].data
    assert (64, 64, 3) == first[0].rgb.shape


def test_versions_differ_as_files_and_not_as_images() -> None:
    """Each is computed, since no two files are equal, and every decoder sees the same pixels."""
    (image,) = images.drawn(1, 64)
    made = list(islice(images.versions([image]), 3))

    assert 3 == len({data for _, data in made}) == len({name for name, _ in made})
    for _, data in made:
        with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(image.data)) as original:
            assert np.array_equal(np.asarray(opened), np.asarray(original))


def test_folder_gives_what_the_service_would_take(tmp_path: Path) -> None:
    """JPEG and PNG, at any depth; what is no image is passed over."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    (tmp_path / "deep").mkdir()
    Image.new("RGBA", (20, 10), "blue").save(tmp_path / "deep" / "b.png")
    (tmp_path / "notes.txt").write_text("no image")

    found = images.from_folder(tmp_path, LimitSettings())

    assert [("a.jpg", "JPEG", (30, 40, 3)), ("deep/b.png", "PNG", (10, 20, 3))] == [
        (each.name, each.form, each.rgb.shape) for each in found
    ]


def test_folder_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand photographs are no reason to decode them all."""
    monkeypatch.setattr(images, "FOLDER_MAXIMUM", 2)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")

    assert ["0.png", "1.png"] == [each.name for each in images.from_folder(tmp_path, LimitSettings())]


@pytest.mark.parametrize(("content", "why"), [(None, "it holds no files"), (b"no image", "a: unidentified")])
def test_folder_without_images_is_told_with_its_reason(tmp_path: Path, content: bytes | None, why: str) -> None:
    """The last file's reason stands for all of them."""
    if content:
        (tmp_path / "a").write_bytes(content)

    with pytest.raises(ConfigError, match=f"no image to measure with; {why}"):
        images.from_folder(tmp_path, LimitSettings())


def test_formats_that_cannot_be_varied_are_said(tmp_path: Path) -> None:
    """Equal files would be copied, not computed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")

    with pytest.raises(ConfigError, match=r"a\.webp: measuring needs JPEG or PNG files, this is WEBP"):
        images.from_folder(tmp_path, LimitSettings())
