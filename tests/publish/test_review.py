"""Approved and rejected sets: whole, once, and by their names, wherever the service is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from unittest import mock

import pytest

from rmbgd import naming as names
from rmbgd.errors import StorageFault
from rmbgd.publish.retry import Retrier, WantedOriginals
from rmbgd.publish.review import Reviewer, Search, UndecidableReview, look_beside
from rmbgd.store import reading, review
from rmbgd.store.records import SetKey
from rmbgd.testing.fs import CrashingFs, FailingFs, WorldStopped
from tests.publish.conftest import Build
from tests.support.reviews import SET, built, doubt
from tests.support.workspace import Workspace

STEPS_MAXIMUM = 100


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Build]:
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(closing(built(tmp_path, **given)))


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    shm = "/dev/shm"
    if not os.access(shm, os.W_OK) or os.stat(shm).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is not writable, or no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def reviewer(it: Workspace) -> Reviewer:
    return Reviewer([it.folder], it.publisher, it.ledger, it.clock, it.events, it.fs)


def look(it: Workspace, by: Reviewer) -> list[str]:
    """What is asked of each that waits."""
    return [by.look(each, Search()) for each in it.ledger.reviews.waiting()]


def decided(it: Workspace) -> list[tuple[object, ...]]:
    return [tuple(event[key] for key in ("path", "decision", "how")) for event in it.events.named("review.decided")]


def move(it: Workspace, path: str, role: str, to: str | None = None) -> Path:
    target = it.roots[role] / (to or path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(it.roots["review"] / path, target))


def test_an_approved_set_goes_to_the_output_and_nothing_stays(it: Workspace) -> None:
    job = doubt(it)
    assert set(it.files("review")) == {*SET, "s/a.png.json", "s/a.review.jpg"}
    assert it.files("output") == {}
    it.clock.advance(60)
    assert reviewer(it).approve(job, "anna")
    assert (it.files("output"), it.files("review")) == (SET, {})
    assert it.files("done") == {"s/a.jpg": b"image"}
    (told,) = it.events.named("review.decided")
    assert told == {
        "job": job, "folder": "shop", "path": "s/a.jpg", "decision": "approved", "how": "command", "person": "anna",
        "output": "s/a.png", "seconds": 60.0,
    }  # fmt: skip
    assert reviewer(it).approve(job, "anna") is False
    with pytest.raises(UndecidableReview, match="it is approved already"):
        reviewer(it).reject(job, "anna")
    assert len(it.events.named("review.decided")) == 1


def test_a_rejected_set_is_set_aside_with_its_reason(it: Workspace) -> None:
    job = doubt(it)
    taken = it.roots["failed"] / "s" / "a_white.jpg"
    taken.parent.mkdir()
    taken.write_bytes(b"stranger's")
    assert reviewer(it).reject(job, "anna")
    found = it.files("failed")
    story = json.loads(found.pop("s/a~2.png.error.json"))
    assert found == {
        "s/a_white.jpg": b"stranger's",
        **{names.version_of(path, 2): data for path, data in SET.items()},
    }
    assert (story["reason"], story["stage"], story["path"]) == ("rejected_in_review", "review", "s/a.jpg")
    assert (story["detail"], story["files"][0]) == ("rejected in review by anna", "s/a~2.png")
    assert (it.files("review"), it.files("output")) == ({}, {})
    assert it.files("done") == {"s/a.jpg": b"image"}
    assert decided(it) == [("s/a.jpg", "rejected", "command")]
    assert reviewer(it).reject(job, "anna") is False


def test_what_was_rejected_is_no_original_to_be_retried(it: Workspace) -> None:
    reviewer(it).reject(doubt(it), "anna")
    before = it.files("failed")
    result = Retrier({"shop": it.folder}, it.ledger, it.events).retry(WantedOriginals("shop"), "anna")
    assert (result.retried, it.files("input"), it.files("failed")) == (0, {}, before)


def test_an_approved_set_replaces_the_older_output(it: Workspace) -> None:
    it.drop("s/a.jpg", b"old")
    it.work("s/a.jpg", b"old cutout")
    job = doubt(it, files={"s/a.png": b"new", "s/a_white.jpg": b"white"})
    assert it.files("output") == {"s/a.png": b"old cutout"}
    reviewer(it).approve(job, "anna")
    assert it.files("output") == {"s/a.png": b"new", "s/a_white.jpg": b"white"}


def test_a_strangers_file_moves_the_whole_approved_set(it: Workspace) -> None:
    (it.roots["output"] / "masks").mkdir()
    (it.roots["output"] / "masks" / "a.png").write_bytes(b"stranger's")
    reviewer(it).approve(doubt(it), "anna")
    moved = {names.version_of(path, 2): data for path, data in SET.items()}
    assert it.files("output") == moved | {"masks/a.png": b"stranger's"}


def test_what_was_edited_is_published_as_it_is(it: Workspace) -> None:
    job = doubt(it)
    (it.roots["review"] / "s" / "a.png").write_bytes(b"retouched")
    assert look(it, reviewer(it)) == ["it was changed: approve it as it is now, or reject"]
    reviewer(it).approve(job, "anna")
    assert it.files("output") == SET | {"s/a.png": b"retouched"}
    assert it.files("review") == {}


def test_a_newer_version_in_work_is_decided_about_instead(it: Workspace) -> None:
    job = doubt(it)
    it.drop("s/a.jpg", b"newer")
    newer = it.claim("s/a.jpg")
    with pytest.raises(UndecidableReview, match="a newer version of it is in work"):
        reviewer(it).approve(job, "anna")
    it.publish(newer, b"newer cutout")
    with pytest.raises(UndecidableReview, match="it is replaced already"):
        reviewer(it).approve(job, "anna")
    assert (it.files("output"), it.files("review")) == ({"s/a.png": b"newer cutout"}, {})


def test_nothing_of_an_input_is_claimed_while_it_is_decided_about(it: Workspace) -> None:
    job = doubt(it)
    it.ledger.reviews.begin(job, "approving", "anna")
    it.drop("s/a.jpg", b"newer")
    with pytest.raises(ValueError, match="not enough values"):
        it.claim("s/a.jpg")
    reviewer(it).approve(job, "anna")
    it.claim("s/a.jpg")


@pytest.mark.parametrize("decision", ["approve", "reject"])
@pytest.mark.parametrize("across", [False, True])
def test_killed_at_any_step_the_next_start_ends_the_decision(tmp_path: Path, decision: str, *, across: bool) -> None:
    """One file was edited while it waited."""
    files, role = SET | {"s/a.png": b"retouched"}, {"approve": "output", "reject": "failed"}[decision]
    for after in range(STEPS_MAXIMUM):
        base = tmp_path / str(after)
        base.mkdir()
        with closing(built(base)) as it:
            it.drop("s/a.jpg", b"old")
            it.work("s/a.jpg", b"old cutout")
            job = doubt(it)
            (it.roots["review"] / "s" / "a.png").write_bytes(files["s/a.png"])
        finished = decide_until(base, after, decision, job, across=across)
        with closing(built(base)) as it:
            everywhere = {role: it.files(role) for role in ("review", "output", "failed")}
            for path, data in files.items():
                assert any(found.get(path) == data for found in everywhere.values()), f"{path} lost after {after}"
        assert decide_until(base, STEPS_MAXIMUM, decision, job, across=across)
        with closing(built(base)) as it:
            found = {path: data for path, data in it.files(role).items() if not path.endswith(".error.json")}
            assert found == files, f"after {after} steps"
            assert it.files("review") == {}, f"after {after} steps"
            assert it.files("output") == (files if decision == "approve" else {"s/a.png": b"old cutout"})
            assert it.ledger.reviews.count() == 0
            assert it.ledger.output_names.of(SetKey(str(it.roots["review"]), "shop", "s/a.jpg")) == {}
        if finished:
            break
    assert 10 < after < STEPS_MAXIMUM


def decide_until(base: Path, steps: int, decision: str, job: int, *, across: bool) -> bool:
    """Decide, or carry out what was decided, and stop the world before that step: False when it did."""
    fs = CrashingFs(steps)
    rename = fs.rename_noreplace

    def rename_on_one_disk(source: str, target: str, **folders: int | None) -> None:
        disks = {path.startswith(str(base / "review")) for path in (source, target)}
        if across and len(disks) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **folders)

    with closing(built(base, fs=fs)) as it, mock.patch.object(fs, "rename_noreplace", rename_on_one_disk):
        by, database = reviewer(it), it.ledger.database
        transaction = database.transaction

        def counted() -> object:
            fs.step()
            return transaction()

        with mock.patch.object(database, "transaction", counted):
            try:
                waiting = [each for each in it.ledger.reviews.waiting() if each.state != "open"]
                for each in waiting:
                    by.resume(each)
                if not waiting:
                    getattr(by, decision)(job, "anna")
            except WorldStopped:
                return False
    return True


def test_the_review_folder_may_lie_on_another_disk(workspace: Build, other_disk: Path) -> None:
    it = workspace(review=str(other_disk))
    jobs = [doubt(it), doubt(it, "b.jpg", {"b.png": b"b"})]
    reviewer(it).approve(jobs[0], "anna")
    reviewer(it).reject(jobs[1], "anna")
    assert (it.files("output"), it.files("review")) == (SET, {})
    assert set(it.files("failed")) == {"b.png", "b.png.error.json"}


@pytest.mark.parametrize("step", ["create", "sync_file", "rename_noreplace", "sync_folder"])
@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_what_a_full_disk_refuses_is_done_later(workspace: Build, step: str, decision: str) -> None:
    it = workspace()
    job = doubt(it)
    it.close()
    it = workspace(fs=FailingFs({step: [errno.ENOSPC]}))
    by = reviewer(it)
    with pytest.raises(StorageFault):
        getattr(by, decision)(job, "anna")
    if step in ("create", "sync_file"):
        assert (SET.items() <= it.files("review").items(), it.files("output")) == (True, {})
    (waiting,) = it.ledger.reviews.waiting()
    assert waiting.state == {"approve": "approving", "reject": "rejecting"}[decision]
    by.resume(waiting)
    assert (it.files("review"), it.ledger.reviews.count()) == ({}, 0)
    assert [event["recovered"] for event in it.events.named("review.decided")] == [True]


# --- what people move


def test_a_set_that_was_moved_to_the_output_is_approved(it: Workspace) -> None:
    doubt(it)
    by = reviewer(it)
    assert look(it, by) == [""]
    for path in SET:
        assert decided(it) == []
        move(it, path, "output")
        asked = look(it, by)
    assert asked == [""]
    assert decided(it) == [("s/a.jpg", "approved", "moved")]
    assert "person" not in it.events.named("review.decided")[0]
    assert (it.files("output"), it.files("review"), look(it, by)) == (SET, {}, [])


def test_a_part_that_was_moved_is_asked_about(it: Workspace) -> None:
    job = doubt(it)
    move(it, "s/a.png", "output")
    assert look(it, reviewer(it)) == ["moved in part: approve or reject"]
    with reading.reading(it.ledger.path) as db:
        assert len(review.waiting(db, 9)) == 1
    files = it.ledger.output_names.of(SetKey(str(it.roots["review"]), "shop", "s/a.jpg")).values()
    assert look_beside(str(it.roots["review"]), list(files)) == "moved in part: approve or reject"
    reviewer(it).approve(job, "anna")
    assert (it.files("output"), it.files("review")) == (SET, {})


def test_what_people_moved_is_replaced_with_its_input(it: Workspace) -> None:
    """Also where they put it somewhere else, and what they copied."""
    doubt(it, "a.jpg", {"a.png": b"first"})
    doubt(it, "b.jpg", {"b.png": b"second"})
    move(it, "a.png", "output", "keep/a (1).png")
    shutil.copy2(it.roots["review"] / "b.png", it.roots["output"] / "b.png")
    look(it, reviewer(it))
    assert sorted(decided(it)) == [("a.jpg", "approved", "moved"), ("b.jpg", "approved", "moved")]
    assert it.files("review") == {}
    assert it.files("output") == {"keep/a (1).png": b"first", "b.png": b"second"}
    for path in ("a.jpg", "b.jpg"):
        it.drop(path, b"newer")
        it.work(path, b"newer")
    assert it.files("output") == {"a.png": b"newer", "b.png": b"newer"}


def test_what_was_moved_elsewhere_is_the_output_instead_of_the_older_one(it: Workspace) -> None:
    it.drop("a.jpg", b"old")
    it.work("a.jpg", b"old cutout")
    doubt(it, "a.jpg", {".png": b"first"})
    move(it, "a.png", "output", "keep/a.png")
    look(it, reviewer(it))
    assert it.files("output") == {"a.png": b"old cutout", "keep/a.png": b"first"}
    it.drop("a.jpg", b"newer")
    it.publish(it.claim("a.jpg"), b"newer")
    assert it.files("output") == {"a.png": b"newer"}


def test_an_equal_mask_of_another_image_is_not_taken_for_it(it: Workspace) -> None:
    jobs = [doubt(it, f"{name}.jpg", {f"{name}.png": name.encode(), f"mask/{name}.png": b"empty"}) for name in "ab"]
    by = reviewer(it)
    by.approve(jobs[0], "anna")
    look(it, by)
    for path in ("b.png", "mask/b.png"):
        (it.roots["review"] / path).unlink()
    assert [look(it, by) for _ in range(2)] == [[""], [""]]
    assert decided(it)[1:] == [("b.jpg", "rejected", "gone")]


def test_an_equal_output_of_before_approves_nothing(it: Workspace) -> None:
    it.drop("a.jpg", b"old")
    it.work("a.jpg", b"same")
    doubt(it, "a.jpg", {"a.png": b"same"})
    assert (look(it, reviewer(it)), decided(it)) == ([""], [])


@pytest.mark.parametrize("to", ["failed", None])
def test_a_set_that_was_moved_away_is_rejected(it: Workspace, to: str | None) -> None:
    doubt(it)
    by = reviewer(it)
    look(it, by)
    for path in SET:
        move(it, path, "failed") if to else (it.roots["review"] / path).unlink()
    if to is None:
        assert look(it, by) == [""]
        assert decided(it) == [], "an editor takes a file away for a moment"
    look(it, by)
    assert decided(it) == [("s/a.jpg", "rejected", "moved" if to else "gone")]
    assert it.files("review") == it.files("output") == {}
    assert sorted(it.files("failed")) == (sorted([*SET, "s/a.png.error.json"]) if to else [])


@pytest.mark.parametrize("role", ["review", "output", "failed"])
def test_a_disk_that_is_away_decides_nothing(it: Workspace, role: str) -> None:
    doubt(it)
    by = reviewer(it)
    look(it, by)
    away = it.roots[role].rename(it.base / "away")
    for path in SET:
        (away / path).unlink(missing_ok=True)
    for _ in range(3):
        assert look(it, by) == [""]
    it.roots[role].mkdir()  # where its disk is to be mounted
    for path in () if role == "review" else SET:
        (it.roots["review"] / path).unlink()
    (it.roots["review"] / "s" / "a.review.jpg").unlink(missing_ok=True)
    for _ in range(3):
        assert look(it, by) == ["its files are gone: approve or reject"]
    assert decided(it) == []


def test_a_set_that_is_nowhere_cannot_be_approved_but_rejected(it: Workspace) -> None:
    job = doubt(it)
    (it.roots["review"] / "s" / "a.png").unlink()
    with pytest.raises(UndecidableReview, match=r"s/a\.png is nowhere any more"):
        reviewer(it).approve(job, "anna")
    assert (it.ledger.reviews.count(), it.files("output")) == (1, {})
    reviewer(it).reject(job, "anna")
    assert sorted(it.files("failed")) == ["masks/a.png", "s/a.png.error.json", "s/a_white.jpg"]


# --- the record


def test_the_most_doubtful_come_first(it: Workspace) -> None:
    told = {"a": (0.4, None), "b": (0.2, 0.5), "c": (0.2, -3.0), "d": (None, None)}
    for name, (score, unusual) in told.items():
        known = {key: value for key, value in (("score", score), ("unusual", unusual)) if value is not None}
        doubt(it, f"{name}.jpg", {f"{name}.png": name.encode()}, **known)
    assert [each.path for each in it.ledger.reviews.waiting()] == ["d.jpg", "c.jpg", "b.jpg", "a.jpg"]


def test_decisions_are_kept_as_labels(it: Workspace) -> None:
    facts = {"features": {"holes": 2}, "version": 1}
    jobs = [doubt(it, f"{name}.jpg", {f"{name}.png": b"x"}, score=0.3, review=facts) for name in "abc"]
    by = reviewer(it)
    by.reject(jobs[1], "anna")
    it.clock.advance(1)
    by.approve(jobs[0], "anna")
    with reading.reading(it.ledger.path) as db:
        found = list(review.labels(db))
        kinds = [(each.path, each.kind) for each in reading.oddest(db, 0, 9)]
        listed = [each.path for each in reading.newest(db, "review", 9)]
    assert [(each["path"], each["label"], each["score"]) for each in found] == [
        ("b.jpg", "rejected", 0.3),
        ("a.jpg", "approved", 0.3),
    ]
    assert all(facts.items() <= each.items() for each in found)
    assert (kinds, listed) == ([("b.jpg", "failed"), ("c.jpg", "review"), ("a.jpg", "done")], ["c.jpg"])
