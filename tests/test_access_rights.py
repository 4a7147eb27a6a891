"""What is said of a right that is missing, as the kernel sees it: real owners, modes and ACLs, as another user."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmbgd.access_rights import CHANGE, READ, mend, why_unchangeable, why_unreadable

NOBODY, OTHER = 65534, 4242
DENIED = PermissionError(errno.EACCES, "Permission denied")
WHOLE = 0xFFFFFFFF  # the id of entries that have none

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that belong to others")


@pytest.fixture
def place() -> Iterator[Path]:
    """Where everybody may look, which pytest's own folders do not allow."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@contextmanager
def nobody() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def make(path: Path, mode: int, owner: int = OTHER, acl: list[tuple[int, int, int]] | None = None) -> Path:
    """A file, or a folder where the name has no dot; the ACL's entries are (tag, rights, id)."""
    path.touch() if path.suffix else path.mkdir()
    os.chown(path, owner, OTHER)
    path.chmod(mode)
    if acl:
        entries = (struct.pack("<HHI", *entry) for entry in acl)
        try:
            os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(entries))
        except OSError as error:
            pytest.skip(f"no ACLs here: {error}")
    return path


def entries(tag: int, who: int, rights: int, mask: int) -> list[tuple[int, int, int]]:
    """An ACL with one entry beside those that every ACL has."""
    common = [(0x01, 7, WHOLE), (0x04, 5, WHOLE), (0x10, mask, WHOLE), (0x20, 0, WHOLE)]
    return sorted([*common, (tag, rights, who)])


def test_a_private_file_is_explained_by_how_it_came_to_be(place: Path) -> None:
    path = make(place / "a.jpg", 0o600)
    with nobody():
        said = why_unreadable(DENIED, str(path))
    assert said.startswith("Permission denied; ")
    assert f"{path} belongs to user {OTHER}, mode 0600, and user nobody may not read it" in said
    assert "rsync --inplace" in said
    assert f"chmod g+r '{path}'" in said
    path.chmod(0o640)
    with nobody():
        assert "rsync" not in why_unreadable(DENIED, str(path))


@pytest.mark.parametrize(("tag", "who"), [(0x02, NOBODY), (0x08, NOBODY)])
def test_a_mask_that_takes_a_given_right_away_is_named_with_the_cure(place: Path, tag: int, who: int) -> None:
    masked, free = (make(place / name, 0o750, acl=entries(tag, who, 7, mask)) for name, mask in (("m", 5), ("f", 7)))
    with nobody():
        said = why_unchangeable(DENIED, map(str, (masked, free, masked)))
    assert said.count(f"its ACL gives that right and its mask r-x takes it away: setfacl -m m::rwx '{masked}'") == 1
    assert str(free) not in said


@pytest.mark.parametrize(("who", "rights"), [(OTHER, 7), (NOBODY, 5)])
def test_a_mask_is_not_blamed_for_a_right_that_nobody_gave(place: Path, who: int, rights: int) -> None:
    path = make(place / "m", 0o750, acl=entries(0x02, who, rights, 5))
    with nobody():
        said = why_unchangeable(DENIED, [str(path)])
    assert "may not change it" in said
    assert "mask" not in said


def test_only_our_own_is_mended(place: Path) -> None:
    ours, theirs = (make(place / name, 0o040, owner) for name, owner in (("a.jpg", NOBODY), ("b.jpg", OTHER)))
    folder = make(place / "folder", 0o555, NOBODY)
    (place / "link.jpg").symlink_to(ours)
    with nobody():
        assert not mend(str(place / "link.jpg"), READ)
        assert (mend(str(ours), READ), mend(str(theirs), READ), mend(str(folder), CHANGE)) == (True, False, True)
        assert not mend(str(ours), READ), "nothing is left to mend"
    assert [oct(path.stat().st_mode & 0o777) for path in (ours, theirs, folder)] == ["0o440", "0o40", "0o755"]
