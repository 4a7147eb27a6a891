"""A file and a folder that another process swaps for links, thousands of times a second, while they are opened (B34).

The doors alone; the scenario does it with the whole service and fewer swaps.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.errors import ImageError
from rmbgd.fs import SystemFileSystem, folder_beneath, open_regular
from rmbgd.intake import file_checks
from rmbgd.store.claims import claim_by_rename, put_back

pytestmark = pytest.mark.integration

SECRET, OURS = b"secret " * 20, b"image " * 20
TRIES = 5_000
ENOUGH = 50  # of each outcome; a machine that is busy with other things takes more tries for them
TRIES_MAXIMUM = 1_000_000
PATHS = ("file.png", "folder/file.png")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[int]:
    """The true folder, wherever it is at the moment."""
    (tmp_path / "input" / "folder").mkdir(parents=True)
    descriptor = os.open(tmp_path / "input" / "folder", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def root(tmp_path: Path, home: int) -> Iterator[Path]:
    """The drop folder, and somebody who swaps in it."""
    root, outside = tmp_path / "input", tmp_path / "outside"
    outside.mkdir()
    for path in PATHS:
        (root / path).write_bytes(OURS)
    for name in ("secret.png", "file.png"):
        (outside / name).write_bytes(SECRET)
    command = [sys.executable, Path(__file__).with_name("swapper.py"), root, outside]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout.readline() == b"up\n"
        yield root
    for name in ("secret.png", "file.png"):
        assert (outside / name).read_bytes() == SECRET, "somebody else's file was touched"


def until_both(outcomes: Counter[str]) -> Iterator[None]:
    for number in range(TRIES_MAXIMUM):
        if number >= TRIES and min(outcomes["done"], outcomes["refused"]) >= ENOUGH:
            return
        yield
    pytest.fail(f"{outcomes}: nobody swapped")


@pytest.mark.parametrize("path", PATHS)
def test_no_link_is_ever_followed_to_read(root: Path, path: str) -> None:
    outcomes = Counter[str]()
    for _ in until_both(outcomes):
        try:
            with folder_beneath(str(root), os.path.dirname(path)) as folder:
                descriptor = open_regular(os.path.basename(path), folder=folder)
        except (ImageError, OSError):
            outcomes["refused"] += 1
            continue
        with open(descriptor, "rb") as file:
            assert file.read() == OURS
        outcomes["done"] += 1


def test_no_link_is_ever_looked_into(root: Path) -> None:
    sizes = set()
    for _ in range(TRIES):
        with contextlib.suppress(ImageError, OSError):
            version, _ = file_checks.check(str(root), PATHS[1], remote=False)
            sizes.add(version.size)
    assert sizes == {len(OURS)}


@pytest.mark.parametrize("path", PATHS)
def test_no_strangers_file_is_ever_claimed(root: Path, home: int, path: str) -> None:
    """What is moved into the claim folder is the image, or a link, which is put back and never opened."""
    fs, outcomes, claim = SystemFileSystem(), Counter[str](), root / ".rmbgd" / "1__claimed"
    for _ in until_both(outcomes):
        try:
            status = claim_by_rename(str(root), path, claim.name, fs)
        except OSError:
            outcomes["refused"] += 1
            continue
        is_link = stat.S_ISLNK(status.st_mode)
        assert is_link or claim.read_bytes() == OURS
        outcomes["refused" if is_link else "done"] += 1
        back = ""
        while not back:  # its folder may turn into a link in the middle: the file is then still where it was
            with contextlib.suppress(NotADirectoryError):
                back = put_back(str(root), claim.name, path, fs)
            assert back or os.path.lexists(claim)
        if back != path:  # its folder was a link at that moment: beside it, where the swapper does not look for it
            os.rename(root / back, os.path.basename(path), dst_dir_fd=home)
