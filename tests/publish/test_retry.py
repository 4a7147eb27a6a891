"""Rejected originals go back into the input: only those, once, and whole wherever the service is killed."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from rmbgd.errors import Reason
from rmbgd.publish.retry import Retrier, RetryResult, WantedOriginals, original_of
from rmbgd.store import reading
from rmbgd.store.outbox import job_keys, refused
from rmbgd.testing.fs import CrashingFs, WorldStopped
from tests.publish.conftest import Build
from tests.support.workspace import Workspace

STEPS_MAXIMUM = 100


def reject(it: Workspace, path: str, data: bytes = b"image", reason: Reason = Reason.CORRUPT) -> None:
    it.drop(path, data)
    job = it.claim(path)
    outcome = refused(job_keys(job), reason, "torn", stage="decode")
    it.publisher.quarantine.set_aside(job, outcome)
    it.publisher.deliver(outcome)


def retry(it: Workspace, *inputs: str, placed: tuple[str, ...] = (), reason: str | None = None) -> RetryResult:
    retrier = Retrier({"shop": it.folder}, it.ledger, it.events, it.fs)
    return retrier.retry(WantedOriginals("shop", inputs, placed, reason), "anna")


def failed_paths(it: Workspace) -> list[str]:
    it.ledger.flush()
    with reading.reading(it.ledger.path) as db:
        return sorted(each.path for each in reading.failures(db, "shop").values())


def test_everything_goes_back_and_is_told(it: Workspace) -> None:
    reject(it, "a.jpg", b"first")
    reject(it, "a.jpg", b"second")
    reject(it, "s/t/b.jpg", reason=Reason.POISON)
    (it.roots["failed"] / "note.txt").write_text("somebody's")
    (it.roots["failed"] / "x.jpg").write_bytes(b"somebody's")
    result = retry(it)
    assert it.files("input").keys() == {"a.jpg", "s/t/b.jpg"}
    assert it.files("input")["a.jpg"] == b"first"
    assert it.files("failed").keys() == {"a~2.jpg", "a~2.jpg.error.json", "note.txt", "x.jpg"}
    assert result.retried == 2
    assert [(path, why[:24]) for path, why in result.left] == [("a.jpg", "a file of this name has ")]
    told = [(event["path"], event["reason"], event["person"]) for event in it.events.named("image.retried")]
    assert sorted(told) == [("a.jpg", "corrupt", "anna"), ("s/t/b.jpg", "poison", "anna")]
    assert failed_paths(it) == ["a.jpg"]


@pytest.mark.parametrize(
    ("wanted", "back"),
    [
        ({"inputs": ("a.jpg",)}, {"a.jpg"}),
        ({"placed": ("s/b.jpg",)}, {"s/b.jpg"}),
        ({"inputs": ("a.jpg", "s/b.jpg")}, {"a.jpg", "s/b.jpg"}),
        ({"inputs": ("b.jpg", "../a.jpg", "s")}, set()),
        ({"reason": "poison"}, {"s/b.jpg"}),
        ({"inputs": ("a.jpg",), "reason": "poison"}, set()),
    ],
)
def test_what_is_named_goes_back(it: Workspace, wanted: dict[str, object], back: set[str]) -> None:
    reject(it, "a.jpg")
    reject(it, "s/b.jpg", reason=Reason.POISON)
    assert retry(it, *wanted.pop("inputs", ()), **wanted).retried == len(back)
    assert it.files("input").keys() == back


def test_a_reason_file_or_the_ledger_proves_whose_it_is(it: Workspace) -> None:
    for path in ("noted.jpg", "known.jpg", "neither.jpg"):
        reject(it, path)
    failed = it.roots["failed"]
    it.ledger.flush()
    it.ledger.forget_failures(range(1, 4, 2))
    for path in ("known.jpg", "neither.jpg"):
        (failed / f"{path}.error.json").unlink()
    (failed / "fake.jpg").write_bytes(b"image")
    for name, story in (("fake", '{"folder":"press","path":"x"}'), ("evil", "[" * 100_000), ("deep", "{")):
        (failed / f"{name}.jpg.error.json").write_text(story)
    (failed / "out.jpg").write_bytes(b"image")
    (failed / "out.jpg.error.json").write_text(json.dumps({"folder": "shop", "path": "../out.jpg", "job": 1}))
    assert retry(it).retried == 2
    assert it.files("input").keys() == {"noted.jpg", "known.jpg"}
    assert not (it.base / "out.jpg").exists()


def test_what_stayed_in_the_input_counts_as_new(workspace: Build) -> None:
    it = workspace(originals="keep")
    reject(it, "a.jpg")
    job = it.ledger.database.one("SELECT inode, size, mtime_ns, ctime_ns FROM job")
    assert it.files("failed").keys() == {"a.jpg.error.json"}
    result = retry(it, "a.jpg")
    assert (result.retried, result.in_place) == (1, 1)
    assert it.files("failed").keys() == set()
    assert it.files("input").keys() == {"a.jpg"}
    assert job is not None
    assert it.ledger.database.all("SELECT * FROM job") == []


def test_a_link_in_the_input_leads_nowhere(it: Workspace, tmp_path: Path) -> None:
    reject(it, "s/a.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (it.roots["input"] / "s").rmdir()
    (it.roots["input"] / "s").symlink_to(elsewhere)
    assert [path for path, _ in retry(it).left] == ["s/a.jpg"]
    assert list(elsewhere.iterdir()) == []


def test_sidecars_go_back_where_they_were_carried(workspace: Build) -> None:
    it = workspace(sidecars="carry")
    it.drop("s/a.jpg.xmp", b"edits")
    reject(it, "s/a.jpg")
    assert "s/a.jpg.xmp" in it.files("failed")
    retry(it)
    assert it.files("input").keys() == {"s/a.jpg", "s/a.jpg.xmp"}
    assert it.files("failed") == {}


def test_what_is_being_set_aside_is_left(it: Workspace) -> None:
    """Between the reason file and the original: the note of a job that is not over is not taken for a remnant."""
    it.drop("a.jpg")
    job = it.claim("a.jpg")
    stopped = mock.patch("rmbgd.publish.quarantine.move_exactly", side_effect=WorldStopped)
    with stopped, pytest.raises(WorldStopped):
        it.publisher.quarantine.set_aside(job, refused(job_keys(job), Reason.CORRUPT, "torn"))
    assert [why for _, why in retry(it).left] == ["it is being set aside right now; try again"]
    assert it.files("failed").keys() == {"a.jpg.error.json"}


@pytest.mark.parametrize("originals", ["archive", "keep"])
@pytest.mark.parametrize("other_disk", [False, True])
def test_killed_at_any_step_the_next_retry_ends_it(tmp_path: Path, originals: str, *, other_disk: bool) -> None:
    given = {"originals": originals, "sidecars": "carry"}
    data = {"a.jpg": b"a", "s/b.jpg": b"b", "a.jpg.xmp": b"edits", "s/b.xmp": b"more"}
    for after in range(STEPS_MAXIMUM):
        base = tmp_path / str(after)
        base.mkdir()
        with closing(Workspace(base, **given)) as it:
            for path in ("a.jpg.xmp", "s/b.xmp"):
                it.drop(path, data[path])
            for path in ("a.jpg", "s/b.jpg"):
                reject(it, path, data[path])
        finished = retry_until(base, after, given, other_disk=other_disk)
        with closing(Workspace(base, **given)) as it:
            there = [name for role in ("input", "failed") for name in it.files(role) if name in data]
            copied = other_disk and not finished  # one may be in both, until the copy is compared
            assert sorted(set(there) if copied else there) == sorted(data), f"lost or doubled after {after} steps"
        assert retry_until(base, STEPS_MAXIMUM, given, other_disk=other_disk)
        with closing(Workspace(base, **given)) as it:
            assert (it.files("input"), it.files("failed"), failed_paths(it)) == (data, {}, []), f"after {after} steps"
        if finished:
            break
    assert 2 < after < STEPS_MAXIMUM


def retry_until(base: Path, steps: int, given: dict[str, object], *, other_disk: bool) -> bool:
    """Retry everything, and stop the world before that step: False when it did."""
    fs = CrashingFs(steps)
    rename = fs.rename_noreplace

    def rename_on_one_disk(source: str, target: str, **folders: int | None) -> None:
        disks = {os.path.realpath(os.path.dirname(path)).startswith(str(base / "failed")) for path in (source, target)}
        if other_disk and len(disks) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **folders)

    with closing(Workspace(base, fs=fs, **given)) as it, mock.patch.object(fs, "rename_noreplace", rename_on_one_disk):
        forget = it.ledger.forget_failures
        with mock.patch.object(it.ledger, "forget_failures", lambda jobs: (fs.step(), forget(jobs))):
            try:
                retry(it)
            except WorldStopped:
                return False
    return True


def test_a_listed_failure_says_where_its_original_lies(workspace: Build) -> None:
    it = workspace()
    for data in (b"first", b"second"):
        reject(it, "a.jpg", data)
    it.ledger.flush()
    with reading.reading(it.ledger.path) as db:
        (newer, older) = reading.newest(db, "failed", 10)
    assert original_of(it.folder, older) == str(it.roots["failed"] / "a.jpg")
    assert original_of(it.folder, newer) == str(it.roots["failed"] / "a~2.jpg")
    for name in ("a.jpg", "a~2.jpg.error.json", "a~2.jpg"):
        (it.roots["failed"] / name).unlink()
    assert original_of(it.folder, newer) is None
