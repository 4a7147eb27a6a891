"""Publishing, archiving and quarantine on real folders; and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from rmbgd import naming as names
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.publish.publisher import SourceChanged
from rmbgd.store.outbox import job_keys, refused
from rmbgd.store.records import ContentKey, FileName, Job, Published
from rmbgd.testing.fs import FailingFs
from tests.publish.conftest import Build
from tests.support.workspace import Workspace, done, sha256

CONTENT = ContentKey("in", "recipe")
STEPS = ["create", "sync_file", "rename_noreplace", "sync_folder"]


def claimed(it: Workspace, path: str, original: bytes = b"image") -> Job:
    it.drop(path, original)
    return it.claim(path)


def process(it: Workspace, path: str, cutout: bytes = b"cutout", original: bytes = b"image", **given: object):
    return it.publish(claimed(it, path, original), cutout, **given)


def copy(it: Workspace, job: Job, **given: object) -> Published | None:
    return it.publisher.publish_copy(job, it.known(), done(job), **given)


def refuse(it: Workspace, job: Job, reason: Reason = Reason.CORRUPT, detail: str = "torn") -> str | None:
    """Its path below the failed folder, which is in the event as well."""
    outcome = refused(job_keys(job), reason, detail, stage="decode")
    placed = it.publisher.quarantine.set_aside(job, outcome)
    assert outcome.keys.get("quarantine") == placed
    return placed


def temporaries(it: Workspace) -> list[str]:
    return [name for name in os.listdir(it.roots["output"]) if names.is_temporary(name)]


def test_an_output_appears_under_the_inputs_name(it: Workspace) -> None:
    published = process(it, "s/t/a.jpg", original=b"original")
    assert published.path == "s/t/a.png"
    assert (published.sha256, published.size) == (sha256(b"cutout"), 6)
    assert it.files("output") == {"s/t/a.png": b"cutout"}
    assert it.files("done") == {"s/t/a.jpg": b"original"}
    assert it.files("input") == {}


def test_an_output_has_the_mode_of_the_recipe(workspace: Build) -> None:
    it = workspace(recipe={"file_mode": "0644"})
    process(it, "a.jpg", sidecar_facts={"verdict": "empty"})
    assert {stat.S_IMODE(path.stat().st_mode) for path in it.roots["output"].iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("format_", "name"), [("png", "a.png"), ("webp", "a.webp"), ("tiff", "a.tif"), ("jpeg", "a.jpg")]
)
def test_the_extension_is_the_formats(workspace: Build, format_: str, name: str) -> None:
    assert process(workspace(recipe={"format": format_}), "a.jpeg").path == name


@pytest.mark.parametrize(
    "write",
    [
        lambda file: (file.write(b"head"), file.write(memoryview(b"body"))),
        lambda file: (file.write(b"head"), os.write(file.fileno(), b"body")),
        lambda file: (os.write(file.fileno(), b"head"), file.write(b"body")),
    ],
    ids=["in pieces", "descriptor", "descriptor first"],
)
def test_the_hash_is_that_of_the_file_however_it_was_written(it: Workspace, write: Callable[..., None]) -> None:
    job = claimed(it, "a.jpg")
    name = FileName.of_output("a.jpg", ".png")
    published = it.publisher.publish(job, lambda files: write(files.create(name)), done(job))
    assert it.files("output") == {"a.png": b"headbody"}
    assert (published.sha256, published.size) == (sha256(b"headbody"), 8)


def test_deleted_and_kept_originals(workspace: Build) -> None:
    it = workspace(originals="delete")
    process(it, "a.jpg")
    assert it.files("input") == it.files("done") == {}
    it.close()
    it = workspace(originals="keep")
    job = claimed(it, "b.jpg")
    it.publish(job)
    assert it.files("input") == {"b.jpg": b"image"}
    assert it.ledger.handled("shop", "b.jpg", job.version)
    assert it.ledger.unfinished() == []


def test_archived_names_never_overwrite(it: Workspace) -> None:
    for version in (b"1", b"2", b"3", b"4", b"5"):
        process(it, "a.jpg", b"cutout of " + version, original=version)
    archived = {"a.jpg": b"1", "a~2.jpg": b"2", "a~3.jpg": b"3", "a~4.jpg": b"4", "a~5.jpg": b"5"}
    assert (it.files("done"), it.files("output")) == (archived, {"a.png": b"cutout of 5"})


def test_an_output_that_the_ledger_forgot_is_not_published_twice(it: Workspace) -> None:
    """Damage of the ledger took the record between the rename and the end: the same bytes are ours, or may be."""
    (it.roots["output"] / "a.png").write_bytes(b"cutout")
    it.drop("a.jpg")
    assert it.work("a.jpg").path == "a.png"
    assert it.files("output") == {"a.png": b"cutout"}


def test_a_replaced_input_replaces_its_output_and_no_other(it: Workspace) -> None:
    outputs = {"a.jpg": "a.png", "a.png": "a_png.png", "a.JPG": "a_JPG.png", "s/a.jpg": "s/a.png"}
    for round_ in ("old", "new"):
        for path in outputs:
            process(it, path, f"{round_} {path}".encode())
    assert it.files("output") == {name: f"new {path}".encode() for path, name in outputs.items()}


@pytest.mark.parametrize(
    "make", [lambda path: path.write_bytes(b"mine"), Path.mkdir, lambda path: path.symlink_to("/etc/passwd")]
)
def test_a_strangers_file_is_left_alone(it: Workspace, make: Callable[[Path], object]) -> None:
    taken = it.roots["output"] / "a.png"
    make(taken)
    before = taken.lstat()
    assert [process(it, "a.jpg", cutout).path for cutout in (b"one", b"two")] == ["a~2.png", "a~2.png"]
    assert (it.roots["output"] / "a~2.png").read_bytes() == b"two"
    assert taken.lstat() == before


def test_an_output_that_somebody_edited_is_theirs(it: Workspace) -> None:
    """A cutout retouched by hand is a file we did not write; one that was only touched or restored still is ours."""
    process(it, "a.jpg", b"one")
    os.utime(it.roots["output"] / "a.png")
    assert process(it, "a.jpg", b"two").path == "a.png"
    (it.roots["output"] / "a.png").write_bytes(b"retouched")
    assert process(it, "a.jpg", b"three").path == "a~2.png"
    (it.roots["output"] / "a~2.png").write_bytes(b"too")
    assert process(it, "a.jpg", b"four").path == "a~3.png"
    assert it.files("output") == {"a.png": b"retouched", "a~2.png": b"too", "a~3.png": b"four"}


def test_a_consumer_may_take_outputs_away(it: Workspace) -> None:
    """The next version of the input has its old name again."""
    for version in (b"one", b"two"):
        process(it, "a.jpg", version)
        assert it.files("output") == {"a.png": version}
        (it.roots["output"] / "a.png").unlink()


def test_a_folder_that_is_called_like_an_output(it: Workspace) -> None:
    outputs = {"s.jpg": "s.png", "s.png/a.jpg": "s~2.png/a.png", "s.png/b.jpg": "s~2.png/b.png"}
    for path in [*outputs, *outputs]:
        process(it, path, path.encode())
    assert it.files("output") == {name: path.encode() for path, name in outputs.items()}


@pytest.mark.parametrize("role", ["output", "done", "failed"])
@pytest.mark.parametrize("path", ["sl/a.jpg", "s/sl/t/a.jpg"])
def test_results_do_not_leave_their_folder_through_a_link(workspace: Build, role: str, path: str) -> None:
    """Not even one that was put in the place of a folder that is in use; the folder itself may be one."""
    it = workspace()
    outside, link = it.base / "outside", it.roots[role] / path.partition("sl")[0] / "sl"
    aside = path.replace("sl", "sl~2")
    expected = {"output": aside.replace(".jpg", ".png"), "done": aside, "failed": f"{aside}.error.json"}
    elsewhere = it.roots["output"].rename(it.base / "elsewhere")
    it.roots["output"].symlink_to(elsewhere)

    def work(content: str) -> None:
        process(it, path, b"one", b"image", content=ContentKey(content, "recipe"))
        refuse(it, claimed(it, path, b"bad"))

    work("in")
    if link.is_dir():
        link.rename(outside)
    before = {each: (each.stat().st_ino, each.read_bytes()) for each in outside.rglob("*") if each.is_file()}
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    work("other")
    copied = copy(it, claimed(it, path))
    assert copied is not None
    assert (it.base / copied.output / copied.path).read_bytes() == b"one"
    assert expected[role] in it.files(role)
    assert {each: (each.stat().st_ino, each.read_bytes()) for each in outside.rglob("*") if each.is_file()} == before
    assert os.path.islink(link)


def test_an_output_whose_folder_has_become_a_file_moves(it: Workspace) -> None:
    process(it, "s/a.jpg")
    shutil.rmtree(it.roots["output"] / "s")
    (it.roots["output"] / "s").write_bytes(b"mine")
    assert process(it, "s/a.jpg").path == "s~2/a.png"


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".jpg", "x" * 255, "é" * 125 + ".jpg", "-rf", "%s\n$(id)", "caf\udce9.jpg", "x."]
)
def test_every_legal_name_gets_an_output(it: Workspace, name: str) -> None:
    process(it, name, sidecar_facts={"verdict": "empty"})
    assert len(it.files("output")) == 2
    assert set(it.files("done")) == {name}


def test_a_sidecar_stands_before_its_cutout_and_goes_with_it(it: Workspace) -> None:
    process(it, "a.jpg", b"one", sidecar_facts={"verdict": "empty"})
    story = json.loads(it.files("output")["a.png.json"])
    found = (story["verdict"], story["path"], story["output"], story["sha256"])
    assert found == ("empty", "a.jpg", "a.png", sha256(b"one"))
    process(it, "a.jpg", b"two", sidecar_facts={"verdict": "full"})
    assert json.loads(it.files("output")["a.png.json"])["verdict"] == "full"
    process(it, "a.jpg", b"three")
    assert it.files("output") == {"a.png": b"three"}


@pytest.mark.parametrize("stranger", [b'{"path": "a.jpg"}', b"[1]", b"no JSON"])
def test_a_strangers_sidecar_is_left_alone(it: Workspace, stranger: bytes) -> None:
    """A .json that we did not write costs the cutout its name, never the stranger the file."""
    (it.roots["output"] / "a.png.json").write_bytes(stranger)
    assert process(it, "a.jpg", b"one", sidecar_facts={"verdict": "empty"}).path == "a~2.png"
    assert it.files("output")["a.png.json"] == stranger
    assert set(it.files("output")) == {"a.png.json", "a~2.png", "a~2.png.json"}


def test_equal_content_is_copied(it: Workspace) -> None:
    process(it, "a.jpg", content=CONTENT, report={"width": 3})
    assert copy(it, claimed(it, "b.jpg"), sidecar_facts={"verdict": "empty"}).path == "b.png"
    assert it.files("output")["b.png"] == b"cutout"
    assert set(it.files("done")) == {"a.jpg", "b.jpg"}
    assert it.known().report == {"width": 3}
    assert it.ledger.same_content("in", "another recipe") is None


def test_an_output_that_is_right_already_is_not_written(workspace: Build) -> None:
    """A touched or uploaded-again original with the same content leaves the output's inode and time as they are."""
    it = workspace(originals="keep")
    process(it, "a.jpg", content=CONTENT)
    before = os.stat(it.roots["output"] / "a.png")
    os.utime(it.roots["input"] / "a.jpg")
    assert copy(it, it.claim("a.jpg")) is not None
    after = os.stat(it.roots["output"] / "a.png")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"CUTOUT"), Path.exists, os.mkfifo])
def test_a_known_output_that_is_another_by_now_is_forgotten(it: Workspace, spoil: Callable[[Path], object]) -> None:
    process(it, "a.jpg", content=CONTENT)
    (it.roots["output"] / "a.png").unlink()
    spoil(it.roots["output"] / "a.png")
    job = claimed(it, "b.jpg")
    assert copy(it, job) is None
    assert it.ledger.same_content("in", "recipe") is None
    assert not (it.roots["output"] / "b.png").exists()
    assert it.ledger.is_in_flight(job.job_id)
    assert temporaries(it) == []


@pytest.mark.parametrize("why", ["changed", "vanished"])
@pytest.mark.parametrize("originals", ["archive", "delete", "keep"])
def test_an_input_that_changed_meanwhile_is_not_published(workspace: Build, originals: str, why: str) -> None:
    """A writer that still had it open wrote on, or its whole folder is away, and may come back with other bytes."""
    it = workspace(originals=originals)
    job = claimed(it, "a.jpg")
    if why == "vanished":
        os.rename(it.roots["input"], it.base / "away")
    else:
        Path(job.source).write_bytes(b"image and more")
    with pytest.raises(SourceChanged) as caught:
        it.publish(job)
    assert caught.value.why == why
    assert it.files("output") == {}


@pytest.mark.parametrize("remove", [os.unlink, lambda path: shutil.rmtree(os.path.dirname(path))])
@pytest.mark.parametrize("originals", ["archive", "delete", "keep"])
def test_an_input_that_was_removed_meanwhile_is_published_and_says_so(
    workspace: Build, originals: str, remove: Callable[[str], object]
) -> None:
    it = workspace(originals=originals)
    job = claimed(it, "s/a.jpg")
    remove(job.source)
    outcome = done(job)
    outcome.add(notes=["rotated"])
    it.publish(job, outcome=outcome, content=CONTENT)
    assert it.files("output") == {"s/a.png": b"cutout"}
    assert outcome.keys["notes"] == ["rotated", "original_missing"]
    twin = claimed(it, "s/b.jpg")
    remove(twin.source)
    assert it.publisher.publish_copy(twin, it.known(), again := done(twin)) is not None
    assert again.keys["notes"] == ["original_missing"]
    it.ledger.flush()
    assert (it.ledger.unfinished(), it.events.named("storage.retire_failed"), it.files("done")) == ([], [], {})


def test_what_was_written_after_publishing_comes_in_again(workspace: Build) -> None:
    """New content is not deleted with the original: it is put back as a new arrival."""

    class WritesOn(FailingFs):
        def rename_noreplace(self, source: str, target: str, **folders: object) -> None:
            super().rename_noreplace(source, target, **folders)
            if target.endswith("a.png"):
                Path(job.source).write_bytes(b"image and more")

    it = workspace(originals="delete", fs=WritesOn({}))
    job = claimed(it, "a.jpg")
    it.publish(job)
    assert it.files("input") == {"a.jpg": b"image and more"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_refuses_costs_nothing(workspace: Build, step: str, code: int) -> None:
    it = workspace(fs=FailingFs({step: [code]}))
    job = claimed(it, "a.jpg", b"original")
    with pytest.raises(StorageFault):
        it.publish(job, sidecar_facts={})
    assert temporaries(it) == []
    assert Path(job.source).read_bytes() == b"original"
    assert it.publish(job, sidecar_facts={}).path == "a.png"
    assert set(it.files("output")) == {"a.png", "a.png.json"}
    assert it.files("done") == {"a.jpg": b"original"}


def test_a_failed_sync_is_not_tried_again(workspace: Build) -> None:
    """A second sync of the same descriptor may say that all is well when the pages are lost: write anew instead."""
    fs = FailingFs({"sync_file": [errno.EIO]})
    it = workspace(fs=fs)
    job = claimed(it, "a.jpg")
    with pytest.raises(StorageFault):
        it.publish(job)
    assert [name for name, _ in fs.calls].count("sync_file") == 1
    assert ("unlink", str(it.roots["output"] / names.temporary_name(job.job_id))) in fs.calls


@pytest.mark.parametrize(
    ("error", "seen"), [(OSError(errno.ENOSPC, "no room"), StorageFault), (ValueError("no room"), ValueError)]
)
def test_whose_fault_a_failing_encoder_is(it: Workspace, error: Exception, seen: type[Exception]) -> None:
    """Errors with an errno are the disk's, others are bugs and stay so; the temporary goes away in either case."""
    job = claimed(it, "a.jpg")
    with pytest.raises(seen) as caught:
        it.publisher.publish(job, mock.Mock(side_effect=error), done(job))
    assert getattr(caught.value, "kind", "disk_full") == "disk_full"
    assert it.files("output") == {}


def test_a_missing_output_is_never_made(it: Workspace) -> None:
    """It may be a disk that is not mounted: nothing is written below its mount point."""
    job = claimed(it, "s/a.jpg")
    it.roots["output"].rmdir()
    with pytest.raises(StorageFault) as caught:
        it.publish(job)
    assert caught.value.kind == "missing"
    assert not it.roots["output"].exists()


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    folder = tmp_path / "/".join(["d" * 200] * 18 + ["d" * 120])
    folder.mkdir(parents=True)
    return folder


def test_a_path_that_gets_too_long_is_the_images_fault(workspace: Build, deep: Path) -> None:
    with pytest.raises(ImageError) as caught:
        process(workspace(output=str(deep)), "x" * 150 + "/" + "y" * 200 + "/a.jpg")
    assert caught.value.reason is Reason.NAME_TOO_LONG


def test_an_original_that_cannot_be_moved_is_tried_again(it: Workspace) -> None:
    """The job is done, the event is emitted once, the tries grow apart, and nothing is computed again."""
    it.roots["done"].rmdir()
    process(it, "a.jpg", original=b"original")
    moments = []
    for _ in range(12):
        moments.append(it.publisher.archiver.retry() - it.clock.monotonic())
        it.clock.advance(moments[-1])
    assert (moments[:3], max(moments)) == ([1.0, 2.0, 4.0], 300.0)
    it.roots["done"].mkdir()
    assert it.publisher.archiver.retry() is None
    assert it.files("done") == {"a.jpg": b"original"}
    assert [event["path"] for event in it.events.named("storage.retire_failed")] == ["a.jpg"]


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EFBIG])
def test_an_archive_that_cannot_hold_the_original_takes_no_output_back(workspace: Build, code: int) -> None:
    """A name or a size that the other disk refuses: the output stands, and moving the original is tried again."""
    it = workspace(fs=FailingFs({"rename_noreplace": [0, errno.EXDEV, code]}))
    process(it, "a.jpg", original=b"original")
    assert [event["path"] for event in it.events.named("storage.retire_failed")] == ["a.jpg"]
    assert it.events.named("image.failed") == []
    it.clock.advance(1.0)
    assert it.publisher.archiver.retry() is None
    assert it.files("done") == {"a.jpg": b"original"}


@pytest.mark.parametrize("step", [{"create": [errno.ENAMETOOLONG]}, {"rename_noreplace": [0, errno.EFBIG]}])
def test_a_failed_folder_that_cannot_hold_the_original_stops_nothing(workspace: Build, step: dict) -> None:
    """The original stays claimed, the event is emitted, and the next start tries again: with the same reason file."""
    it = workspace(fs=FailingFs(step))
    job = claimed(it, "a.jpg")
    assert refuse(it, job) is None
    assert [event["path"] for event in it.events.named("storage.retire_failed")] == ["a.jpg"]
    assert [row.state for row in it.ledger.unfinished()] == ["failed"]
    assert refuse(it, job) == "a.jpg"
    assert sorted(it.files("failed")) == ["a.jpg", "a.jpg.error.json"]
    assert it.files("input") == {}


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    shm = "/dev/shm"
    if not os.access(shm, os.W_OK) or os.stat(shm).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is not writable, or no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def test_archives_and_failures_may_lie_on_another_disk(workspace: Build, other_disk: Path) -> None:
    (other_disk / "failed").mkdir()
    it = workspace(done=str(other_disk), failed=str(other_disk / "failed"))
    os.utime(it.drop("s/a.jpg", b"original"), ns=(1_000_000_000, 2_000_000_000))
    it.work("s/a.jpg")
    refuse(it, claimed(it, "s/b.jpg"))
    assert (other_disk / "s" / "a.jpg").read_bytes() == b"original"
    assert (other_disk / "s" / "a.jpg").stat().st_mtime_ns == 2_000_000_000
    assert sorted(os.listdir(other_disk / "failed" / "s")) == ["b.jpg", "b.jpg.error.json"]
    assert os.listdir(other_disk / "s") == ["a.jpg"]
    assert it.files("input") == {}


@pytest.mark.parametrize(("there", "archived"), [(b"original", ["a.jpg"]), (b"another", ["a.jpg", "a~2.jpg"])])
def test_a_copy_that_a_crash_interrupted_is_not_made_twice(
    workspace: Build, other_disk: Path, there: bytes, archived: list[str]
) -> None:
    """Copied but not removed: the next try finds the copy and removes the original. Another file is no copy."""
    (other_disk / "a.jpg").write_bytes(there)
    process(workspace(done=str(other_disk)), "a.jpg", original=b"original")
    assert sorted(os.listdir(other_disk)) == archived


def test_a_refused_original_stands_beside_its_reason(it: Workspace) -> None:
    """The path is mirrored, and the reason file says what an operator and a program need."""
    it.clock.advance(7)
    job = claimed(it, "s/a.jpg", b"torn")
    it.clock.advance(3)
    assert refuse(it, job, detail="bad marker \udcff") == "s/a.jpg"
    assert set(it.files("failed")) == {"s/a.jpg", "s/a.jpg.error.json"}
    story = json.loads(it.files("failed")["s/a.jpg.error.json"])
    assert (story["reason"], story["attempts"], story["sha256"], story["size"]) == ("corrupt", 1, sha256(b"torn"), 4)
    assert (story["first_seen"], story["time"]) == ("2026-01-01T00:00:07.000+00:00", "2026-01-01T00:00:10.000+00:00")
    assert it.files("input") == {}
    assert it.ledger.counts() == {"failed": 1}


def test_the_same_name_refused_again_stands_beside_the_first(it: Workspace) -> None:
    (it.roots["failed"] / "a~2.jpg").write_bytes(b"stranger")
    for number in (b"0", b"1", b"2"):
        refuse(it, claimed(it, "a.jpg", number))
    found = it.files("failed")
    reasons = {path for path in found if path.endswith(".json")}
    originals = {path: data for path, data in found.items() if path not in reasons}
    assert originals == {"a.jpg": b"0", "a~2.jpg": b"stranger", "a~3.jpg": b"1", "a~4.jpg": b"2"}
    assert reasons == {"a.jpg.error.json", "a~3.jpg.error.json", "a~4.jpg.error.json"}


def test_a_kept_original_is_refused_in_place(workspace: Build) -> None:
    it = workspace(originals="keep")
    job = claimed(it, "a.jpg")
    assert refuse(it, job) is None
    assert it.files("input") == {"a.jpg": b"image"}
    assert set(it.files("failed")) == {"a.jpg.error.json"}
    assert it.ledger.handled("shop", "a.jpg", job.version)


@pytest.mark.parametrize("step", STEPS)
def test_a_quarantine_that_the_disk_refuses_is_done_later(workspace: Build, step: str) -> None:
    it = workspace(fs=FailingFs({step: [errno.ENOSPC]}))
    job = claimed(it, "a.jpg", b"torn")
    with pytest.raises(StorageFault):
        refuse(it, job)
    assert Path(job.source).read_bytes() == b"torn"
    assert refuse(it, job) == "a.jpg"
    assert set(it.files("failed")) == {"a.jpg", "a.jpg.error.json"}


def test_a_path_too_long_for_the_failed_folder_is_cut(workspace: Build, deep: Path) -> None:
    name = "a" * 251 + ".jpg"
    it = workspace(failed=str(deep))
    assert refuse(it, claimed(it, "x" * 150 + "/" + "y" * 200 + "/" + name), Reason.NAME_TOO_LONG) == name
    assert len(os.listdir(deep)) == 2
