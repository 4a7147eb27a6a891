"""The lock of a drop folder: one holder, who goes with its process; and what both sides learn of each other."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from rmbgd.config.load import Folder, IntakeSettings
from rmbgd.events import RecordedEvents
from rmbgd.folder_lock import Claimant, FolderLock
from rmbgd.intake.watcher import FolderWatch, Hints
from rmbgd.testing.clock import FakeClock

US, THEM = (Claimant("host", number, f"/state/{number}", "2026-01-01T00:00:00Z") for number in (1, 2))


class Service:
    """One service's watch on the folder; `look` is one round of its loop."""

    def __init__(self, root: Path, me: Claimant, **folder: object) -> None:
        names = {role: str(root.with_name(role)) for role in ("output", "done", "failed")}
        self.clock, self.events = FakeClock(), RecordedEvents()
        settings = Folder(name="shop", input=str(root), watch="poll", **names | folder)
        self.watch = FolderWatch(
            settings, IntakeSettings(), Hints(9, lambda: None), self.events, self.clock, FolderLock(me)
        )

    def look(self) -> bool:
        """Does it claim from the folder?"""
        self.clock.advance(10)
        self.watch.check()
        return self.watch.present

    def close(self) -> None:
        self.watch.close()
        self.watch.lock.release()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


@pytest.fixture
def two(root: Path) -> Iterator[tuple[Service, Service]]:
    with closing(Service(root, US)) as first, closing(Service(root, THEM)) as second:
        assert first.look()
        yield first, second


def test_the_second_waits_says_so_once_and_takes_over(two: tuple[Service, Service], root: Path) -> None:
    first, second = two
    assert [second.look() for _ in range(3)] == [False] * 3
    (waiting,) = second.events.named("folder.waiting")
    assert (waiting["cause"], str(US) == waiting["holder"]) == ("in_use", True)
    assert [first.look() for _ in range(2)] == [True] * 2
    (contested,) = first.events.named("folder.contested")
    assert contested == {"folder": "shop", "host": "host", "contender_pid": 2, "state_directory": "/state/2"}
    first.watch.lock.release()
    assert second.look()
    assert not first.look()
    assert second.watch.lock.was_anothers
    assert second.look()
    assert [each["contender_pid"] for each in second.events.named("folder.contested")] == [1]
    assert os.listdir(root / ".rmbgd") == ["lock"]


def test_a_lock_that_was_removed_is_taken_again(two: tuple[Service, Service], root: Path) -> None:
    first, second = two
    shutil.rmtree(root / ".rmbgd")
    assert first.look()
    assert not second.look()
    assert not first.watch.lock.was_anothers


def test_a_folder_that_moves_away_takes_its_lock_along_and_another_gets_a_new_one(
    two: tuple[Service, Service], root: Path
) -> None:
    first, second = two
    os.rename(root, root.with_name("away"))
    assert not first.look()
    assert [each["cause"] for each in first.events.named("folder.waiting")] == ["missing"]
    os.rename(root.with_name("away"), root)
    assert second.look()
    assert not first.look()
    shutil.rmtree(root)
    root.mkdir()
    assert first.look()
    assert not second.look()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_without(root: Path, code: int) -> None:
    refuse = mock.Mock(side_effect=OSError(code, os.strerror(code)))
    with closing(Service(root, US)) as first, mock.patch.object(fcntl, "flock", refuse):
        assert first.look()
    assert first.events.named("folder.waiting") == []


@pytest.mark.parametrize("hinder", ["link", "file", "keep"])
def test_where_nothing_is_claimed_by_rename_there_is_no_lock(root: Path, hinder: str) -> None:
    outside = root.with_name("outside")
    outside.mkdir()
    if hinder == "link":
        (root / ".rmbgd").symlink_to(outside)
    elif hinder == "file":
        (root / ".rmbgd").touch()
    options = {"originals": "keep"} if hinder == "keep" else {}
    with closing(Service(root, US, **options)) as first, closing(Service(root, THEM, **options)) as second:
        assert (first.look(), second.look()) == (True, True)
    assert os.listdir(outside) == []
    assert (root / ".rmbgd").exists() is (hinder != "keep")


@pytest.mark.parametrize("record", [b"", b"no JSON", b"[1]", b'{"host": "h"}'])
def test_a_record_that_cannot_be_read_keeps_nobody_out_and_names_nobody(
    two: tuple[Service, Service], root: Path, record: bytes
) -> None:
    first, second = two
    (root / ".rmbgd" / "lock").write_bytes(record)
    (root / ".rmbgd" / "contender-x").write_bytes(record)
    assert not second.look()
    assert first.look()
    assert [each["contender_pid"] for each in first.events.named("folder.contested")] == [2]
