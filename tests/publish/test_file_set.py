"""Sets of files: all of one image's files are published, or none; whatever fails, and wherever the world stops."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from rmbgd import naming as names
from rmbgd.errors import StorageFault
from rmbgd.intake.startup_recovery import Recovery
from rmbgd.publish.file_set import FileSet
from rmbgd.store.records import ContentKey, FileName, Job, Published
from rmbgd.testing.fs import FailingFs, WorldStopped
from tests.publish.conftest import Build
from tests.support.run import DAY, Run, set_files, set_names, set_writer
from tests.support.workspace import Workspace, done, sha256

THREE = ("{dir}/{stem}.png", "web/{dir}/{stem}.jpg", "{dir}/{stem}_mask.png")
TWO = THREE[1:]
PART = "{dir}/{stem}~{subject}.png"
CONTENT = ContentKey("in", "recipe")


@pytest.fixture
def reviewed(workspace: Build, tmp_path: Path) -> Iterator[Workspace]:
    """A folder whose review lies on another file system, where there is one."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm) as review:
        it = workspace(review=review)
        it.roots["review"] = Path(review)
        yield it


def claimed(it: Workspace, path: str, data: bytes = b"image") -> Job:
    it.drop(path, data)
    return it.claim(path)


def publish(
    it: Workspace,
    job: Job,
    templates: Sequence[str] = THREE,
    data: bytes = b"image",
    *,
    when: date = DAY,
    review: bool = False,
    **given: Any,
) -> Published:
    outcome = given.pop("outcome", None) or done(job)
    write = set_writer(set_names(job.relative_path, templates, when), data, review=review)
    return it.publisher.publish(job, write, outcome, **given)


def process(it: Workspace, path: str, templates: Sequence[str] = THREE, data: bytes = b"image", **given: Any):
    return publish(it, claimed(it, path, data), templates, data, **given)


def temporaries(it: Workspace) -> list[str]:
    return [path for role in it.roots for path in it.files(role) if names.is_temporary(os.path.basename(path))]


# --- what is published


def test_a_set_is_published_whole(it: Workspace) -> None:
    job = claimed(it, "s/a.jpg")
    published = publish(it, job, outcome=(outcome := done(job)))
    assert it.files("output") == set_files("s/a.jpg", THREE, b"image")
    assert [file.path for file in published.files] == ["s/a.png", "web/s/a.jpg", "s/a_mask.png"]
    first = it.files("output")["s/a.png"]
    assert (outcome.keys["output"], outcome.keys["sha256_out"]) == ("s/a.png", sha256(first))
    assert outcome.keys["outputs"][0] == {
        "path": "s/a.png", "sha256": sha256(first), "size": len(first), "format": "png"
    }  # fmt: skip
    assert [each["path"] for each in outcome.keys["outputs"]] == [file.path for file in published.files]
    assert set(it.files("done")) == {"s/a.jpg"}


def test_no_folder_is_made_that_no_file_goes_to(it: Workspace) -> None:
    process(it, "s/a.jpg", ["amazon/{stem}.jpg", "web/{stem}.png"])
    assert sorted(os.listdir(it.roots["output"])) == ["amazon", "web"]


def test_what_was_written_can_be_read_again(it: Workspace) -> None:
    job, seen = claimed(it, "a.jpg"), []

    def write(files: FileSet) -> None:
        file = files.create(FileName.of_output("a.jpg", ".png"))
        file.write(b"head")
        seen.append(files.data(file))
        file.write(b"body")
        seen.append(files.data(file))

    it.publisher.publish(job, write, done(job))
    assert (seen, it.files("output")) == ([b"head", b"headbody"], {"a.png": b"headbody"})


@pytest.mark.parametrize(
    ("before", "after"),
    [(THREE, TWO), (TWO, THREE), ([PART] * 4, [PART] * 2), ([PART] * 2, [PART] * 4), (THREE, ["{dir}/{stem}.png"])],
)
def test_a_replaced_input_replaces_its_set(it: Workspace, before: Sequence[str], after: Sequence[str]) -> None:
    """What is in it no more is taken away, and nothing of another input."""
    process(it, "b.jpg", before, b"other")
    process(it, "a.jpg", before, b"old")
    process(it, "a.jpg", after, b"new")
    assert it.files("output") == set_files("a.jpg", after, b"new") | set_files("b.jpg", before, b"other")
    process(it, "a.jpg", before, b"newest")
    assert it.files("output") == set_files("a.jpg", before, b"newest") | set_files("b.jpg", before, b"other")


def test_a_recipe_that_lists_files_takes_over_from_one_that_did_not(it: Workspace) -> None:
    it.drop("a.jpg", b"old")
    it.work("a.jpg", sidecar_facts={"verdict": "ok"})
    process(it, "a.jpg", ["web/{stem}.png", "{dir}/{stem}.png"], b"new")
    assert it.files("output") == set_files("a.jpg", ["web/{stem}.png", "{dir}/{stem}.png"], b"new")


def test_a_name_that_holds_a_date_follows_it(it: Workspace) -> None:
    dated = ["{date:%Y-%m-%d}/{stem}.png", "{dir}/{stem}.png"]
    process(it, "a.jpg", dated, b"old")
    process(it, "a.jpg", dated, b"new", when=date(2026, 2, 1))
    assert set(it.files("output")) == {"2026-02-01/a.png", "a.png"}


def test_a_file_that_somebody_edited_stays_when_its_set_goes(it: Workspace) -> None:
    process(it, "a.jpg", data=b"old")
    (it.roots["output"] / "a.png").write_bytes(b"retouched")
    process(it, "a.jpg", TWO, b"new")
    assert it.files("output") == set_files("a.jpg", TWO, b"new") | {"a.png": b"retouched"}


@pytest.mark.parametrize("taken", ["a.png", "web/a.jpg", "a_mask.png"])
@pytest.mark.parametrize(
    "make", [lambda path: path.write_bytes(b"mine"), Path.mkdir, lambda path: path.symlink_to("/")]
)
def test_a_strangers_file_at_one_name_moves_the_whole_set(
    it: Workspace, taken: str, make: Callable[[Path], object]
) -> None:
    """And our other files of the old number go."""
    process(it, "a.jpg", data=b"old")
    (it.roots["output"] / taken).unlink()
    make(it.roots["output"] / taken)
    before = (it.roots["output"] / taken).lstat()
    for data in (b"new", b"newest"):
        process(it, "a.jpg", data=data)
        found = {path: held for path, held in it.files("output").items() if path != taken}
        assert found == {names.version_of(path, 2): held for path, held in set_files("a.jpg", THREE, data).items()}
    assert (it.roots["output"] / taken).lstat() == before
    assert len(it.ledger.database.all("SELECT * FROM target")) == 3


def test_two_inputs_of_one_stem_keep_their_sets_apart(it: Workspace) -> None:
    for round_ in (b"old", b"new"):
        for path in ("a.jpg", "a.png"):
            process(it, path, data=round_ + path.encode())
    later = {name.later: b"%s of new%s" % (name.slot.encode(), b"a.png") for name in set_names("a.png", THREE)}
    assert set(later) == {"a_png.png", "web/a_png.jpg", "a_png_mask.png"}
    assert it.files("output") == set_files("a.jpg", THREE, b"newa.jpg") | later


def test_templates_that_give_a_folder_to_each_image(it: Workspace) -> None:
    """The later names lie in another folder then; they stay the input's, too."""
    for path in ("a.jpg", "a.png", "a.png"):
        process(it, path, ["{stem}/web.jpg", "{stem}/mask.png"])
    assert set(it.files("output")) == {"a/web.jpg", "a/mask.png", "a_png/web.jpg", "a_png/mask.png"}


def test_a_folder_of_the_set_whose_name_a_file_has(it: Workspace) -> None:
    (it.roots["output"] / "web").write_bytes(b"mine")
    for data in (b"old", b"new"):
        process(it, "s/a.jpg", data=data)
        expected = {path.replace("web/", "web~2/"): held for path, held in set_files("s/a.jpg", THREE, data).items()}
        assert it.files("output") == {"web": b"mine"} | expected


def test_a_sidecar_stands_beside_the_first_file_and_names_the_others(it: Workspace) -> None:
    process(it, "a.jpg", sidecar_facts={"verdict": "full"})
    story = json.loads(it.files("output")["a.png.json"])
    assert [each["path"] for each in story["outputs"]] == ["a.png", "web/a.jpg", "a_mask.png"]
    process(it, "a.jpg", TWO, sidecar_facts={"verdict": "full"})
    assert set(it.files("output")) == {"web/a.jpg", "web/a.jpg.json", "a_mask.png"}
    (it.roots["output"] / "web/a.jpg.json").write_bytes(b"mine")
    process(it, "a.jpg", TWO, sidecar_facts={"verdict": "full"})
    kept = {"web/a.jpg.json", "web/a~2.jpg", "web/a~2.jpg.json", "a_mask~2.png"}
    assert set(it.files("output")) == kept


# --- equal content


def copy(it: Workspace, job: Job) -> Published | None:
    wanted = set_names(job.relative_path, THREE)
    return it.publisher.publish_copy(job, it.known(), done(job), wanted=wanted)


def test_equal_content_gets_a_copy_of_the_whole_set(it: Workspace) -> None:
    process(it, "a.jpg", content=CONTENT, report={"width": 3})
    job = claimed(it, "s/b.jpg")
    assert copy(it, job) is not None
    assert it.files("output") == set_files("a.jpg", THREE, b"image") | set_files("s/b.jpg", THREE, b"image")
    assert [file.facts for file in it.known().files] == [{"format": "png"}] * 3


def test_a_set_that_is_right_already_is_not_written(workspace: Build) -> None:
    it = workspace(originals="keep")
    process(it, "a.jpg", content=CONTENT)
    before = {path: os.stat(it.roots["output"] / path).st_ino for path in it.files("output")}
    os.utime(it.roots["input"] / "a.jpg")
    job = it.claim("a.jpg")
    published = it.publisher.publish_copy(job, it.known(), outcome := done(job), wanted=set_names("a.jpg", THREE))
    assert published is not None
    assert len(outcome.keys["outputs"]) == 3
    assert before == {path: os.stat(it.roots["output"] / path).st_ino for path in it.files("output")}


@pytest.mark.parametrize("spoilt", sorted(set_files("a.jpg", THREE, b"")))
def test_a_known_set_of_which_a_file_is_another_by_now_is_forgotten(it: Workspace, spoilt: str) -> None:
    process(it, "a.jpg", content=CONTENT)
    (it.roots["output"] / spoilt).write_bytes(b"retouched")
    assert copy(it, claimed(it, "b.jpg")) is None
    assert it.ledger.same_content("in", "recipe") is None
    assert (len(it.files("output")), temporaries(it)) == (3, [])


# --- the folder for people


def doubtful(job: Job) -> Any:
    outcome = done(job)
    outcome.add(verdict="review", score=0.3, reasons=["two subjects"], review={"holes": 2})
    return outcome


def test_a_set_for_people_is_theirs_alone(reviewed: Workspace) -> None:
    """On whatever file system; it is not known for equal images, and what stands in output stays."""
    it = reviewed
    process(it, "s/a.jpg", data=b"old")
    job = claimed(it, "s/a.jpg", b"new")
    publish(it, job, data=b"new", review=True, content=CONTENT, outcome=doubtful(job))
    assert it.files("output") == set_files("s/a.jpg", THREE, b"old")
    assert it.files("review") == set_files("s/a.jpg", THREE, b"new")
    assert it.ledger.same_content("in", "recipe") is None
    query = "SELECT job, folder, path, score, reasons, facts, state FROM review"
    row = (job.job_id, "shop", b"s/a.jpg", 0.3, '["two subjects"]', '{"holes": 2}', "open")
    assert it.ledger.database.all(query) == [row]
    assert it.ledger.database.all("SELECT score, coverage FROM job WHERE id=?", (job.job_id,)) == [(0.3, 0.5)]
    assert temporaries(it) == []


def test_a_newer_set_takes_that_of_the_older_version_away_from_people(reviewed: Workspace) -> None:
    it = reviewed
    old = claimed(it, "a.jpg", b"old")
    publish(it, old, data=b"old", review=True, outcome=doubtful(old))
    newer = claimed(it, "a.jpg", b"newer")
    publish(it, newer, TWO, data=b"newer", review=True, outcome=doubtful(newer))
    assert it.files("review") == set_files("a.jpg", TWO, b"newer")
    process(it, "a.jpg", data=b"newest")
    assert (it.files("review"), it.files("output")) == ({}, set_files("a.jpg", THREE, b"newest"))
    assert it.ledger.database.all("SELECT state FROM review") == [("replaced",), ("replaced",)]


def test_a_set_that_stands_takes_a_doubtful_one_away_from_people(reviewed: Workspace) -> None:
    """The older content came back, and its set stands still: copied or not, nobody is to look at the other."""
    it = reviewed
    process(it, "a.jpg", data=b"old", content=CONTENT)
    job = claimed(it, "a.jpg", b"new")
    publish(it, job, data=b"new", review=True, outcome=doubtful(job))
    assert copy(it, claimed(it, "a.jpg", b"old")) is not None
    assert (it.files("output"), it.files("review")) == (set_files("a.jpg", THREE, b"old"), {})
    assert it.ledger.database.all("SELECT state FROM review") == [("replaced",)]


def test_a_review_that_is_not_there_is_a_disk_that_is_away(workspace: Build, tmp_path: Path) -> None:
    it = workspace(review=str(tmp_path / "review"))
    job = claimed(it, "a.jpg")
    with pytest.raises(StorageFault) as caught:
        publish(it, job, review=True)
    assert caught.value.kind == "missing"
    assert (it.files("output"), (tmp_path / "review").exists()) == ({}, False)


# --- what the disk refuses


class Mounted(FailingFs):
    """A file system of its own below output/web."""

    def _cross(self, source: str, target: str) -> None:
        if ("/output/web/" in source) != ("/output/web/" in target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)

    def rename(self, source: str, target: str, **folders: Any) -> None:
        self._cross(source, target)
        super().rename(source, target, **folders)

    def rename_noreplace(self, source: str, target: str, **folders: Any) -> None:
        self._cross(source, target)
        super().rename_noreplace(source, target, **folders)


def test_a_folder_of_the_set_may_be_on_another_file_system(workspace: Build) -> None:
    it = workspace(fs=Mounted({}))
    for data in (b"old", b"new"):
        process(it, "s/a.jpg", data=data)
        assert it.files("output") == set_files("s/a.jpg", THREE, data)


@pytest.mark.parametrize("fs", [FailingFs, Mounted])
@pytest.mark.parametrize("step", ["create", "sync_file", "rename", "rename_noreplace", "make_folder", "sync_folder"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_disk_that_refuses_any_step_leaves_nothing_half(
    base: Path, fs: type[FailingFs], step: str, *, replaced: bool
) -> None:
    """Until all have their names, none has one; the same job is published when the disk accepts it."""
    for number in itertools.count():
        (place := base / str(number)).mkdir()
        with closing(Workspace(place)) as first:
            if replaced:
                process(first, "s/a.jpg", data=b"old")
        new = set_files("s/a.jpg", THREE, b"new")
        with closing(Workspace(place, fs=fs({step: [0] * number + [errno.ENOSPC]}))) as it:
            job = claimed(it, "s/a.jpg", b"new")
            try:
                publish(it, job, data=b"new", sidecar_facts={})
            except StorageFault:
                found = {path: data for path, data in it.files("output").items() if data in new.values()}
                assert found in ({}, new)
                assert not found or step == "sync_folder"
                assert temporaries(it) == []
                assert Path(job.source).read_bytes() == b"new"
                publish(it, job, data=b"new", sidecar_facts={})
                failed = True
            else:
                failed = bool(it.events.named("storage.retire_failed"))
            output = it.files("output")
            assert output.pop("s/a.png.json")
            assert output == new
        shutil.rmtree(place)
        if not failed:
            break
    assert number > 0 or (step, replaced) in {("rename", False), ("make_folder", True)}


# --- a world that stops


@pytest.fixture
def base() -> Iterator[Path]:
    """In memory where possible: thousands of synced commits."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def check_whole(run: Run, sets: Sequence[dict[str, bytes]]) -> None:
    """Of each of these sets, every file is there, or none; nothing else is but older versions, and no temporaries."""
    output = run.files("output")
    for wanted in sets:
        assert wanted.items() <= output.items() or not wanted.items() & output.items()
    assert {path.removesuffix(".json") for path in output if path.endswith(".json")} <= output.keys()
    assert temporaries(run) == []


DROPPED = {"a.jpg": b"good one", "s/b.jpg": b"empty one", "c.jpg": b"good one"}  # a twin, and one with a sidecar


def check_ended(run: Run, dropped: dict[str, bytes], templates: Sequence[str]) -> None:
    output = {path: data for path, data in run.files("output").items() if not path.endswith(".json")}
    assert output == {
        path: data for name in dropped for path, data in set_files(name, templates, dropped[name]).items()
    }
    sidecars = {path for path in run.files("output") if path.endswith(".json")}
    first = templates[0].replace("{dir}", "s").replace("{stem}", "b")
    assert sidecars == ({f"{first}.json"} if "s/b.jpg" in dropped else set())
    assert {event["outputs"][0]["path"] for event in run.events.named("image.done")} <= output.keys()


@pytest.mark.parametrize("originals", ["archive", "keep"])
def test_killed_after_any_step_a_set_is_whole_or_absent(base: Path, originals: str) -> None:
    """At the next start, before anything is computed again; and then everything is whole."""
    for steps in itertools.count():
        (place := base / str(steps)).mkdir()
        died = True
        with Run(place, steps, templates=THREE, originals=originals) as run, suppress(WorldStopped):
            for path, data in DROPPED.items():
                run.drop(path, data)
            run.work_off()
            died = False
        with Run(place, templates=THREE, originals=originals) as again:
            again.recovery.recover()
            check_whole(again, [set_files(path, THREE, data) for path, data in DROPPED.items()])
            again.work_on()
            check_ended(again, DROPPED, THREE)
        shutil.rmtree(place)
        if not died:
            break
    assert steps > 60


@pytest.mark.parametrize(
    ("before", "after"), [(THREE, TWO), (TWO, THREE), ([PART] * 4, [PART] * 2), ([*THREE[:2]], ["web/{stem}.jpg"])]
)
@pytest.mark.parametrize("stranger", ["", "web/a.jpg", "a~1.png"])
def test_killed_while_a_set_is_replaced(base: Path, before: Sequence[str], after: Sequence[str], stranger: str) -> None:
    """The new set is whole or absent at the next start; and in the end it is there, and what it has no more is not."""
    ended: set[frozenset[str]] = set()
    for steps in itertools.count():
        (place := base / str(steps)).mkdir()
        with Run(place, templates=before) as first:
            first.drop("a.jpg", b"old")
            first.work_off()
        if stranger and (place / "output" / stranger).exists():
            (place / "output" / stranger).write_bytes(b"mine")
        died = True
        with Run(place, steps, templates=after) as run, suppress(WorldStopped):
            run.drop("a.jpg", b"new")
            run.work_off()
            died = False
        new = set_files("a.jpg", after, b"new")
        with Run(place, templates=after) as again:
            again.recovery.recover()
            found = set(again.files("output").values()) & set(new.values())
            assert found in (set(), set(new.values()))
            assert temporaries(again) == []
            again.work_on()
            output = again.files("output")
            ended.add(frozenset(output))
            assert sorted(data for data in output.values() if data != b"mine") == sorted(new.values())
            assert again.ledger.database.one("SELECT count(*) FROM target") == (len(after),)
        shutil.rmtree(place)
        if not died:
            break
    assert (len(ended), steps > 10) == (1, True), "how it ends hangs on where it was killed"


def test_killed_on_the_way_to_people(base: Path) -> None:
    """Across file systems, and with files that go elsewhere: a temporary lies in one place or the other."""
    for steps in itertools.count():
        (place := base / str(steps)).mkdir()
        (place / "review").mkdir()
        died = True
        with Run(place, steps, review=str(place / "review"), templates=THREE) as run, suppress(WorldStopped):
            run.roots["review"] = place / "review"
            run.drop("a.jpg", b"new")
            job = run.claim("a.jpg")
            (outcome := done(job)).add(verdict="review")
            publish(run, job, data=b"new", review=True, outcome=outcome)
            died = False
        with Run(place, review=str(place / "review"), templates=THREE) as again:
            again.roots["review"] = place / "review"
            again.recovery.recover()
            assert (again.files("output"), temporaries(again)) == ({}, [])
            assert again.files("review") in ({}, set_files("a.jpg", THREE, b"new"))
            asked = again.ledger.database.one("SELECT count(*) FROM review")
            assert asked == (bool(again.files("review")),)
        shutil.rmtree(place)
        if not died:
            break
    assert steps > 15


@pytest.mark.slow
def test_killed_again_while_recovering(base: Path) -> None:
    """At every step of the first run that publishes, and then at every step of the recovery after it."""
    for steps in itertools.count(5):
        died = True
        for more in itertools.count():
            place = Path(tempfile.mkdtemp(dir=base))
            with Run(place, templates=THREE) as first:
                first.drop("a.jpg", b"old")
                first.work_off()
            with Run(place, steps, templates=TWO, intake={"attempts": 10}) as run, suppress(WorldStopped):
                run.drop("a.jpg", b"new")
                run.work_off()
                died = False
            recovered = False
            with Run(place, more, templates=TWO, intake={"attempts": 10}) as second, suppress(WorldStopped):
                second.work_off()
                recovered = True
            with Run(place, templates=TWO, intake={"attempts": 10}) as last:
                last.recovery.recover()
                check_whole(last, [set_files("a.jpg", TWO, b"new")])
                last.work_on()
                assert last.files("output") == set_files("a.jpg", TWO, b"new")
            shutil.rmtree(place)
            if recovered:
                break
        if not died:
            break


class StopsAtTheLast(FailingFs):
    """The world stops before a.png gets its name."""

    stopped = False

    def rename_noreplace(self, source: str, target: str, **folders: Any) -> None:
        self.stopped = target.endswith("/a.png")
        if self.stopped:
            raise WorldStopped
        super().rename_noreplace(source, target, **folders)

    def unlink(self, path: str, **folders: Any) -> None:
        if self.stopped:
            raise WorldStopped
        super().unlink(path, **folders)


@pytest.mark.parametrize("lost", [(), ("a.png",), ("a.png", "a_mask.png")])
def test_a_set_that_was_begun_is_finished_or_taken_back(workspace: Build, lost: Sequence[str]) -> None:
    """By what a power cut left of its temporaries."""

    first = workspace(fs=StopsAtTheLast({}))
    job = claimed(first, "a.jpg", b"new")
    with pytest.raises(WorldStopped):
        publish(first, job, data=b"new")
    first.close()
    it = workspace()
    for path in lost:
        for lying in (it.roots["output"] / path, it.roots["output"] / names.temporary_name(job.job_id)):
            lying.unlink(missing_ok=True)
    found = Recovery(it.config, it.ledger, it.publisher, it.events).recover()
    if lost:
        assert (found.published, found.jobs, it.files("output")) == (0, 1, {})
    else:
        assert (found.published, it.files("output")) == (1, set_files("a.jpg", THREE, b"new"))
        (event,) = it.events.named("image.done")
        assert [each["path"] for each in event["outputs"]] == ["a.png", "web/a.jpg", "a_mask.png"]


def test_what_was_announced_before_is_not_waited_for(workspace: Build) -> None:
    """The disk refused a set of four; the same image then gave two, and the world stopped at the last of them."""
    fs = StopsAtTheLast({"rename_noreplace": [0, 0, errno.ENOSPC]})
    first = workspace(fs=fs)
    job = claimed(first, "a.jpg", b"new")
    with pytest.raises(StorageFault):
        publish(first, job, [PART] * 4, b"new")
    with pytest.raises(WorldStopped):
        publish(first, job, THREE[:2], b"new")
    first.close()
    it = workspace()
    assert Recovery(it.config, it.ledger, it.publisher, it.events).recover().published == 1
    assert it.files("output") == set_files("a.jpg", THREE[:2], b"new")
