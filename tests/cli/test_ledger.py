"""`rmbgd ledger`: what it says of sound and damaged ledgers, and what it puts in their place."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from rmbgd.cli import main as cli
from rmbgd.clock import SystemClock
from rmbgd.store import copies
from rmbgd.store.ledger import Ledger
from rmbgd.store.opening import JUMP
from tests.support.damage import jobs_of, spoil
from tests.support.workspace import Workspace


class Box:
    """A state directory with a ledger that knows some images; nothing runs."""

    def __init__(self, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        workspace = Workspace(base, originals="keep")
        for number in range(3):
            workspace.drop(f"{number}.png")
            workspace.work(f"{number}.png")
        workspace.close()
        self.state, self.capsys = base / "state", capsys
        self.path = self.state / "ledger.sqlite"
        self.config = base / "rmbgd.toml"
        self.config.write_text(f'[service]\nstate_directory = "{self.state}"\nruntime_directory = "{base / "run"}"\n')

    def run(self, *words: object) -> tuple[int, str]:
        """(exit status, all that was said)."""
        status = cli.main(["ledger", *map(str, words), "--config", str(self.config)])
        return status, "".join(self.capsys.readouterr())

    def open(self) -> contextlib.AbstractContextManager[Ledger]:
        """As a service that runs."""
        return contextlib.closing(Ledger(self.path, SystemClock()))


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Box:
    return Box(tmp_path, capsys)


def test_check_and_backup_work_beside_the_service(box: Box, tmp_path: Path) -> None:
    with box.open():
        status, said = box.run("backup")
        assert (status, "checked" in said) == (0, True)
        assert box.run("backup", tmp_path / "elsewhere.sqlite")[0] == 0
        status, said = box.run("check")
    assert status == 0
    assert f"{box.path}: sound; 3 done" in said
    assert re.search(r"sound, [\d.]+ s old", said)
    assert jobs_of(tmp_path / "elsewhere.sqlite") == [1, 2, 3]


@pytest.mark.parametrize("where", ["missing/copy.sqlite", "state", "state/ledger.sqlite"])
def test_a_backup_that_can_go_nowhere_says_so(box: Box, tmp_path: Path, where: str) -> None:
    status, said = box.run("backup", tmp_path / where)
    assert (status, said.startswith("rmbgd ledger: ")) == (1, True)
    assert jobs_of(box.path) == [1, 2, 3]


def test_check_finds_damage_and_copies_that_are_of_no_use(box: Box) -> None:
    box.run("backup")
    (copied,) = copies.copies(str(box.path))
    spoil(copied.path, "job", "zero")
    spoil(box.path, "job_by_path", "flip")
    status, said = box.run("check")
    assert status == 1
    assert f"{box.path}: damaged: " in said
    assert f"{copied.path}: not usable: " in said
    assert "rmbgd ledger restore" in said


def test_restore_is_refused_while_the_service_runs(box: Box) -> None:
    box.run("backup")
    with box.open():
        status, said = box.run("restore")
    assert (status, "another rmbgd" in said, "systemctl stop" in said) == (1, True, True)


def test_restore_says_in_one_line_that_the_disk_refuses_the_lock(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(name: str, *given: int, **more: Any) -> int:
        if str(name).endswith(".lock"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return real(name, *given, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert box.run("restore") == (1, f"rmbgd ledger: {box.path}.lock: Input/output error; see `dmesg`\n")


@pytest.mark.parametrize("damaged", [False, True])
def test_restore_takes_the_newest_sound_copy_and_keeps_what_was_there(box: Box, damaged: bool) -> None:
    """With the owner and the mode of the former, and other job numbers than it can have used since."""
    box.run("backup")
    with contextlib.closing(sqlite3.connect(box.path)) as db:
        db.execute("DELETE FROM job WHERE id=3")
        db.commit()
    if damaged:
        spoil(box.path, "target", "zero")
    os.chown(box.path, 65534, 65534)
    box.path.chmod(0o640)
    before = box.path.read_bytes()
    status, said = box.run("restore")
    assert (status, "checked" in said) == (0, True)
    (former,) = copies.aside(str(box.path), "replaced")
    assert former.read_bytes() == before
    found = box.path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o640)
    assert jobs_of(box.path) == [1, 2, 3]
    with box.open() as ledger:
        assert ledger.database.is_adopting()
        assert ledger.database.one("SELECT seq FROM sqlite_sequence") == (3 + JUMP,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"garbage" * 500, "not a database"),
        ("CREATE TABLE recipes (cake TEXT)", "schema 0"),
        ("PRAGMA user_version=99", "schema 99"),
        ("PRAGMA user_version=2", "lacks the table"),
    ],
)
def test_what_is_no_ledger_is_not_restored(box: Box, tmp_path: Path, content: Any, said: str) -> None:
    before = box.path.read_bytes()
    other = tmp_path / "other.sqlite"
    if isinstance(content, bytes):
        other.write_bytes(content)
    elif content:
        with contextlib.closing(sqlite3.connect(other)) as db:
            db.executescript(content)
    status, words = box.run("restore", other)
    assert (status, said in words) == (1, True), words
    assert box.path.read_bytes() == before


def test_without_a_copy_or_a_ledger_the_next_step_is_named(box: Box) -> None:
    assert "name a FILE" in box.run("restore")[1]
    box.path.unlink()
    for command in ("check", "backup"):
        status, said = box.run(command)
        assert (status, "the service makes one" in said) == (1, True)
