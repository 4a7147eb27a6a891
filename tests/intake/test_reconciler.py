"""The intake's loop, step by step on a clock of the test's: what is claimed, when, and what never is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rmbgd.config.load import parse
from rmbgd.errors import Reason
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.intake import claim as claims
from rmbgd.intake import scanner
from rmbgd.intake.disk_space import DiskSpaceGuard
from rmbgd.intake.reconciler import Reconciler
from rmbgd.intake.watcher import FileEvent
from rmbgd.pipeline.items import Rejection
from rmbgd.pipeline.queue import queue
from rmbgd.publish.publisher import Publisher
from rmbgd.store.records import Job
from rmbgd.testing.fs import FailingFs
from tests.support.workspace import Workspace

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17)
WHOLE = PNG + b"\0\0\0\0IEND\xae\x42\x60\x82"


class Loop(Workspace):
    """A workspace whose loop is stepped by hand. Folders are polled, so that nothing happens behind the test's back."""

    def __init__(
        self, base: Path, *, places: int = 100, others: list[dict[str, object]] | None = None, **given: object
    ):
        super().__init__(base, watch="poll", **given)
        if others:
            tables = self.config.model_dump(mode="json")
            for other in others:
                for role in ("input", "output", "done", "failed"):
                    (base / str(other["name"]) / role).mkdir(parents=True)
                    other[role] = str(base / str(other["name"]) / role)
            tables["folder"] += [{"watch": "poll"} | other for other in others]
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

    def turn(self, seconds: float = 0.0, times: int = 1) -> list[Job]:
        """Let time pass and turn; what was claimed."""
        for _ in range(times):
            self.step(seconds)
        return self.take()

    def claimed(self, *paths: str, **given: bytes) -> list[Job]:
        """These are dropped, found and taken."""
        for path in paths:
            self.drop(path, **given)
        self.turn()
        return self.turn(2)

    def step(self, seconds: float) -> None:
        self.clock.advance(seconds)
        while self.reconciler._step(self.sender, self.door):
            pass

    def take(self) -> list[Job]:
        return [self.receiver.receive() for _ in range(self.receiver.statistics().depth)]

    def rejections(self) -> list[Rejection]:
        return [self.refused.receive() for _ in range(self.refused.statistics().depth)]

    def hear(self, path: str, heard: FileEvent = FileEvent.CLOSED, folder: str = "shop") -> None:
        self.reconciler._scanner.hints.file(folder, path, heard)

    def end(self, job: Job) -> None:
        self.publish(job)
        self.reconciler.ended(job)

    def close(self) -> None:
        for end in (self.sender, self.receiver, self.door, self.refused):
            end.close()
        super().close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    built: list[Loop] = []

    def build(**given: object) -> Loop:
        built.append(Loop(tmp_path, **given))
        return built[-1]

    yield build
    for each in built:
        each.close()


def names(jobs: list[Job]) -> list[str]:
    return [job.relative_path for job in jobs]


# ------------------------------------------------------------------------------------------------- when it is claimed


def test_what_lies_there_at_the_start_is_claimed_after_its_quiet_time(loop: Callable[..., Loop]) -> None:
    """Found by the scan, without an event: two seconds without change; every sub-folder is looked into."""
    it = loop()
    for path in ("a.jpg", "s/t/b.jpg"):
        it.drop(path)

    assert it.turn() == []
    assert len(it.compared) == 1
    assert it.turn(1.9) == []
    assert sorted(names(it.turn(0.1))) == ["a.jpg", "s/t/b.jpg"]
    assert all(path.startswith(".rmbgd/") for path in it.files("input"))
    assert it.turn(60) == []


@pytest.mark.parametrize("heard", [FileEvent.CLOSED, FileEvent.APPEARED])
def test_what_is_announced_is_claimed_sooner(loop: Callable[..., Loop], heard: FileEvent) -> None:
    """A close and an appearance (a link, a rename) each say that the writer is done."""
    it = loop()
    it.turn()
    it.drop("a.jpg")
    it.hear("a.jpg", heard)

    assert it.turn() == []
    assert names(it.turn(0.5)) == ["a.jpg"]


def test_a_changing_file_is_not_claimed(loop: Callable[..., Loop]) -> None:
    """Every change begins the quiet time anew."""
    it = loop()
    path = it.drop("a.jpg")
    it.hear("a.jpg")
    for _ in range(20):
        with open(path, "ab") as file:
            file.write(b"more")
        it.hear("a.jpg")
        assert it.turn(0.4) == []
    assert names(it.turn(0.5)) == ["a.jpg"]


def test_an_open_file_is_not_claimed_however_long(loop: Callable[..., Loop]) -> None:
    """Reported once after an hour, claimed when it is closed."""
    it = loop()
    path = it.drop("a.jpg")
    with open(path, "ab"):
        assert it.turn(60, times=120) == []
    assert len(it.events.named("intake.stuck_upload")) == 1
    assert names(it.turn(31)) == ["a.jpg"]


def test_names_of_half_uploads_are_left_alone(loop: Callable[..., Loop]) -> None:
    """Found or announced, beside the configured ones."""
    it = loop(ignore=["*.RAW"])
    names = {".a.jpg.Xy12", "a.jpg.part", "a.JPG.FILEPART", "~$a.jpg", "a.jpg~", "Thumbs.db", "mine.raw"}
    names |= {".h/a.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg"}
    for name in names:
        it.drop(name)
        it.hear(name)

    assert it.turn(5, times=3) == []
    assert it.files("input").keys() == names


def test_without_recursion_sub_folders_are_left_alone(loop: Callable[..., Loop]) -> None:
    """recursive = false means the folder itself."""
    it = loop(recursive=False)
    it.drop("s/a.jpg")
    it.drop("b.jpg")
    assert names(it.turn(0) + it.turn(3)) == ["b.jpg"]


# ------------------------------------------------------------------------------------------------- what is missing


def test_a_cut_off_file_is_waited_for_then_refused(loop: Callable[..., Loop]) -> None:
    """Reported once, not decoded; in the end it goes to the finish stage with its reason."""
    it = loop()
    it.drop("a.png", PNG)
    it.drop("b.jpg", b"")
    it.turn()
    assert it.turn(30, times=29) == []
    assert it.rejections() == []
    assert it.turn(60) == []

    found = {rejection.job.relative_path: rejection for rejection in it.rejections()}
    assert (found["a.png"].reason, found["b.jpg"].reason) == (Reason.TRUNCATED, Reason.EMPTY)
    assert {rejection.stage for rejection in found.values()} == {"intake"}
    assert sorted((event["path"], event["gate"]) for event in it.events.named("intake.incomplete")) == [
        ("a.png", "tail"),
        ("b.jpg", "empty"),
    ]


def test_the_remainder_makes_it_whole(loop: Callable[..., Loop]) -> None:
    """What was cut off is claimed as soon as its end has come."""
    it = loop()
    path = it.drop("a.png", PNG)
    it.turn()
    it.turn(20)
    with open(path, "ab") as file:
        file.write(WHOLE[len(PNG) :])
    it.hear("a.png")

    assert names(it.turn() + it.turn(0.5)) == ["a.png"]


def test_what_a_decoder_finds_cut_off_waits_for_a_change(loop: Callable[..., Loop]) -> None:
    """Back where it was; not claimed again as it is until the patience ends, and then for the last time."""
    it = loop()
    (job,) = it.claimed("s/a.jpg")
    it.reconciler.give_back(job, "incomplete", "premature end")
    assert it.turn() == []
    assert it.files("input") == {"s/a.jpg": b"image"}
    assert it.ledger.counts() == {}
    assert it.turn(30, times=28) == []

    (again,) = it.turn(100)
    assert (again.final, again.attempt, again.relative_path) == (True, 1, "s/a.jpg")


def test_what_changed_in_work_is_claimed_anew(loop: Callable[..., Loop]) -> None:
    """It was written to after the claim: back, and quiet again first."""
    it = loop()
    (job,) = it.claimed("a.jpg")
    with open(job.source, "ab") as file:
        file.write(b" and more")
    it.reconciler.give_back(job, "changed", "")
    it.turn()

    assert [Path(job.source).read_bytes() for job in it.turn(2)] == [b"image and more"]


# ------------------------------------------------------------------------------------------------- who goes first


def test_nothing_is_claimed_that_the_decoders_have_no_room_for(loop: Callable[..., Loop]) -> None:
    """The folder is the queue: what is not in work stays visible to its owner."""
    it = loop(places=3)
    for number in range(10):
        it.drop(f"{number}.jpg")
    it.turn()
    it.step(2)

    assert len([path for path in it.files("input") if not path.startswith(".rmbgd/")]) == 7
    assert it.reconciler.statistics().waiting == 7
    assert len(it.take()) == 3
    assert len(it.turn()) == 3


def test_a_backlog_does_not_hide_the_files_of_others(loop: Callable[..., Loop]) -> None:
    """A folder with more files than are observed at once; a realtime folder's file goes before all of them."""
    others = [{"name": "till", "latency": "realtime"}, {"name": "press", "priority": 90}]
    it = loop(places=4, others=others, intake={"tracked_maximum": 30})
    for number in range(100):
        it.drop(f"{number:03}.jpg")
    it.turn()
    for other in ("press", "till"):
        (it.base / other / "input" / "x.jpg").write_bytes(b"image")
        it.hear("x.jpg", folder=other)
    it.turn()
    jobs = it.turn(2.5)

    assert [job.folder for job in jobs] == ["till", "press", "shop", "shop"]
    seen = {job.relative_path for job in jobs}
    while more := it.turn(2.5):
        seen |= {job.relative_path for job in more}
    assert len(seen) == 101


def test_waiting_raises_the_priority(loop: Callable[..., Loop]) -> None:
    """One step each ten seconds: nothing waits for ever behind a busier folder."""
    it = loop(places=1, others=[{"name": "press", "priority": 60}])
    it.drop("old.jpg")
    it.turn()
    it.turn(2)
    it.drop("patient.jpg")
    it.hear("patient.jpg")
    it.turn()
    it.clock.advance(101)
    (it.base / "press" / "input" / "new.jpg").write_bytes(b"image")
    it.hear("new.jpg", folder="press")
    for folder in ("shop", "press"):
        it.reconciler.pause(f"disk_full:{folder}")
    it.turn()
    it.turn(2)
    for folder in ("shop", "press"):
        it.reconciler.resume(f"disk_full:{folder}")

    assert names(it.turn()) == ["patient.jpg"]
    assert names(it.turn()) == ["new.jpg"]


def test_versions_of_one_path_are_worked_on_in_order(loop: Callable[..., Loop]) -> None:
    """A replacement waits until the version before it has ended, however soon it is complete."""
    it = loop()
    (old,) = it.claimed("a.jpg", data=b"old")
    it.drop("a.jpg", b"new")
    it.hear("a.jpg")
    it.turn()
    assert it.turn(5) == []

    it.end(old)
    (new,) = it.turn(30)
    assert Path(new.source).read_bytes() == b"new"


def test_suspects_go_alone(loop: Callable[..., Loop]) -> None:
    """Images that the last run died with come first, one at a time; everything else waits."""
    first = loop()
    assert len(first.claimed("a.jpg", "b.jpg")) == 2
    first.close()
    it = loop()
    it.drop("c.jpg")

    assert it.recovered.jobs == 2
    (one,) = it.turn() + it.turn(5)
    it.end(one)
    (two,) = it.turn(5)
    assert {one.relative_path, two.relative_path} == {"a.jpg", "b.jpg"}
    assert (one.attempt, two.attempt) == (2, 2)
    it.end(two)
    assert names(it.turn(5)) == ["c.jpg"]


# ------------------------------------------------------------------------------------------------- what is refused


def test_entries_that_are_no_files_are_reported_once_and_left(loop: Callable[..., Loop]) -> None:
    """Never opened, never moved, and no second event however often the folder is compared."""
    it = loop()
    (it.roots["input"] / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(it.roots["input"] / "pipe.jpg")
    (it.roots["input"] / "folder.jpg").mkdir()
    it.turn(31, times=4)

    reported = [(event["path"], event["reason"]) for event in it.events.named("image.failed")]
    assert sorted(reported) == [("link.jpg", "not_regular"), ("pipe.jpg", "not_regular")]
    assert sorted(os.listdir(it.roots["input"])) == ["folder.jpg", "link.jpg", "pipe.jpg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that belong to others")
def test_hard_links_to_others_files_are_refused(loop: Callable[..., Loop]) -> None:
    """One's own links are a way of arriving; a stranger's file linked in is a way of having it read with our rights."""
    it = loop()
    for name, owner in (("own", 0), ("foreign", 4711)):
        outside = it.base / name
        outside.write_bytes(b"image")
        os.chown(outside, owner, owner)
        os.link(outside, it.roots["input"] / f"{name}.jpg")
    it.turn()

    assert names(it.turn(2)) == ["own.jpg"]
    assert [(event["path"], event["reason"]) for event in it.events.named("image.failed")] == [
        ("foreign.jpg", "hardlink")
    ]


def test_what_may_not_be_moved_is_worked_on_in_place_once(loop: Callable[..., Loop]) -> None:
    """An immutable file: published, its archiving tried again, and never computed a second time."""
    it = loop()
    it.drop("a.jpg")
    it.reconciler._claims._fs = FailingFs({"rename_noreplace": [errno.EPERM]})
    it.turn()
    (job,) = it.turn(2)
    assert (job.claimed_by_rename, job.source) == (False, str(it.roots["input"] / "a.jpg"))
    it.roots["done"].rmdir()
    it.end(job)

    assert it.turn(31, times=5) == []
    assert len(it.events.named("storage.retire_failed")) == 1
    it.roots["done"].mkdir()
    it.turn(400)
    assert (it.files("input"), it.files("done")) == ({}, {"a.jpg": b"image"})


def test_kept_originals_are_worked_on_once(loop: Callable[..., Loop]) -> None:
    """Until they change."""
    it = loop(originals="keep")
    (job,) = it.claimed("a.jpg")
    it.end(job)
    assert it.turn(31, times=3) == []
    os.utime(job.source)

    assert names(it.turn(31) + it.turn(2)) == ["a.jpg"]


def test_a_blocked_file_is_reported_once_and_tried_again(
    loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not readable is not broken: it stays, and goes when it is mended."""
    it = loop()
    it.drop("a.jpg")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(scanner, "check", refuse)
        assert it.turn(3, times=20) == []
    assert [event["cause"] for event in it.events.named("intake.blocked")] == ["Permission denied"]
    os.chmod(it.roots["input"] / "a.jpg", 0o600)
    it.hear("a.jpg", FileEvent.TOUCHED)

    assert names(it.turn() + it.turn(2)) == ["a.jpg"]


# ------------------------------------------------------------------------------------------------- pauses and faults


def test_a_paused_folder_does_not_stop_the_others(loop: Callable[..., Loop]) -> None:
    """The reason names whose disk it is."""
    it = loop(others=[{"name": "press"}])
    it.drop("a.jpg")
    (it.base / "press" / "input" / "b.jpg").write_bytes(b"image")
    it.reconciler.pause("disk_full:shop")
    it.turn()
    assert names(it.turn(2)) == ["b.jpg"]
    assert it.reconciler.statistics().paused == "disk_full"
    it.reconciler.resume("disk_full:shop")

    assert names(it.turn()) == ["a.jpg"]


def test_a_disk_at_the_brink_does_not_stop_and_go(loop: Callable[..., Loop]) -> None:
    """Closed below the minimum, open again at half as much more; a disk that cannot be asked changes nothing."""
    it = loop()
    guard, least = DiskSpaceGuard(it.config, it.events), it.config.pipeline.free_bytes_minimum
    closed = []
    for now, free in enumerate((least, least - 1, least, None, least + least // 2, least)):
        guard.check(float(now), {"shop": free})
        closed.append((bool(guard.closed), guard.next_check(float(now))))

    assert closed == [(False, None), (True, 3.0), (True, 4.0), (True, 5.0), (False, None), (False, None)]
    assert [event["kind"] for event in it.events.named("storage.paused")] == ["disk_full"]
    assert [event["seconds"] for event in it.events.named("storage.resumed")] == [3.0]


def test_a_ledger_that_refuses_pauses_and_loses_nothing(loop: Callable[..., Loop]) -> None:
    """Nothing can be recorded: reported once, nothing is claimed, and all of it happens when there is room."""
    it = loop()
    for number in range(300):
        it.drop(f"{number}.jpg")
    (it.roots["input"] / "link.jpg").symlink_to("nowhere")
    db = it.ledger._database._connection
    db.execute(f"PRAGMA max_page_count={db.execute('PRAGMA page_count').fetchone()[0]}")
    assert it.turn(5, times=6) == []
    assert [event["kind"] for event in it.events.named("storage.paused")][:1] == ["disk_full"]
    assert it.reconciler.statistics().paused == "ledger"
    assert len([path for path in it.files("input") if not path.startswith(".rmbgd/")]) == 301

    db.execute("PRAGMA max_page_count=100000")
    claimed: list[str] = []
    for _ in range(10):
        claimed += names(it.turn(5))
    assert len(claimed) == 300
    assert it.reconciler.statistics().paused is None
    assert it.events.named("storage.resumed")
    assert [event["path"] for event in it.events.named("image.failed")] == ["link.jpg"]


def test_a_folder_that_goes_and_comes_is_compared_again(loop: Callable[..., Loop]) -> None:
    """Files of a folder that is away are forgotten, its claimed ones come back with it."""
    it = loop()
    (job,) = it.claimed("a.jpg")
    it.drop("b.jpg")
    it.turn(5)
    away = it.base / "away"
    it.roots["input"].rename(away)
    it.turn(6)
    assert it.reconciler.statistics().waiting == 0
    it.reconciler.give_back(job, "vanished", "")
    it.turn()
    away.rename(it.roots["input"])

    assert sorted(names(it.turn(6) + it.turn(6) + it.turn(6))) == ["a.jpg", "b.jpg"]


def test_an_image_that_cannot_go_back_now_goes_back_later(
    loop: Callable[..., Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder stands there all the time, only no descriptor was left: it is not forgotten among the claimed."""

    def no_descriptor(*_: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    it = loop()
    (job,) = it.claimed("a.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(claims, "put_back", no_descriptor)
        it.reconciler.give_back(job, "storage", "EMFILE")
        it.turn()

    assert names(it.turn(6) + it.turn(6) + it.turn(6)) == ["a.jpg"]


def test_too_many_hints_become_a_comparison(loop: Callable[..., Loop]) -> None:
    """Events that were dropped cost a look at the folder, and no file."""
    it = loop(intake={"hints_maximum": 10})
    it.turn()
    for number in range(50):
        it.drop(f"{number}.jpg")
        it.hear(f"{number}.jpg")
    it.turn()
    assert len(it.turn(2)) == 50


def test_rescan_looks_at_once(loop: Callable[..., Loop]) -> None:
    """SIGHUP does not wait for the next comparison."""
    it = loop()
    it.turn()
    it.drop("a.jpg")
    assert it.turn(0.1) == []
    it.reconciler.rescan()
    assert names(it.turn(0.1) + it.turn(2)) == ["a.jpg"]


def test_what_comes_back_after_the_end_is_put_back(loop: Callable[..., Loop]) -> None:
    """A stopping pipeline returns what it did not begin: the attempt does not count, the file stands in its folder."""
    it = loop()
    (job,) = it.claimed("a.jpg")
    it.reconciler.close()
    it.reconciler.give_back(job, "stopping", "")

    assert it.reconciler.finish_returns() == 1
    assert it.files("input") == {"a.jpg": b"image"}
    assert it.ledger.counts() == {}


def test_the_health_event_has_its_numbers(loop: Callable[..., Loop]) -> None:
    """Waiting, in work, rows and the age of the oldest."""
    it = loop(places=1)
    for name in "abc":
        it.drop(f"{name}.jpg")
    it.turn()
    it.step(3)
    it.step(61)
    found = it.reconciler.statistics()

    assert (found.waiting, found.in_flight, found.ledger_rows) == (2, 1, 1)
    assert found.oldest_waiting == 64.0
    assert found.folders["shop"]["mode"] == "poll"


def test_the_loop_ends_when_it_is_closed(loop: Callable[..., Loop]) -> None:
    """And closes its ends, which is how the pipeline learns that nothing more comes."""
    it = loop()
    it.reconciler.close()
    sender, door = it.sender.clone(), it.door.clone()
    it.reconciler.run(sender, door)
    with pytest.raises(ValueError, match="closed"):
        sender.send(None)
