"""Names that are no images: matched whatever their case, and never a name that a camera or a shop would give."""

from __future__ import annotations

import pytest

from rmbgd.intake.ignored import Ignored

CONTROL_FILES = """
    x.jpg.aria2 x.jpg.lftp-pget-status x.jpg.st x.jpg.!qB x.jpg.!QB x.jpg.!ut x.jpg.bc! x.opdownload x.fdmdownload
    x.jpg.xltd x.jpg.td x.jpg.dtapart x.mp4.ytdl x.inprogress x.jpg.incomplete x.jpg.uploading x.jpg.lock x.crdownload
    x.jpg.kate-swp .x.jpg.kate-swp x.jpg.goutputstream-AB12CD x.jpg.sb-1a2b3c4d-AbCdEf x.sb-1234-abc #x.jpg# .#x.jpg
    x.jpg~ ~$x.jpg
    x.jpg.PART .hidden Thumbs.db thumbs.DB x.xmp x.jpg.xmp x.jpg.json x.md5 x.SHA256
"""
IMAGES = "x.jpg download.jpg x.part.jpg aria2.png lock.png #1.jpg st.jpg x incomplete uploading.tif a~2.jpg"


@pytest.mark.parametrize("name", [*CONTROL_FILES.split(), "Icon\r"])
def test_control_files_and_leftovers_are_no_images(name: str) -> None:
    assert Ignored().path(f"a/{name}")


@pytest.mark.parametrize("name", IMAGES.split())
def test_images_with_names_alike_are_images(name: str) -> None:
    assert not Ignored().path(name)


def test_folders_of_systems_are_left_alone() -> None:
    for folder in ("System Volume Information", "$Recycle.Bin", "@eadir", ".git", ".rmbgd", "lost+found"):
        assert Ignored().path(f"{folder}/x.jpg")
    assert not Ignored().path("Icons/x.jpg")


def test_operators_add_patterns() -> None:
    assert Ignored(["draft-*"]).path("DRAFT-1/x.jpg")
