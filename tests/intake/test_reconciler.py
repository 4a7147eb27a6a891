"""The intake's loop, step by step on a clock of the test's: what is claimed, when, and what never is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from unittest import mock

import pytest

from rmbgd.config.load import parse
from rmbgd.errors import LedgerFault, Reason, StorageFault
from rmbgd.fs import FileVersion
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.intake import claim as claims
from rmbgd.intake import scanner
from rmbgd.intake.disk_space import DiskSpaceGuard
from rmbgd.intake.empty_folders import QUIET
from rmbgd.intake.priority_queue import Backlog, Complete
from rmbgd.intake.readiness import ArrivingFile
from rmbgd.intake.reconciler import Reconciler
from rmbgd.intake.source import IntakeQuestion
from rmbgd.intake.watcher import FileEvent
from rmbgd.pipeline.items import Rejection
from rmbgd.pipeline.queue import queue
from rmbgd.publish.publisher import Publisher
from rmbgd.store.records import Job
from rmbgd.testing.fs import FailingFs
from tests.support.images import sample_image
from tests.support.workspace import Workspace

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17)


class Loop(Workspace):
    """A workspace whose loop is stepped by hand. Folders are polled, so that nothing happens behind the test's back."""

    def __init__(self, base: Path, *, places: int = 100, others: dict[str, dict[str, object]] | None = None, **given):
        super().__init__(base, watch="poll", **given)
        tables = self.config.model_dump(mode="json")
        for name, other in (others or {}).items():
            roots = {role: str(base / name / role) for role in self.roots}
            for root in roots.values():
                os.makedirs(root)
            tables["folder"].append({"name": name, "watch": "poll"} | roots | other)
        self.config = parse(tables)
        self.publisher = Publisher(self.config, self.ledger, self.clock, self.events, self.fs)
        self.compared: list[float] = []
        self.reconciler = Reconciler(
            self.config,
            ledger=self.ledger,
            publisher=self.publisher,
            clock=self.clock,
            emit=self.events,
            heartbeat=NullHeartbeat(),
            on_compared=lambda: self.compared.append(self.clock.monotonic()),
        )
        self.recovered = self.reconciler.recover()
        self.sender, self.receiver = queue(places, "jobs")
        self.door, self.refused = queue(100, "door")

    def turn(self, seconds: float = 0.0, times: int = 1) -> list[str]:
        """Let time pass and turn; the paths that were claimed."""
        return [job.relative_path for job in self.jobs(seconds, times)]

    def jobs(self, seconds: float = 0.0, times: int = 1) -> list[Job]:
        for _ in range(times):
            self.step(seconds)
        return [self.receiver.receive() for _ in range(self.receiver.statistics().depth)]

    def claimed(self, *paths: str, **given: bytes) -> list[Job]:
        for path in paths:
            self.drop(path, **given)
        self.step(0)
        return self.jobs(2)

    def step(self, seconds: float) -> None:
        self.clock.advance(seconds)
        while self.reconciler._step(self.sender, self.door):
            pass

    def rejections(self) -> list[Rejection]:
        return [self.refused.receive() for _ in range(self.refused.statistics().depth)]

    def hear(self, path: str, heard: FileEvent = FileEvent.CLOSED, folder: str = "shop") -> None:
        self.reconciler._scanner.hints.file(folder, path, heard)

    def arrive(self, path: str, data: bytes = b"image", folder: str = "shop") -> None:
        root = self.roots["input"] if folder == "shop" else self.base / folder / "input"
        (root / path).write_bytes(data)
        self.hear(path, folder=folder)

    def waiting(self) -> list[str]:
        return [path for path in self.files("input") if not path.startswith(".rmbgd/")]

    def end(self, job: Job) -> None:
        self.publish(job)
        self.reconciler.ended(job)

    def told(self, event: str, *keys: str) -> list[tuple[object, ...]]:
        return sorted(tuple(each[key] for key in keys) for each in self.events.named(event))

    def close(self) -> None:
        for end in (self.sender, self.receiver, self.door, self.refused):
            end.close()
        self.reconciler.release()
        super().close()


Build = Callable[..., Loop]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Build]:
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(closing(Loop(tmp_path, **given)))


@pytest.fixture
def it(loop: Build) -> Loop:
    return loop()


def test_what_lies_there_at_the_start_is_claimed_after_its_quiet_time(it: Loop) -> None:
    """Found by the scan, without an event: two seconds without change; every sub-folder is looked into."""
    for path in ("a.jpg", "s/t/b.jpg"):
        it.drop(path)
    assert it.turn() == []
    assert len(it.compared) == 1
    assert it.turn(1.9) == []
    assert sorted(it.turn(0.1)) == ["a.jpg", "s/t/b.jpg"]
    assert it.waiting() == []
    assert it.turn(60) == []


@pytest.mark.parametrize("heard", [FileEvent.CLOSED, FileEvent.APPEARED])
def test_what_is_announced_is_claimed_sooner(it: Loop, heard: FileEvent) -> None:
    """A close and an appearance (a link, a rename) each say that the writer is done."""
    it.turn()
    it.drop("a.jpg")
    it.hear("a.jpg", heard)
    assert it.turn() == []
    assert it.turn(0.5) == ["a.jpg"]


def test_a_changing_file_is_not_claimed(it: Loop) -> None:
    for size in range(20):
        it.arrive("a.jpg", b"image" + b"more" * size)
        assert it.turn(0.4) == []
    assert it.turn(0.5) == ["a.jpg"]


def test_an_open_file_is_not_claimed_however_long(it: Loop) -> None:
    with open(it.drop("a.jpg"), "ab"):
        assert it.turn(60, times=120) == []
    assert it.told("intake.stuck_upload", "path") == [("a.jpg",)]
    assert it.turn(31) == ["a.jpg"]


def test_names_of_half_uploads_are_left_alone(loop: Build) -> None:
    it = loop(ignore=["*.RAW"])
    names = {".a.jpg.Xy12", "a.jpg.part", "a.JPG.FILEPART", "~$a.jpg", "a.jpg~", "Thumbs.db", "mine.raw"}
    names |= {".h/a.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg"}
    for name in names:
        it.drop(name)
        it.hear(name)
    assert it.turn(5, times=3) == []
    assert it.files("input").keys() == names


def test_without_recursion_sub_folders_are_left_alone(loop: Build) -> None:
    it = loop(recursive=False)
    it.drop("s/a.jpg")
    it.drop("b.jpg")
    assert it.turn() + it.turn(3) == ["b.jpg"]


def test_a_cut_off_file_is_waited_for_then_refused(it: Loop) -> None:
    it.drop("a.png", PNG)
    it.drop("b.jpg", b"")
    it.turn()
    assert it.turn(30, times=29) == []
    assert it.rejections() == []
    assert it.turn(60) == []
    found = {(rejection.job.relative_path, rejection.reason, rejection.stage) for rejection in it.rejections()}
    assert found == {("a.png", Reason.TRUNCATED, "intake"), ("b.jpg", Reason.EMPTY, "intake")}
    assert it.told("intake.incomplete", "path", "gate") == [("a.png", "tail"), ("b.jpg", "empty")]


def test_what_a_decoder_finds_cut_off_waits_for_a_change(it: Loop) -> None:
    """Back where it was; not claimed again as it is until the patience ends, and then for the last time."""
    (job,) = it.claimed("s/a.jpg")
    it.reconciler.give_back(job, "incomplete", "premature end")
    assert it.turn() == []
    assert it.files("input") == {"s/a.jpg": b"image"}
    assert it.ledger.counts() == {}
    assert it.turn(30, times=28) == []
    (again,) = it.jobs(100)
    assert (again.final, again.attempt, again.relative_path) == (True, 1, "s/a.jpg")


def test_what_changed_in_work_is_claimed_anew(it: Loop) -> None:
    (job,) = it.claimed("a.jpg")
    Path(job.source).write_bytes(b"image and more")
    it.reconciler.give_back(job, "changed", "")
    it.turn()
    assert [Path(job.source).read_bytes() for job in it.jobs(2)] == [b"image and more"]


def test_nothing_is_claimed_that_the_decoders_have_no_room_for(loop: Build) -> None:
    """The folder is the queue: what is not in work stays visible to its owner."""
    it = loop(places=3)
    for number in range(10):
        it.drop(f"{number}.jpg")
    it.turn()
    assert len(it.turn(2)) == 3
    assert len(it.waiting()) == it.reconciler.statistics().waiting == 7
    assert len(it.turn()) == 3


def test_a_backlog_does_not_hide_the_files_of_others(loop: Build) -> None:
    """A folder with more files than are observed at once; a realtime folder's file goes before all of them."""
    others = {"till": {"latency": "realtime"}, "press": {"priority": 90}}
    it = loop(places=4, others=others, intake={"tracked_maximum": 30})
    for number in range(100):
        it.drop(f"{number:03}.jpg")
    it.turn()
    for other in ("press", "till"):
        it.arrive("x.jpg", folder=other)
    it.turn()
    jobs = it.jobs(2.5)
    assert [job.folder for job in jobs] == [
        "till",
        "press",
        "shop",
    ]  # a quarter of the places is for realtime folders alone
    seen = {job.relative_path for job in jobs}
    while more := it.turn(2.5):
        seen.update(more)
    assert len(seen) == 101


@pytest.mark.parametrize(("waited", "first"), [(99.0, "press"), (101.0, "shop")])
def test_waiting_raises_the_priority(loop: Build, waited: float, first: str) -> None:
    """One step each ten seconds: nothing waits for ever behind a busier folder."""
    it = loop(others={"press": {"priority": 60}})
    backlog = Backlog(it.config.folder, 10)
    for folder, seen in (("press", waited), ("shop", 0.0)):
        arrival = ArrivingFile(FileVersion(1, 2, 3, 4), seen, seen, announced=True, remote=False)
        backlog.complete(Complete((folder, "a.jpg"), arrival, final=False))
    assert [complete.key[0] for complete in backlog.take(1, closed=(), now=0.0, frames={}, live=0, films=1)] == [first]


def test_versions_of_one_path_are_worked_on_in_order(it: Loop) -> None:
    (old,) = it.claimed("a.jpg", data=b"old")
    it.arrive("a.jpg", b"new")
    it.turn()
    assert it.turn(5) == []
    it.end(old)
    (new,) = it.jobs(30)
    assert Path(new.source).read_bytes() == b"new"


def test_sub_folders_that_images_left_empty_are_removed(loop: Build) -> None:
    """A while after the last image has gone for good, and up to the input; never what was empty before, or is not."""
    it = loop(remove_empty=True)
    root = it.roots["input"]
    for path in ("new", "deep/er/x", "busy"):
        (root / path).mkdir(parents=True)
    (root / "busy" / "Thumbs.db").touch()
    jobs = it.claimed("deep/er/est/a.jpg", "busy/b.jpg", "deep/er/x/c.jpg", "d.jpg")
    assert len(jobs) == 4
    it.turn(QUIET, times=5)
    assert (root / "deep/er/est").is_dir(), "its image is in work, and may come back"
    for job in jobs:
        it.end(job)
    it.turn(0)
    it.turn(QUIET / 2)
    assert (root / "deep/er/est").is_dir()
    (root / "deep/er/x/Thumbs.db").touch()
    it.turn(QUIET, times=3)
    (root / "deep/er/x/Thumbs.db").unlink()
    assert [(root / path).is_dir() for path in ("deep/er/est", "deep/er/x")] == [False, True]
    it.turn(QUIET, times=5)
    assert sorted(os.listdir(root)) == [".rmbgd", "busy", "deep", "new"]
    it.drop("deep/er/x/c.jpg")
    it.turn(31)
    (again,) = it.jobs(5)
    it.end(again)
    it.turn(QUIET, times=8)
    assert sorted(os.listdir(root)) == [".rmbgd", "busy", "new"]


def test_sub_folders_stay_unless_asked_for(it: Loop) -> None:
    (job,) = it.claimed("s/a.jpg")
    it.end(job)
    it.turn(QUIET, times=5)
    assert (it.roots["input"] / "s").is_dir()


def test_suspects_go_alone(loop: Build) -> None:
    first = loop()
    assert len(first.claimed("a.jpg", "b.jpg")) == 2
    first.close()
    it = loop()
    it.drop("c.jpg")
    assert it.recovered.jobs == 2
    (one,) = it.jobs() + it.jobs(5)
    assert sorted(row.attempt for row in it.ledger.unfinished()) == [1, 2], "counted when it is handed out"
    it.end(one)
    (two,) = it.jobs(5)
    assert {one.relative_path, two.relative_path} == {"a.jpg", "b.jpg"}
    assert (one.attempt, two.attempt) == (2, 2)
    it.end(two)
    assert it.turn(5) == ["c.jpg"]


def test_entries_that_are_no_files_are_reported_once_and_left(it: Loop) -> None:
    (it.roots["input"] / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(it.roots["input"] / "pipe.jpg")
    (it.roots["input"] / "folder.jpg").mkdir()
    it.turn(31, times=4)
    assert it.told("image.failed", "path", "reason") == [("link.jpg", "not_regular"), ("pipe.jpg", "not_regular")]
    assert sorted(os.listdir(it.roots["input"])) == [".rmbgd", "folder.jpg", "link.jpg", "pipe.jpg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that belong to others")
def test_hard_links_to_others_files_are_refused(it: Loop) -> None:
    """One's own links are a way of arriving; a stranger's file linked in is a way of having it read with our rights."""
    for name, owner in (("own", 0), ("foreign", 4711)):
        outside = it.base / name
        outside.write_bytes(b"image")
        os.chown(outside, owner, owner)
        os.link(outside, it.roots["input"] / f"{name}.jpg")
    it.turn()
    assert it.turn(2) == ["own.jpg"]
    assert it.told("image.failed", "path", "reason") == [("foreign.jpg", "hardlink")]


def test_what_may_not_be_moved_is_worked_on_in_place_once(it: Loop) -> None:
    it.reconciler._claims._fs = FailingFs({"rename_noreplace": [errno.EPERM]})
    (job,) = it.claimed("a.jpg")
    assert (job.claimed_by_rename, job.source) == (False, str(it.roots["input"] / "a.jpg"))
    it.roots["done"].rmdir()
    it.end(job)
    assert it.turn(31, times=5) == []
    assert len(it.events.named("storage.retire_failed")) == 1
    it.roots["done"].mkdir()
    it.turn(400)
    assert (it.files("input"), it.files("done")) == ({}, {"a.jpg": b"image"})


def test_kept_originals_are_worked_on_once_until_they_change(loop: Build) -> None:
    it = loop(originals="keep")
    (job,) = it.claimed("a.jpg")
    it.end(job)
    assert it.turn(31, times=3) == []
    os.utime(job.source)
    assert it.turn(31) + it.turn(2) == ["a.jpg"]


def test_a_blocked_file_is_reported_once_and_tried_again(it: Loop) -> None:
    """Not readable is not broken: it stays, and goes when it is mended."""
    it.drop("a.jpg")
    with mock.patch.object(scanner, "check", side_effect=PermissionError(errno.EACCES, "Permission denied")):
        assert it.turn(3, times=20) == []
    assert it.told("intake.blocked", "cause") == [("Permission denied",)]
    os.chmod(it.roots["input"] / "a.jpg", 0o600)
    it.hear("a.jpg", FileEvent.TOUCHED)
    assert it.turn() + it.turn(2) == ["a.jpg"]


def test_a_paused_folder_does_not_stop_the_others(loop: Build) -> None:
    """The reason names whose disk it is."""
    it = loop(others={"press": {}})
    it.drop("a.jpg")
    it.arrive("b.jpg", folder="press")
    it.reconciler.pause("disk_full:shop")
    it.turn()
    assert it.turn(2) == ["b.jpg"]
    assert it.reconciler.statistics().paused == "disk_full"
    it.reconciler.resume("disk_full:shop")
    assert it.turn() == ["a.jpg"]


def test_a_disk_at_the_brink_does_not_stop_and_go(it: Loop) -> None:
    """Closed below the minimum, open again at half as much more; a disk that cannot be asked changes nothing."""
    guard, least = DiskSpaceGuard(it.config, it.events), it.config.pipeline.free_bytes_minimum
    closed = []
    for now, free in enumerate((least, least - 1, least, None, least + least // 2, least)):
        guard.check(float(now), {"shop": free})
        closed.append((bool(guard.closed), guard.next_check(float(now))))
    assert closed == [(False, None), (True, 3.0), (True, 4.0), (True, 5.0), (False, None), (False, None)]
    assert it.told("storage.paused", "kind") == [("disk_full",)]
    assert it.told("storage.resumed", "seconds") == [(3.0,)]


def test_a_ledger_that_refuses_pauses_and_loses_nothing(it: Loop) -> None:
    for number in range(300):
        it.drop(f"{number}.jpg")
    (it.roots["input"] / "link.jpg").symlink_to("nowhere")
    db = it.ledger.database._connection
    db.execute(f"PRAGMA max_page_count={db.execute('PRAGMA page_count').fetchone()[0]}")
    assert it.turn(5, times=6) == []
    refused = it.ledger.database.refused
    assert refused is not None
    assert (refused.kind, it.reconciler.statistics().paused) == ("disk_full", "ledger")
    assert len(it.waiting()) == 301
    it.ledger.database.renew()  # whose connection knows no such limit
    assert sum(len(it.turn(5)) for _ in range(10)) == 300
    assert it.reconciler.statistics().paused is None
    assert it.told("image.failed", "path") == [("link.jpg",)]


def test_a_folder_that_goes_and_comes_is_compared_again(it: Loop) -> None:
    (job,) = it.claimed("a.jpg")
    it.drop("b.jpg")
    it.turn(5)
    away = it.roots["input"].rename(it.base / "away")
    it.turn(6)
    assert it.reconciler.statistics().waiting == 0
    it.reconciler.give_back(job, "vanished", "")
    it.turn()
    away.rename(it.roots["input"])
    assert sorted(it.turn(6, times=3)) == ["a.jpg", "b.jpg"]


def test_an_image_that_cannot_go_back_now_goes_back_later(it: Loop) -> None:
    """Its folder stands there all the time, only no descriptor was left: it is not forgotten among the claimed."""
    (job,) = it.claimed("a.jpg")
    with mock.patch.object(claims, "put_back", side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))):
        it.reconciler.give_back(job, "storage", "EMFILE")
        it.turn()
    assert it.turn(6, times=3) == ["a.jpg"]


def test_a_claimed_file_that_is_gone_when_it_is_to_go_back_is_a_loss(it: Loop) -> None:
    """And not one whose way back was interrupted between the rename and the ledger."""
    back, lost = sorted(it.claimed("lost.jpg", "back.jpg"), key=lambda job: job.relative_path)
    os.unlink(lost.source)
    with mock.patch.object(it.ledger, "release", side_effect=StorageFault("io_error", "")):
        for job in (lost, back):
            it.reconciler.give_back(job, "memory", "")
        it.turn()
    assert it.turn(6, times=3) == ["back.jpg"]
    assert it.told("image.failed", "path", "reason") == [("lost.jpg", Reason.VANISHED)]
    assert it.ledger.counts() == {"failed": 1, "claimed": 1}


def test_a_claim_folder_that_is_removed_under_a_claim_is_made_again(it: Loop) -> None:
    real = claims.claim_by_rename
    gone = mock.Mock(side_effect=[FileNotFoundError(errno.ENOENT, "no claim folder"), mock.DEFAULT], wraps=real)
    with mock.patch.object(claims, "claim_by_rename", gone):
        assert it.claimed("a.jpg") == []
        assert it.reconciler.statistics().waiting == 1, "not forgotten until the next comparison"
        assert it.turn(6, times=3) == ["a.jpg"]


def test_too_many_hints_become_a_comparison(loop: Build) -> None:
    it = loop(intake={"hints_maximum": 10})
    it.turn()
    for number in range(50):
        it.arrive(f"{number}.jpg")
    it.turn()
    assert len(it.turn(2)) == 50


def test_rescan_looks_at_once(it: Loop) -> None:
    """SIGHUP does not wait for the next comparison."""
    it.turn()
    it.drop("a.jpg")
    assert it.turn(0.1) == []
    it.reconciler.rescan()
    assert it.turn(0.1) + it.turn(2) == ["a.jpg"]


def test_what_comes_back_after_the_end_is_put_back(it: Loop) -> None:
    """A stopping pipeline returns what it did not begin: the attempt does not count, the file stands in its folder."""
    (job,) = it.claimed("a.jpg")
    it.reconciler.close()
    it.reconciler.give_back(job, "stopping", "")
    assert it.reconciler.finish_returns() == 1
    assert it.files("input") == {"a.jpg": b"image"}
    assert it.ledger.counts() == {}


def test_the_health_event_has_its_numbers(loop: Build) -> None:
    it = loop(places=1)
    for name in "abc":
        it.drop(f"{name}.jpg")
    for seconds in (0, 3, 61):
        it.step(seconds)
    found = it.reconciler.statistics()
    assert (found.waiting, found.in_flight, found.oldest_waiting, found.ledger_rows) == (2, 1, 64.0, 1)
    assert found.folders["shop"]["mode"] == "poll"


def test_the_loop_ends_when_it_is_closed(it: Loop) -> None:
    """And closes its ends, which is how the pipeline learns that nothing more comes."""
    it.reconciler.close()
    sender, door = it.sender.clone(), it.door.clone()
    it.reconciler.run(sender, door)
    with pytest.raises(ValueError, match="closed"):
        sender.send(None)


def test_companions_that_never_go_away_take_no_places_from_new_files(loop: Build) -> None:
    it = loop(intake={"tracked_maximum": 16})
    for number in range(16):
        it.arrive(f"old{number}.png", PNG)
        (it.base / "input" / f"old{number}.png.lock").touch()
    it.turn(2, times=3)
    it.arrive("new.png", sample_image(1))
    assert it.turn(60, times=30) == ["new.png"]
    assert len(it.events.named("intake.incomplete")) == 16
    os.unlink(it.base / "input" / "old3.png.lock")
    (it.base / "input" / "old3.png").write_bytes(sample_image(3))
    assert it.turn(60, times=3) == ["old3.png"]


def test_a_suspect_whose_disk_is_away_holds_up_no_other_folder(tmp_path: Path, loop: Build) -> None:
    with closing(Workspace(tmp_path)) as last_run:
        last_run.drop("a.png")
        last_run.claim("a.png")
    it = loop(others={"other": {}})
    (suspect,) = it.jobs(1)
    os.rename(it.base / "input", it.base / "unplugged")
    it.reconciler.give_back(suspect, "vanished", "")
    it.arrive("x.png", sample_image(1), folder="other")
    assert it.turn(10, times=3) == ["x.png"]
    os.rename(it.base / "unplugged", it.base / "input")
    assert "a.png" in it.turn(60, times=3)


def test_a_job_that_the_ledger_did_not_take_back_is_tried_again(it: Loop) -> None:
    """Also where the ledger refuses its folder's recovery, when that is tried for it."""
    first, second = it.claimed("a.png", "b.png", data=sample_image(1))
    database = it.ledger.database
    fault = LedgerFault("io_error", "EIO", path=str(it.ledger.path))
    with (
        mock.patch.object(database, "all", side_effect=fault),
        mock.patch.object(database, "transaction", side_effect=fault),
    ):
        it.reconciler.give_back(first, "memory", "")
        it.turn(10, times=3)
    assert it.turn(60, times=3) == ["a.png"]
    assert second.relative_path == "b.png"


def test_a_question_that_nobody_waits_for_is_not_answered(it: Loop) -> None:
    """Else an intake that hung for a day would answer all of that day, one after the other."""
    question = IntakeQuestion(False, None, 10)
    assert it.reconciler.ask(question, 0.0) is None
    it.turn()
    assert question.answer.empty()


@pytest.mark.parametrize(("folders", "paused"), [({"shop", "b"}, "operator:b,shop"), ({"", "shop"}, "operator")])
def test_statistics_say_what_an_operator_has_paused(it: Loop, folders: set[str], paused: str) -> None:
    it.reconciler.pause_by_operator(folders)
    it.turn()
    assert it.reconciler.statistics().paused == paused
