"""Publishing, archiving and quarantine on real folders; and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rmbgd import naming as names
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.publish.publisher import SourceChanged
from rmbgd.store.outbox import job_keys, refused
from rmbgd.store.records import ContentKey, Job, Published
from rmbgd.testing.fs import FailingFs
from tests.support.workspace import Workspace, done, sha256

CONTENT = ContentKey("in", "recipe")


def refuse(it: Workspace, job: Job, reason: Reason = Reason.CORRUPT, detail: str = "torn", *, stage: str = "decode"):
    """Quarantine a job; its path below the failed folder, which is in the event as well."""
    outcome = refused(job_keys(job), reason, detail, stage=stage)
    placed = it.publisher.quarantine.set_aside(job, outcome)
    assert outcome.keys.get("quarantine") == placed
    return placed


def copy(it: Workspace, job: Job, **given: object) -> Published | None:
    return it.publisher.publish_copy(job, it.known(), done(job), **given)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Callable[..., Workspace]]:
    built: list[Workspace] = []

    def build(**given: object) -> Workspace:
        built.append(Workspace(tmp_path, **given))
        return built[-1]

    yield build
    for each in built:
        each.close()


# ---------------------------------------------------------------------------------------------- the way of one


def test_an_output_appears_under_the_inputs_name(workspace: Callable[..., Workspace]) -> None:
    """The relative path is mirrored, the original archived under its own, and nothing else is left anywhere."""
    it = workspace()
    it.drop("s/t/a.jpg", b"original")

    published = it.work("s/t/a.jpg", b"cutout")

    assert published.path == "s/t/a.png"
    assert (published.sha256, published.size, published.reused) == (sha256(b"cutout"), 6, False)
    assert it.files("output") == {"s/t/a.png": b"cutout"}
    assert it.files("done") == {"s/t/a.jpg": b"original"}
    assert it.files("input") == {}
    assert it.ledger.unfinished()[0].state == "done"  # that its original was moved is written with the next commit
    it.drop("b.jpg")
    it.claim("b.jpg")
    assert [row.relative_path for row in it.ledger.unfinished()] == ["b.jpg"]


def test_an_output_has_the_mode_of_the_recipe(workspace: Callable[..., Workspace]) -> None:
    """Whatever the umask of the service is."""
    it = workspace(recipe={"file_mode": "0644"})
    it.drop("a.jpg")
    before = os.umask(0o077)
    try:
        it.work("a.jpg", sidecar_facts={"verdict": "empty"})
    finally:
        os.umask(before)

    assert {stat.S_IMODE(path.stat().st_mode) for path in it.roots["output"].iterdir()} == {0o644}


@pytest.mark.parametrize(("format_", "name"), [("png", "a.png"), ("webp", "a.webp"), ("tiff", "a.tif")])
def test_the_extension_is_the_formats(workspace: Callable[..., Workspace], format_: str, name: str) -> None:
    """Of the output, whatever the input's was."""
    it = workspace(recipe={"format": format_})
    it.drop("a.jpeg")

    assert it.work("a.jpeg").path == name


def test_the_hash_is_that_of_the_file_however_it_was_written(workspace: Callable[..., Workspace]) -> None:
    """Writing through the descriptor, before or after other bytes, does not spoil the hash."""
    it = workspace()
    for name, write in {
        "in pieces": lambda file: (file.write(b"head"), file.write(memoryview(b"body"))),
        "descriptor": lambda file: (file.write(b"head"), os.write(file.fileno(), b"body")),
        "descriptor first": lambda file: (os.write(file.fileno(), b"head"), file.write(b"body")),
    }.items():
        it.drop(f"{name}.jpg", name.encode())
        job = it.claim(f"{name}.jpg")
        published = it.publisher.publish(job, write, done(job))

        assert it.files("output")[f"{name}.png"] == b"headbody"
        assert (published.sha256, published.size) == (sha256(b"headbody"), 8)


def test_deleted_and_kept_originals(workspace: Callable[..., Workspace]) -> None:
    """delete removes the original after success; keep leaves it, and remembers it as handled."""
    it = workspace(originals="delete")
    it.drop("a.jpg")
    it.work("a.jpg")
    assert it.files("input") == it.files("done") == {}
    it.close()

    it = workspace(originals="keep")
    it.drop("b.jpg")
    job = it.claim("b.jpg")
    it.publish(job)
    assert it.files("input") == {"b.jpg": b"image"}
    assert it.ledger.handled("shop", "b.jpg", job.version)
    assert it.ledger.unfinished() == []


def test_archived_names_never_overwrite(workspace: Callable[..., Workspace]) -> None:
    """A second original of the same name is archived beside the first."""
    it = workspace()
    for version in (b"one", b"two", b"three"):
        it.drop("a.jpg", version)
        it.work("a.jpg", b"cutout of " + version)

    assert it.files("done") == {"a.jpg": b"one", "a~2.jpg": b"two", "a~3.jpg": b"three"}
    assert it.files("output") == {"a.png": b"cutout of three"}


# ---------------------------------------------------------------------------------------------- whose name


def test_a_replaced_input_replaces_its_output_and_no_other(workspace: Callable[..., Workspace]) -> None:
    """Four inputs of one stem have four outputs, and a new version of each replaces its own."""
    it = workspace()
    inputs = ["a.jpg", "a.png", "a.JPG", "s/a.jpg"]
    for round_ in ("old", "new"):
        for path in inputs:
            it.drop(path)
            it.work(path, f"{round_} {path}".encode())

    assert it.files("output") == {
        "a.png": b"new a.jpg",
        "a_png.png": b"new a.png",
        "a_JPG.png": b"new a.JPG",
        "s/a.png": b"new s/a.jpg",
    }


@pytest.mark.parametrize("stranger", ["file", "folder", "link"])
def test_a_strangers_file_is_left_alone(workspace: Callable[..., Workspace], stranger: str) -> None:
    """What we did not write is not overwritten: the output gets the next number, and keeps it."""
    it = workspace()
    taken = it.roots["output"] / "a.png"
    if stranger == "file":
        taken.write_bytes(b"mine")
    elif stranger == "folder":
        taken.mkdir()
    else:
        taken.symlink_to("/etc/passwd")
    it.drop("a.jpg")
    assert it.work("a.jpg", b"one").path == "a~2.png"
    it.drop("a.jpg")
    assert it.work("a.jpg", b"two").path == "a~2.png"

    assert (it.roots["output"] / "a~2.png").read_bytes() == b"two"
    assert stranger != "file" or taken.read_bytes() == b"mine"


def test_an_output_that_somebody_edited_is_theirs(workspace: Callable[..., Workspace]) -> None:
    """A cutout retouched by hand is a file we did not write; one that was only touched or restored still is ours."""
    it = workspace()
    output = it.roots["output"] / "a.png"
    it.drop("a.jpg")
    it.work("a.jpg", b"one")
    os.utime(output)
    it.drop("a.jpg")
    assert it.work("a.jpg", b"two").path == "a.png"
    output.write_bytes(b"retouched")
    it.drop("a.jpg")

    assert it.work("a.jpg", b"three").path == "a~2.png"
    assert it.files("output") == {"a.png": b"retouched", "a~2.png": b"three"}


def test_a_consumer_may_take_outputs_away(workspace: Callable[..., Workspace]) -> None:
    """The next version of the input has its old name again."""
    it = workspace()
    for version in (b"one", b"two"):
        it.drop("a.jpg")
        it.work("a.jpg", version)
        assert it.files("output") == {"a.png": version}
        (it.roots["output"] / "a.png").unlink()


def test_a_folder_that_is_called_like_an_output(workspace: Callable[..., Workspace]) -> None:
    """s.jpg gives s.png; the folder s.png/ of the input is mirrored beside it, and each keeps its place."""
    it = workspace()
    for _ in range(2):
        for path in ("s.jpg", "s.png/a.jpg", "s.png/b.jpg"):
            it.drop(path)
            it.work(path, path.encode())

    assert it.files("output") == {"s.png": b"s.jpg", "s~2.png/a.png": b"s.png/a.jpg", "s~2.png/b.png": b"s.png/b.jpg"}


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".jpg", "x" * 255, "é" * 125 + ".jpg", "-rf", "%s\n$(id)", "caf\udce9.jpg", "x."]
)
def test_every_legal_name_gets_an_output(workspace: Callable[..., Workspace], name: str) -> None:
    """Long ones, odd ones and ones that are no text."""
    it = workspace()
    it.drop(name)
    it.work(name, sidecar_facts={"verdict": "empty"})

    assert len(it.files("output")) == 2
    assert set(it.files("done")) == {name}


# ---------------------------------------------------------------------------------------------- sidecars


def test_a_sidecar_stands_before_its_cutout_and_goes_with_it(workspace: Callable[..., Workspace]) -> None:
    """It names input, output and hash; a version that needs none takes the old one away."""
    it = workspace()
    it.drop("a.jpg")
    it.work("a.jpg", b"one", sidecar_facts={"verdict": "empty"})

    story = json.loads(it.files("output")["a.png.json"])
    found = (story["verdict"], story["path"], story["output"], story["sha256"])
    assert found == ("empty", "a.jpg", "a.png", sha256(b"one"))
    it.drop("a.jpg")
    it.work("a.jpg", b"two", sidecar_facts={"verdict": "full"})
    assert json.loads(it.files("output")["a.png.json"])["verdict"] == "full"
    it.drop("a.jpg")
    it.work("a.jpg", b"three")
    assert it.files("output") == {"a.png": b"three"}


def test_a_strangers_sidecar_is_left_alone(workspace: Callable[..., Workspace]) -> None:
    """A .json that we did not write costs the cutout its name, never the stranger the file."""
    it = workspace()
    (it.roots["output"] / "a.png.json").write_text('{"path": "a.jpg"}')
    it.drop("a.jpg")

    assert it.work("a.jpg", b"one", sidecar_facts={"verdict": "empty"}).path == "a~2.png"
    assert it.files("output")["a.png.json"] == b'{"path": "a.jpg"}'
    assert set(it.files("output")) == {"a.png.json", "a~2.png", "a~2.png.json"}


# ---------------------------------------------------------------------------------------------- equal images


def test_equal_content_is_copied(workspace: Callable[..., Workspace]) -> None:
    """The known output is published again under the name of each equal input, with its facts at hand."""
    it = workspace()
    it.drop("a.jpg")
    it.work("a.jpg", b"cutout", content=CONTENT, report={"width": 3})
    it.drop("b.jpg")
    published = copy(it, it.claim("b.jpg"), sidecar_facts={"verdict": "empty"})

    assert published is not None
    assert (published.path, published.reused) == ("b.png", True)
    assert it.files("output")["b.png"] == b"cutout"
    assert set(it.files("done")) == {"a.jpg", "b.jpg"}
    assert it.known().report == {"width": 3}


def test_an_output_that_is_right_already_is_not_written(workspace: Callable[..., Workspace]) -> None:
    """A touched or uploaded-again original with the same content leaves the output's inode and time as they are."""
    it = workspace(originals="keep")
    it.drop("a.jpg")
    it.work("a.jpg", b"cutout", content=CONTENT)
    before = os.stat(it.roots["output"] / "a.png")
    os.utime(it.roots["input"] / "a.jpg")
    published = copy(it, it.claim("a.jpg"))

    assert published is not None
    assert published.reused
    after = os.stat(it.roots["output"] / "a.png")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("spoil", ["edit", "remove", "pipe"])
def test_a_known_output_that_is_another_by_now_is_forgotten(workspace: Callable[..., Workspace], spoil: str) -> None:
    """Nothing is published from a file that is not what we wrote; the image is computed again."""
    it = workspace()
    it.drop("a.jpg")
    it.work("a.jpg", b"cutout", content=CONTENT)
    output = it.roots["output"] / "a.png"
    output.unlink()
    if spoil == "edit":
        output.write_bytes(b"CUTOUT")
    elif spoil == "pipe":
        os.mkfifo(output)
    it.drop("b.jpg")
    job = it.claim("b.jpg")

    assert copy(it, job) is None
    assert it.ledger.same_content("in", "recipe") is None
    assert "b.png" not in os.listdir(it.roots["output"])
    assert it.ledger.is_in_flight(job.job_id)
    assert not [name for name in os.listdir(it.roots["output"]) if names.is_temporary(name)]


# ---------------------------------------------------------------------------------------------- changed inputs


@pytest.mark.parametrize("why", ["changed", "vanished"])
@pytest.mark.parametrize("originals", ["archive", "delete", "keep"])
def test_an_input_that_changed_meanwhile_is_not_published(
    workspace: Callable[..., Workspace], originals: str, why: str
) -> None:
    """A writer that still had it open wrote on, or it is gone: the result belongs to bytes that are no more."""
    it = workspace(originals=originals)
    it.drop("a.jpg")
    job = it.claim("a.jpg")
    if why == "vanished":
        os.unlink(job.source)
    else:
        with open(job.source, "ab") as file:
            file.write(b"more")

    with pytest.raises(SourceChanged) as caught:
        it.publish(job)
    assert caught.value.why == why
    assert it.files("output") == {}


def test_what_was_written_after_publishing_comes_in_again(workspace: Callable[..., Workspace]) -> None:
    """New content is not deleted with the original: it is put back as a new arrival."""

    class WritesOn(FailingFs):
        def rename_noreplace(self, source: str, target: str, **folders: object) -> None:
            super().rename_noreplace(source, target, **folders)
            if target.endswith("a.png"):
                with open(job.source, "ab") as file:
                    file.write(b" and more")

    it = workspace(originals="delete", fs=WritesOn({}))
    it.drop("a.jpg", b"image")
    job = it.claim("a.jpg")
    it.publish(job)

    assert it.files("input") == {"a.jpg": b"image and more"}


# ---------------------------------------------------------------------------------------------- disks that refuse

STEPS = ["create", "sync_file", "rename_noreplace", "sync_folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_refuses_costs_nothing(workspace: Callable[..., Workspace], step: str, code: int) -> None:
    """Whichever step fails: a storage fault, no temporary, the original where it was, and the next call succeeds."""
    fs = FailingFs({step: [code]})
    it = workspace(fs=fs)
    it.drop("a.jpg", b"original")
    job = it.claim("a.jpg")

    with pytest.raises(StorageFault):
        it.publish(job, sidecar_facts={})
    assert [name for name in it.files("output") if names.is_temporary(name)] == []
    assert Path(job.source).read_bytes() == b"original"
    assert it.publish(job, sidecar_facts={}).path == "a.png"
    assert set(it.files("output")) == {"a.png", "a.png.json"}
    assert it.files("done") == {"a.jpg": b"original"}


def test_a_failed_sync_is_not_tried_again(workspace: Callable[..., Workspace]) -> None:
    """A second sync of the same descriptor may say that all is well when the pages are lost: write anew instead."""
    fs = FailingFs({"sync_file": [errno.EIO]})
    it = workspace(fs=fs)
    it.drop("a.jpg")
    job = it.claim("a.jpg")
    with pytest.raises(StorageFault):
        it.publish(job)

    assert [name for name, _ in fs.calls].count("sync_file") == 1
    assert ("unlink", str(it.roots["output"] / names.temporary_name(job.job_id))) in fs.calls


@pytest.mark.parametrize(
    ("error", "seen"), [(OSError(errno.ENOSPC, "no room"), StorageFault), (ValueError("no room"), ValueError)]
)
def test_whose_fault_a_failing_encoder_is(
    workspace: Callable[..., Workspace], error: Exception, seen: type[Exception]
) -> None:
    """Errors with an errno are the disk's, others are bugs and stay so; the temporary goes away in either case."""
    it = workspace()
    it.drop("a.jpg")
    job = it.claim("a.jpg")

    def write(_temporary: object) -> None:
        raise error

    with pytest.raises(seen) as caught:
        it.publisher.publish(job, write, done(job))
    assert getattr(caught.value, "kind", "disk_full") == "disk_full"
    assert it.files("output") == {}


def test_a_missing_output_is_never_made(workspace: Callable[..., Workspace]) -> None:
    """It may be a disk that is not mounted: nothing is written below its mount point."""
    it = workspace()
    it.drop("s/a.jpg")
    job = it.claim("s/a.jpg")
    it.roots["output"].rmdir()

    with pytest.raises(StorageFault) as caught:
        it.publish(job)
    assert caught.value.kind == "missing"
    assert not it.roots["output"].exists()


def test_a_path_that_gets_too_long_is_the_images_fault(workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    """Waiting cannot shorten it."""
    deep = tmp_path / "/".join(["d" * 200] * 18 + ["d" * 120])
    os.makedirs(deep)
    it = workspace(output=str(deep))
    it.drop("x" * 150 + "/" + "y" * 200 + "/a.jpg")
    job = it.claim("x" * 150 + "/" + "y" * 200 + "/a.jpg")

    with pytest.raises(ImageError) as caught:
        it.publish(job)
    assert caught.value.reason is Reason.NAME_TOO_LONG


# ---------------------------------------------------------------------------------------------- archiving


def test_an_original_that_cannot_be_moved_is_tried_again(workspace: Callable[..., Workspace]) -> None:
    """The job is done, the event is emitted once, the tries grow apart, and nothing is computed again."""
    it = workspace()
    it.roots["done"].rmdir()
    it.drop("a.jpg", b"original")
    it.work("a.jpg")

    assert [event["path"] for event in it.events.named("storage.retire_failed")] == ["a.jpg"]
    moments = []
    for _ in range(12):
        moment = it.publisher.archiver.retry()
        assert moment is not None
        moments.append(moment - it.clock.monotonic())
        it.clock.advance(moments[-1])
    assert moments[:3] == [1.0, 2.0, 4.0]
    assert max(moments) == 300.0
    it.roots["done"].mkdir()
    assert it.publisher.archiver.retry() is None
    assert it.files("done") == {"a.jpg": b"original"}
    assert len(it.events.named("storage.retire_failed")) == 1


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EFBIG])
def test_an_archive_that_cannot_hold_the_original_takes_no_output_back(
    workspace: Callable[..., Workspace], code: int
) -> None:
    """A name or a size that the other disk refuses: the output stands, and moving the original is tried again."""
    it = workspace(fs=FailingFs({"rename_noreplace": [0, errno.EXDEV, code]}))
    it.drop("a.jpg", b"original")
    it.work("a.jpg")

    assert [event["path"] for event in it.events.named("storage.retire_failed")] == ["a.jpg"]
    assert it.events.named("image.failed") == []
    it.clock.advance(1.0)
    assert it.publisher.archiver.retry() is None
    assert it.files("done") == {"a.jpg": b"original"}


def test_a_claim_in_place_is_not_done_again(workspace: Callable[..., Workspace]) -> None:
    """Where the original may not be moved at all it stays, handled, while moving it is tried again."""
    fs = FailingFs({"rename_noreplace": [0, errno.EPERM]})
    it = workspace(fs=fs)
    it.drop("a.jpg")
    job = it.claim("a.jpg", by_rename=False)
    it.publish(job)

    assert it.ledger.handled("shop", "a.jpg", job.version)
    assert len(it.events.named("storage.retire_failed")) == 1
    assert it.files("input") == {"a.jpg": b"image"}


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than pytest's."""
    shm = "/dev/shm"
    if not os.access(shm, os.W_OK) or os.stat(shm).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is not writable, or no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def test_archives_and_failures_may_lie_on_another_disk(workspace: Callable[..., Workspace], other_disk: Path) -> None:
    """Across file systems the original is copied, compared and then removed, with its times; never two of it."""
    it = workspace(done=str(other_disk), failed=str(other_disk / "failed"))
    (other_disk / "failed").mkdir()
    path = it.drop("s/a.jpg", b"original")
    os.utime(path, ns=(1_000_000_000, 2_000_000_000))
    it.work("s/a.jpg")
    it.drop("s/b.jpg", b"bad")
    refuse(it, it.claim("s/b.jpg"), Reason.CORRUPT, "torn", stage="decode")

    assert (other_disk / "s" / "a.jpg").read_bytes() == b"original"
    assert (other_disk / "s" / "a.jpg").stat().st_mtime_ns == 2_000_000_000
    assert sorted(os.listdir(other_disk / "failed" / "s")) == ["b.jpg", "b.jpg.error.json"]
    assert os.listdir(other_disk / "s") == ["a.jpg"]
    assert it.files("input") == {}


def test_a_copy_that_a_crash_interrupted_is_not_made_twice(
    workspace: Callable[..., Workspace], other_disk: Path
) -> None:
    """Copied but not removed: the next try finds the copy and removes the original."""
    it = workspace(done=str(other_disk))
    (other_disk / "a.jpg").write_bytes(b"original")
    it.drop("a.jpg", b"original")
    it.work("a.jpg")

    assert os.listdir(other_disk) == ["a.jpg"]


# ---------------------------------------------------------------------------------------------- quarantine


def test_a_refused_original_stands_beside_its_reason(workspace: Callable[..., Workspace]) -> None:
    """The path is mirrored, and the reason file says what an operator and a program need."""
    it = workspace()
    it.drop("s/a.jpg", b"torn")
    it.clock.advance(7)
    job = it.claim("s/a.jpg")
    it.clock.advance(3)
    placed = refuse(it, job, Reason.CORRUPT, "bad marker \udcff", stage="decode")

    assert placed == "s/a.jpg"
    assert set(it.files("failed")) == {"s/a.jpg", "s/a.jpg.error.json"}
    story = json.loads(it.files("failed")["s/a.jpg.error.json"])
    assert (story["reason"], story["attempts"], story["sha256"], story["size"]) == ("corrupt", 1, sha256(b"torn"), 4)
    assert (story["first_seen"], story["time"]) == ("2026-01-01T00:00:07.000+00:00", "2026-01-01T00:00:10.000+00:00")
    assert it.files("input") == {}
    assert it.ledger.counts() == {"failed": 1}


def test_the_same_name_refused_again_stands_beside_the_first(workspace: Callable[..., Workspace]) -> None:
    """Each keeps its own reason; a stranger's files stay."""
    it = workspace()
    (it.roots["failed"] / "a~2.jpg").write_bytes(b"stranger")
    for number in range(3):
        it.drop("a.jpg", str(number).encode())
        refuse(it, it.claim("a.jpg"), Reason.CORRUPT, "torn", stage="decode")

    found = it.files("failed")
    reasons = {path for path in found if path.endswith(".json")}
    originals = {path: data for path, data in found.items() if path not in reasons}
    assert originals == {"a.jpg": b"0", "a~2.jpg": b"stranger", "a~3.jpg": b"1", "a~4.jpg": b"2"}
    assert reasons == {"a.jpg.error.json", "a~3.jpg.error.json", "a~4.jpg.error.json"}


def test_a_kept_original_is_refused_in_place(workspace: Callable[..., Workspace]) -> None:
    """keep never moves an original; the reason is written to the failed folder, and it is not tried again."""
    it = workspace(originals="keep")
    it.drop("a.jpg")
    job = it.claim("a.jpg")

    assert refuse(it, job, Reason.CORRUPT, "torn", stage="decode") is None
    assert it.files("input") == {"a.jpg": b"image"}
    assert set(it.files("failed")) == {"a.jpg.error.json"}
    assert it.ledger.handled("shop", "a.jpg", job.version)


@pytest.mark.parametrize("step", STEPS)
def test_a_quarantine_that_the_disk_refuses_is_done_later(workspace: Callable[..., Workspace], step: str) -> None:
    """The decision is kept, the original is where it was, and calling again completes it without a second reason."""
    it = workspace(fs=FailingFs({step: [errno.ENOSPC]}))
    it.drop("a.jpg", b"torn")
    job = it.claim("a.jpg")
    with pytest.raises(StorageFault):
        refuse(it, job, Reason.CORRUPT, "torn", stage="decode")

    assert Path(job.source).read_bytes() == b"torn"
    assert refuse(it, job, Reason.CORRUPT, "torn", stage="decode") == "a.jpg"
    assert set(it.files("failed")) == {"a.jpg", "a.jpg.error.json"}


def test_a_path_too_long_for_the_failed_folder_is_cut(workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    """Nothing stays unanswered because its name is long."""
    deep = tmp_path / "/".join(["d" * 200] * 18 + ["d" * 120])
    os.makedirs(deep)
    it = workspace(failed=str(deep))
    path = "x" * 150 + "/" + "y" * 200 + "/" + "a" * 251 + ".jpg"
    it.drop(path)

    placed = refuse(it, it.claim(path), Reason.NAME_TOO_LONG, "", stage="finish")
    assert placed == "a" * 251 + ".jpg"
    assert len(os.listdir(deep)) == 2
