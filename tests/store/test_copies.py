"""Copies of the ledger, going back to one, and files that stand where the ledger should be."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from rmbgd.errors import ConfigError, LedgerFault
from rmbgd.fs import FileVersion
from rmbgd.intake.startup_recovery import Recovery
from rmbgd.store import copies, database
from rmbgd.store.ledger import Ledger
from rmbgd.store.opening import JUMP, put_in_place
from rmbgd.store.records import Candidate, FileName, Job, SetFile, SetKey
from rmbgd.testing.clock import FakeClock
from tests.support.workspace import Workspace, done, sha256

CLOCK = FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def claim(ledger: Ledger, count: int, first: int = 0) -> list[Job]:
    wanted = [Candidate("drop", f"{n}.jpg", "/in", FileVersion(n, 1, 2, 3), 0.0, True) for n in range(first, count)]
    return ledger.claim(wanted)


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, code: int, ending: str) -> None:
    """os.`function` fails for names that end so."""
    real: Callable[..., object] = getattr(os, function)

    def called(name: str, *given: object, **more: object) -> object:
        if str(name).endswith(ending):
            raise OSError(code, os.strerror(code), name)
        return real(name, *given, **more)

    monkeypatch.setattr(os, function, called)


# --- going back


def announced(workspace: Workspace, job: Job) -> None:
    """About to be published, as the ledger knows it."""
    key, name = SetKey(str(workspace.roots["output"]), "shop", "a.jpg"), FileName.of_output("a.jpg", ".png")
    workspace.ledger.publishing(done(job), key, [SetFile(name, sha256(b"cutout"), len(b"cutout"))])


@pytest.mark.parametrize("is_announced", [False, True])
@pytest.mark.parametrize("since", ["published", "published and taken away", "killed", "killed behind the rename"])
def test_an_image_that_was_in_work_when_the_copy_was_made(tmp_path: Path, is_announced: bool, since: str) -> None:
    """Is not lost when the copy has to serve: it is done since, or is taken up again with its attempts."""
    first = Workspace(tmp_path)
    first.drop("a.jpg")
    job, output = first.claim("a.jpg"), first.roots["output"] / "a.png"
    if is_announced:
        announced(first, job)
    made = copies.copy_of_today(first.ledger.path, CLOCK.wall())
    if since.startswith("published"):
        first.publish(job)
    elif since == "killed behind the rename":
        announced(first, job)
        output.write_bytes(b"cutout")
    if since.endswith("away"):
        output.unlink()
    first.close()
    put_in_place(first.ledger.path, made, "damaged", CLOCK.wall())
    it = Workspace(tmp_path)
    found = Recovery(it.config, it.ledger, it.publisher, it.events).recover()
    assert it.events.events == []
    assert found.put_back == since.startswith("killed")
    assert it.ledger.database.all("SELECT * FROM untold") == []
    if found.put_back:
        again = it.claim("a.jpg")
        assert (again.job_id, again.attempt) == (job.job_id, 2)
        assert it.publish(again, b"another").path == ("a.png" if is_announced or since == "killed" else "a~2.png")
    it.close()


@pytest.mark.parametrize("size", [None, 5000, 0])
def test_a_ledger_written_back_in_part_is_replaced_by_the_newest_copy(path: Path, size: int | None) -> None:
    """Without a part of one, a ledger that is missing was removed on purpose: the next is a new one."""
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        claim(ledger, 3)
        made = copies.copy_of_today(ledger.path, CLOCK.wall())
    left = path.with_name(path.name + ".new")
    if size is not None:
        left.write_bytes(path.read_bytes()[:size])
    path.unlink()
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        replacement = ledger.database.replacement
        assert ledger.is_new == (replacement is None) == (size is None)
        assert ledger.counts() == ({} if size is None else {"waiting": 3})
        if replacement is not None:
            assert (replacement.copy and replacement.copy.path, "missing" in replacement.cause) == (made, True)
            assert ledger.database.is_adopting()
    assert not left.exists()


def test_what_was_written_back_does_not_get_the_log_of_the_file_that_was_removed(path: Path) -> None:
    first, wal = Ledger(path, CLOCK), path.with_name(path.name + "-wal")
    claim(first, 1)
    stale = wal.read_bytes()
    claim(first, 300, 1)
    first.database.all("VACUUM INTO ?", (str(path) + ".new",))
    first.close()
    path.unlink()
    wal.write_bytes(stale)
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        assert (ledger.is_new, ledger.database.replacement, ledger.counts()) == (False, None, {"claimed": 300})


def test_a_write_back_that_cannot_be_opened_is_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for another's file, and what was committed meanwhile is in it."""
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        claim(ledger, 1)
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(database, "writable", lambda _path: sqlite3.connect("/no/such/file"))
            with pytest.raises(LedgerFault):
                ledger.database.renew()
        claim(ledger, 2, 1)
        ledger.database.renew()
        assert ledger.counts() == {"claimed": 2}
    assert copies.aside(str(path), "replaced") == []


@pytest.mark.parametrize("sequence", ["'x'", "x'ff'", "9e999", "9e18", "-5"])
def test_job_numbers_of_a_damaged_sequence_are_not_believed(path: Path, sequence: str) -> None:
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        claim(ledger, 1)
        ledger.database._connection.execute(f"UPDATE sqlite_sequence SET seq={sequence}")
    put_in_place(str(path), None, "damaged", CLOCK.wall())
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        assert claim(ledger, 1)[0].job_id == JUMP + 1


def test_text_that_is_no_utf8_is_damage(path: Path) -> None:
    """No check of SQLite's finds it."""
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        claim(ledger, 1)
        ledger.database._connection.execute("UPDATE job SET folder=cast(x'66ff' AS TEXT)")
        with pytest.raises(LedgerFault, match="Could not decode"):
            ledger.unfinished()
        assert ledger.database.refused is not None
        assert ledger.database.refused.damaged


# --- files in the state directory


def test_leftovers_of_copies_that_were_killed_are_removed(path: Path) -> None:
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        (folder := copies.folder(ledger.path)).mkdir()
        (folder / "ledger-2020-01-01.sqlite.tmp").write_bytes(b"part")
        made = copies.copy_of_today(ledger.path, CLOCK.wall())
    assert list(folder.iterdir()) == [made]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_ledger_is_set_aside_where_there_are_no_hard_links(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path.write_bytes(b"garbage")
    refuse(monkeypatch, "link", code, path.name)
    Ledger(path, CLOCK).close()
    assert [each.read_bytes() for each in copies.aside(str(path), "damaged")] == [b"garbage"]


def test_a_link_to_nowhere_is_not_replaced_by_an_empty_ledger(path: Path) -> None:
    path.symlink_to(path.parent / "away" / "ledger.sqlite")
    with pytest.raises(LedgerFault, match="mount its disk"):
        Ledger(path, CLOCK)
    assert path.is_symlink()


@pytest.mark.parametrize(
    ("code", "cause"),
    [(errno.EROFS, "read_only"), (errno.ENOSPC, "disk_full"), (errno.EDQUOT, "quota"), (errno.EIO, "io_error"),
     (errno.ENFILE, "descriptors"), (errno.EMFILE, ""), (errno.EACCES, "")],
)  # fmt: skip
def test_a_lock_that_the_disk_refuses_is_tried_again_by_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cause: str
) -> None:
    refuse(monkeypatch, "open", code, ".lock")
    with pytest.raises(LedgerFault if cause else ConfigError, match=os.strerror(code)) as caught:
        Ledger(path, CLOCK)
    assert getattr(caught.value, "cause", "") == cause


def test_a_lock_that_is_lost_for_want_of_descriptors_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Ledger(path, CLOCK)) as ledger:
        Path(f"{path}.lock").unlink()
        with monkeypatch.context() as patch:
            refuse(patch, "open", errno.EMFILE, ".lock")
            with pytest.raises(LedgerFault) as caught:
                ledger.database.renew()
        assert caught.value.cause == "descriptors"
        assert "held again" in ledger.database.renew()
