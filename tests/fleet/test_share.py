"""A shared root: whatever step a worker dies at, its record tells the truth, and the next publication is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rmbgd import fs
from rmbgd import naming as names
from rmbgd.config.load import Recipe
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.fleet.share import RootAnswer, SharedRoot, fingerprint_of
from rmbgd.fs import FileSystem, version_of
from rmbgd.publish.publisher import SourceChanged
from rmbgd.store.records import Job, Leased
from rmbgd.testing.fs import CrashingFs, WorldStopped
from tests.support.run import set_content, set_names, set_writer
from tests.support.workspace import Workspace, done, torn

PLAIN = ("{dir}/{stem}.png",)
THREE = ("{dir}/{stem}.png", "web/{dir}/{stem}.jpg", "masks/{dir}/{stem}.png")
LONG = "x" * 300  # bytes: no file system has such names
STEPS_MOST = 80  # of one publication


class Share(Workspace):
    """A root with a review folder, and workers that publish into it, each with a file system of its own."""

    def __init__(self, base: Path, templates: Sequence[str] = PLAIN) -> None:
        (base / "review").mkdir()
        recipe = {"deliver": [{"path": template} for template in templates], "review_below": 0.5}
        super().__init__(base, recipe=recipe, originals="keep", review=str(base / "review"))
        self.roots["review"] = base / "review"
        self.templates, self._jobs = templates, 0
        self.recipe: Recipe = self.config.recipe_of(self.folder)

    def root(self, fs: FileSystem | None = None) -> SharedRoot:
        return SharedRoot(self.folder, self.recipe, fs)

    def job(self, path: str = "s/a.jpg") -> Job:
        """As a worker leases it, of what stands there now."""
        self._jobs += 1
        full = self.roots["input"] / path
        version = version_of(os.lstat(full))
        leased = Leased(f"RMBGD_HOT:{self._jobs}/1", fingerprint_of(version))
        place = (self._jobs, "shop", path, str(full), version, 1, 0.0, 0.0)
        return Job(*place, claimed_by_rename=False, final=True, leased=leased)

    def publish(self, job: Job, data: bytes, fs: FileSystem | None = None, *, review: bool = False) -> bool:
        """Whether it was there already, or another's was."""
        root = self.root(fs)
        with root.open_set(job) as files:
            set_writer(set_names(job.relative_path, self.templates), data, review=review)(files)
            return root.publish(job, files, done(job).keys)[1]

    def refuse(self, job: Job, fs: FileSystem | None = None) -> None:
        told = torn(job).keys
        story = {key: told[key] for key in ("folder", "path", "reason", "detail", "stage")}
        self.root(fs).refuse(job, story)

    def answer(self, job: Job) -> RootAnswer | None:
        assert job.leased is not None
        return self.root().answer(job.relative_path, job.leased.fingerprint)

    def content(self, path: str, data: bytes) -> dict[str, bytes]:
        return {name.plain: set_content(name, data) for name in set_names(path, self.templates)}

    def standing(self, role: str = "output") -> dict[str, bytes]:
        """Visible files without records."""
        return {path: data for path, data in self._visible(role).items() if not path.endswith(".json")}

    def records(self, role: str = "output") -> list[str]:
        return sorted(path for path in self._visible(role) if path.endswith(".json"))

    def _visible(self, role: str) -> dict[str, bytes]:
        return {path: data for path, data in self.files(role).items() if not names.is_temporary(os.path.basename(path))}

    def assert_answer_is_whole(self, job: Job, data: bytes) -> None:
        """What counts as done is done, whatever a worker died at."""
        if (answer := self.answer(job)) is not None and answer.kind == "done":
            wanted = self.content(job.relative_path, data)
            assert wanted.items() <= (self.standing("output") | self.standing("review")).items()

    def assert_only(self, job: Job, data: bytes, *, role: str = "output") -> None:
        """Nothing stands but the set of this version, with its record."""
        answer = self.answer(job)
        assert answer is not None
        assert answer.kind == "done"
        assert self.standing(role) == self.content(job.relative_path, data)
        assert len(self.records(role)) == 1
        other = "review" if role == "output" else "output"
        assert (self.standing(other), self.records(other), self.files("failed")) == ({}, [], {})


def crashes(base: Path, templates: Sequence[str], prepare: Callable[[Share], object]):
    """A share for each step of a publication, with a file system that stops behind so many."""
    for after in range(STEPS_MOST):
        folder = base / str(after)
        folder.mkdir()
        share = Share(folder, templates)
        prepare(share)
        fs = CrashingFs(after)
        yield share, fs
        share.close()
        if fs.taken < after:
            return
    pytest.fail("no publication ended")


def crash(action: Callable[[], object]) -> None:
    with contextlib.suppress(WorldStopped):
        action()


def first(share: Share) -> None:
    share.drop("s/a.jpg", b"new")


def over_older(share: Share) -> None:
    share.drop("s/a.jpg", b"old one")
    share.publish(share.job(), b"old one")
    share.drop("s/a.jpg", b"new")


def over_older_in_review(share: Share) -> None:
    share.drop("s/a.jpg", b"old one")
    share.publish(share.job(), b"old one", review=True)
    share.drop("s/a.jpg", b"new")


def over_refusal(share: Share) -> None:
    share.drop("s/a.jpg", b"old one")
    share.refuse(share.job())
    share.drop("s/a.jpg", b"new")


def over_its_own_refusal(share: Share) -> None:
    share.drop("s/a.jpg", b"new")
    share.refuse(share.job())


def over_part(share: Share) -> None:
    """Of this version, of which somebody removed a file."""
    share.drop("s/a.jpg", b"new")
    share.publish(share.job(), b"new")
    (share.roots["output"] / "s/a.png").unlink()


BEFORE = [first, over_older, over_older_in_review, over_refusal, over_its_own_refusal, over_part]


@pytest.mark.parametrize("templates", [PLAIN, THREE], ids=["one", "three"])
@pytest.mark.parametrize("prepare", BEFORE, ids=lambda each: each.__name__)
def test_whatever_a_worker_dies_at_the_next_one_makes_it_whole(
    tmp_path: Path, prepare: Callable[[Share], object], templates: Sequence[str]
) -> None:
    for share, dying in crashes(tmp_path, templates, prepare):
        job = share.job()
        crash(lambda share=share, job=job, dying=dying: share.publish(job, b"new", dying))
        share.assert_answer_is_whole(job, b"new")
        if share.answer(job) is None or share.answer(job).kind == "failed":  # type: ignore[union-attr]
            share.publish(share.job(), b"new")
        share.assert_only(share.job(), b"new")


@pytest.mark.parametrize("templates", [PLAIN, THREE], ids=["one", "three"])
def test_a_version_for_people_replaces_what_was_published(tmp_path: Path, templates: Sequence[str]) -> None:
    for share, dying in crashes(tmp_path, templates, over_older):
        job = share.job()
        crash(lambda share=share, job=job, dying=dying: share.publish(job, b"new", dying, review=True))
        share.assert_answer_is_whole(job, b"new")
        if share.answer(job) is None:
            share.publish(share.job(), b"new", review=True)
        share.assert_only(share.job(), b"new", role="review")


@pytest.mark.parametrize("templates", [PLAIN, THREE], ids=["one", "three"])
def test_a_crash_before_a_newer_version_leaves_nothing_of_the_older(tmp_path: Path, templates: Sequence[str]) -> None:
    for share, dying in crashes(tmp_path, templates, first):
        job = share.job()
        crash(lambda share=share, job=job, dying=dying: share.publish(job, b"new", dying))
        share.drop("s/a.jpg", b"newer than new")
        newer = share.job()
        assert share.answer(newer) is None
        share.publish(newer, b"newer than new")
        share.assert_only(newer, b"newer than new")


def test_whatever_a_worker_dies_at_a_refusal_is_there_or_not(tmp_path: Path) -> None:
    for share, dying in crashes(tmp_path, PLAIN, first):
        job = share.job()
        crash(lambda share=share, job=job, dying=dying: share.refuse(job, dying))
        answer = share.answer(job)
        assert answer is None or (answer.kind, answer.story["reason"]) == ("failed", "corrupt")
        share.refuse(job)
        assert share.answer(job) is not None


# --- answers


@pytest.fixture
def share(tmp_path: Path) -> Share:
    return Share(tmp_path, THREE)


def test_a_set_answers_for_its_version_and_recipe_only(share: Share) -> None:
    share.drop("s/a.jpg", b"old one")
    old = share.job()
    share.publish(old, b"old one")
    assert share.answer(old) is not None
    share.drop("s/a.jpg", b"new")
    assert share.answer(share.job()) is None
    other = SharedRoot(share.folder.model_copy(update={"recipe": "other"}), share.recipe)
    assert old.leased is not None
    assert other.answer("s/a.jpg", old.leased.fingerprint) is None


@pytest.mark.parametrize("file", ["s/a.png", "web/s/a.jpg", "masks/s/a.png", "s/a.png.json"])
def test_a_set_without_one_of_its_files_is_no_answer(share: Share, file: str) -> None:
    share.drop("s/a.jpg")
    job = share.job()
    share.publish(job, b"image")
    (share.roots["output"] / file).unlink()
    assert share.answer(job) is None


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"outputs": 3}', b"\xff", b'{"outputs": [{"path": "../x"}]}'])
def test_a_damaged_record_is_no_answer_and_nobodys(share: Share, damage: bytes) -> None:
    share.drop("s/a.jpg")
    job = share.job()
    share.publish(job, b"image")
    (share.roots["output"] / "s/a.png.json").write_bytes(damage)
    assert share.answer(job) is None
    share.publish(job, b"image")
    assert share.answer(job) is not None
    assert (share.roots["output"] / "s/a.png.json").read_bytes() == damage


def test_the_same_version_twice_is_told_of(share: Share) -> None:
    share.drop("s/a.jpg")
    assert not share.publish(share.job(), b"image")
    assert share.publish(share.job(), b"image")
    share.assert_only(share.job(), b"image")


def test_an_image_that_changed_is_not_published(share: Share) -> None:
    share.drop("s/a.jpg", b"old one")
    old = share.job()
    share.drop("s/a.jpg", b"new")
    with pytest.raises(SourceChanged):
        share.publish(old, b"old one")
    assert share.files("output") == {}


def test_files_of_a_root_that_is_not_there_are_not_gone(share: Share) -> None:
    share.drop("s/a.jpg")
    job = share.job()
    assert job.leased is not None
    share.roots["input"].rename(share.base / "away")
    with pytest.raises(OSError, match="input"):
        share.root().source("s/a.jpg", job.leased.fingerprint)


def test_where_nothing_is_mounted_any_more_no_image_is_gone(share: Share) -> None:
    """The mount point that is left is an empty folder."""
    share.drop("s/a.jpg")
    job, seen = share.job(), share.root()
    assert job.leased is not None
    fingerprint = job.leased.fingerprint
    assert seen.source("s/a.jpg", fingerprint).state == "ready"
    (share.roots["input"] / "s").rename(share.base / "away")
    for look in (lambda: share.root().source("s/a.jpg", fingerprint), lambda: share.root().fingerprint("s/a.jpg")):
        with pytest.raises(FileNotFoundError, match="nothing is mounted there"):
            look()
    assert seen.source("s/a.jpg", fingerprint).state == "gone"  # of the file system that had images
    assert seen.fingerprint("s/a.jpg") is None
    (share.roots["input"] / "b.jpg").touch()
    assert share.root().source("s/a.jpg", fingerprint).state == "gone"
    with pytest.raises(SourceChanged):
        share.publish(job, b"image")


def test_a_refusal_of_a_version_that_was_replaced_is_not_written(share: Share) -> None:
    share.drop("s/a.jpg", b"old one")
    old = share.job()
    share.drop("s/a.jpg", b"new")
    share.publish(share.job(), b"new")
    with pytest.raises(SourceChanged):
        share.refuse(old)
    share.assert_only(share.job(), b"new")


def test_a_version_that_is_replaced_while_folders_are_made_is_not_published(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes between the first look and the first rename may take as long as a share is away."""
    share.drop("s/a.jpg", b"old one")
    old = share.job()
    have_folders = SharedRoot._have_folders

    def slow(root: SharedRoot, *given: Any) -> bool:
        monkeypatch.setattr(SharedRoot, "_have_folders", have_folders)
        share.drop("s/a.jpg", b"new")
        share.publish(share.job(), b"new")
        return have_folders(root, *given)

    monkeypatch.setattr(SharedRoot, "_have_folders", slow)
    with pytest.raises(SourceChanged):
        share.publish(old, b"old one")
    share.assert_only(share.job(), b"new")


def test_a_record_that_cannot_be_read_just_now_is_nobody_elses(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    share.drop("s/a.jpg", b"old one")
    share.publish(share.job(), b"old one")
    share.drop("s/a.jpg", b"new")
    real = os.open

    def stale(path: str, *given: Any, **more: Any) -> int:
        if str(path).endswith("a.png.json"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", stale)
    with pytest.raises(StorageFault):
        share.publish(share.job(), b"new")
    monkeypatch.setattr(os, "open", real)
    share.publish(share.job(), b"new")
    share.assert_only(share.job(), b"new")


def test_inputs_have_the_age_of_their_arrival(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, years in (("old.jpg", -3), ("new.jpg", 0), ("ahead.jpg", 3)):
        share.drop(name)
        moment = time.time() + years * 365 * 86_400
        os.utime(share.roots["input"] / name, (moment, moment))
    share.drop("secret/a.jpg")
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: real(path if "secret" not in str(path) else f"{path}/a.jpg"))
    unread: list[str] = []
    entries = {each.key: each for each in share.root().inputs(unread)}
    assert entries.keys() == {"old.jpg", "new.jpg", "ahead.jpg"}
    assert unread == ["secret"]
    assert all(0 <= each.age < 600 for each in entries.values())
    assert all(each.unchanged >= each.age for each in entries.values())
    assert entries["old.jpg"].unchanged > 86_400


def test_old_temporaries_are_removed_wherever_they_lie(share: Share) -> None:
    share.drop("s/a.jpg")
    share.publish(share.job(), b"image")
    files = [
        root / "s" / names.temporary_name(7, ".png") for root in map(share.roots.get, ("output", "failed")) if root
    ]
    for path in (*files, files[0].with_name(names.temporary_name(8, ".png"))):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for path in files:
        os.utime(path, (1e9, 1e9))
    assert share.root().remove_leftovers() == 2
    assert not any(path.exists() for path in files)
    assert share.answer(share.job()) is not None
    assert share.root().remove_leftovers() == 0


# --- names of others


def test_two_inputs_of_one_stem_have_two_outputs(share: Share) -> None:
    for name, data in (("s/a.jpg", b"first"), ("s/a.png", b"other")):
        share.drop(name, data)
        share.publish(share.job(name), data)
    one, other = set_names("s/a.jpg", THREE), set_names("s/a.png", THREE)
    expected = {name.plain: set_content(name, b"first") for name in one}
    assert share.standing() == expected | {name.later: set_content(name, b"other") for name in other}
    for name in ("s/a.jpg", "s/a.png"):
        assert share.answer(share.job(name)) is not None
        assert share.publish(share.job(name), b"whatever")


def test_an_input_that_gets_its_first_name_later_leaves_its_second(share: Share) -> None:
    """The image that had it is gone, with its output."""
    for name, data in (("s/a.jpg", b"first"), ("s/a.png", b"other")):
        share.drop(name, data)
        share.publish(share.job(name), data)
    for path in (*share.content("s/a.jpg", b""), "s/a.png.json"):
        (share.roots["output"] / path).unlink()
    share.drop("s/a.png", b"newer")
    job = share.job("s/a.png")
    share.publish(job, b"newer")
    share.assert_only(job, b"newer")


@pytest.mark.parametrize("file", ["s/a.png", "web/s/a.jpg", "masks/s/a.png", "s/a.png.json"])
def test_files_of_somebody_else_are_left_alone(share: Share, file: str) -> None:
    share.drop("s/a.jpg")
    full = share.roots["output"] / file
    full.parent.mkdir(parents=True)
    full.write_bytes(b"mine")
    job = share.job()
    share.publish(job, b"image")
    assert full.read_bytes() == b"mine"
    assert share.answer(job) is not None
    later = {name.later: set_content(name, b"image") for name in set_names("s/a.jpg", THREE)}
    assert {path: data for path, data in share.standing().items() if path != file} == later


def test_where_both_names_are_taken_an_image_is_refused(share: Share) -> None:
    share.drop("s/a.jpg")
    for name in ("s/a.png", "s/a_jpg.png"):
        (share.roots["output"] / name).parent.mkdir(exist_ok=True)
        (share.roots["output"] / name).write_bytes(b"mine")
    with pytest.raises(ImageError) as refused:
        share.publish(share.job(), b"image")
    assert refused.value.reason is Reason.OUTPUT_TAKEN
    assert set(share.files("output")) == {"s/a.png", "s/a_jpg.png"}


def test_a_refusal_is_withdrawn_by_success_and_by_people(share: Share) -> None:
    share.drop("s/a.jpg", b"bad")
    bad = share.job()
    share.refuse(bad)
    answer = share.answer(bad)
    assert answer is not None
    assert (answer.kind, answer.story["reason"]) == ("failed", "corrupt")
    assert share.root().forget_refusal("s/a.jpg")
    assert not share.root().forget_refusal("s/a.jpg")
    assert share.answer(bad) is None
    share.refuse(bad)
    share.drop("s/a.jpg", b"good one")
    share.publish(share.job(), b"good one")
    share.assert_only(share.job(), b"good one")


@pytest.mark.parametrize("key", ["folder/a.jpg", "link.jpg", "here"])
def test_what_is_no_file_below_the_root_is_refused(share: Share, key: str) -> None:
    outside = share.base / "outside"
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"image")
    (share.roots["input"] / "folder").symlink_to(outside)
    (share.roots["input"] / "link.jpg").symlink_to(outside / "a.jpg")
    (share.roots["input"] / "here").mkdir()
    found = share.root().source(key, "5-1")
    assert found.state == "refused"
    assert found.version is not None  # of which its refusal is


@pytest.mark.parametrize(
    "key", ["a.jpg", "s/a.jpg", "file/a.jpg", "loop/a.jpg", "x" * 300 + ".jpg", "x" * 300 + "/a.jpg"]
)
def test_what_cannot_be_there_is_gone(share: Share, key: str) -> None:
    """Whoever announced it: it must not come back for ever."""
    (share.roots["input"] / "file").write_bytes(b"no folder")
    (share.roots["input"] / "loop").symlink_to("loop")
    assert share.root().source(key, "5-1").state == "gone"
    assert share.root().answer(key, "5-1") is None


def test_outputs_do_not_follow_links_out_of_the_root(share: Share) -> None:
    outside = share.base / "outside"
    outside.mkdir()
    (share.roots["output"] / "s").symlink_to(outside)
    share.drop("s/a.jpg")
    with pytest.raises(ImageError):
        share.publish(share.job(), b"image")
    assert list(outside.iterdir()) == []


# --- NFS


# Does what it is asked to, loses its answer, does it again and reports that it failed.


def again(operation: Callable[..., None]) -> Callable[..., None]:
    def twice(*given: object, **named: object) -> None:
        operation(*given, **named)
        operation(*given, **named)

    return twice


@pytest.mark.parametrize("flag", [True, False], ids=["renameat2", "link"])
@pytest.mark.parametrize("prepare", [first, over_older], ids=lambda each: each.__name__)
def test_a_server_that_does_things_twice_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Share], object], flag: bool
) -> None:
    share = Share(tmp_path, THREE)
    prepare(share)

    def lacking(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such flag")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", again(os.rename))
        patch.setattr(os, "link", again(os.link))
        patch.setattr(fs, "_renameat2", again(fs._renameat2) if flag else lacking)
        share.publish(share.job(), b"new")
    share.assert_only(share.job(), b"new")
    assert not [path for path in share.files("output") if names.is_temporary(os.path.basename(path))]
