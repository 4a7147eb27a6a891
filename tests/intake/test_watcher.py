"""The watch on a drop folder, and what shows that it does not work."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from rmbgd.config.load import Folder, IntakeSettings
from rmbgd.events import RecordedEvents
from rmbgd.folder_lock import FolderLock, this_service
from rmbgd.intake.watcher import FileEvent, FolderWatch, Hints, OverflowListener
from rmbgd.testing.clock import FakeClock

pytestmark = pytest.mark.timeout(30)
ME = this_service(Path("/state"))


class Watched:
    def __init__(self, base: Path, **options: object) -> None:
        self.root = base / "input"
        self.root.mkdir()
        names = {role: str(base / role) for role in ("input", "output", "done", "failed")}
        self.woken, self.clock, self.events = threading.Event(), FakeClock(), RecordedEvents()
        self.hints = Hints(1000, self.woken.set)
        folder = Folder(name="shop", **names, **options)
        self.watch = FolderWatch(folder, IntakeSettings(), self.hints, self.events, self.clock, FolderLock(ME))
        self.check()

    def close(self) -> None:
        self.watch.close()
        self.watch.lock.release()

    def check(self) -> bool:
        self.clock.advance(10)
        return self.watch.check()

    def hinted(self, wanted: Callable[[dict[str, FileEvent], set[str]], bool]) -> dict[str, FileEvent]:
        """Collect hints until `wanted` is among them."""
        files, directories = {}, set()
        while not wanted(files, directories):
            assert self.woken.wait(10), f"heard only {files} {directories}"
            self.woken.clear()
            taken = self.hints.take()
            files |= {path: heard for (_, path), heard in taken.files.items()}
            directories |= {path for _, path in taken.directories}
        return files

    def hear_a_file(self) -> None:
        (self.root / "a.jpg").write_bytes(b"x")
        self.hinted(lambda files, _: files.get("a.jpg") == FileEvent.CLOSED)

    def causes(self, event: str) -> list[str]:
        return [each["cause"] for each in self.events.named(event)]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(closing(Watched(tmp_path, **options)))


@pytest.fixture
def it(watched: Callable[..., Watched]) -> Watched:
    return watched()


def test_each_way_of_arriving_leaves_a_hint(it: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"x")
    (it.root / "written.jpg").write_bytes(b"x")
    os.link(outside, it.root / "linked.jpg")
    os.rename(outside, it.root / "renamed.jpg")
    (it.root / ".a.part").write_bytes(b"x")
    os.rename(it.root / ".a.part", it.root / "a.jpg")
    os.makedirs(it.root / "b" / "c")
    names = {"written.jpg", "linked.jpg", "renamed.jpg", "a.jpg"}
    heard = it.hinted(lambda files, directories: names <= files.keys() and "b" in directories)
    events = [heard[name] for name in ("written.jpg", "linked.jpg", "a.jpg")]
    assert events == [FileEvent.CLOSED, FileEvent.APPEARED, FileEvent.APPEARED]


def test_a_change_of_rights_leaves_a_hint(it: Watched) -> None:
    it.hear_a_file()
    os.chmod(it.root / "a.jpg", 0o600)
    it.hinted(lambda files, _: files.get("a.jpg") == FileEvent.TOUCHED)


def test_our_own_folder_leaves_no_hint(it: Watched) -> None:
    """Claims are renames inside the drop folder; they announce nothing."""
    (it.root / "b.jpg").write_bytes(b"x")
    os.rename(it.root / "b.jpg", it.root / ".rmbgd" / "1-b.jpg")
    (it.root / "z.jpg").write_bytes(b"x")
    heard = it.hinted(lambda files, _: "z.jpg" in files)
    assert not [path for path in heard if path.startswith(".rmbgd")]


def test_a_replaced_folder_is_watched_anew_and_compared(it: Watched) -> None:
    os.rename(it.root, it.root.with_name("old"))
    it.root.mkdir()
    assert it.check() is True
    assert len(it.events.named("folder.replaced")) == 1
    it.hear_a_file()


def test_a_missing_folder_is_waited_for(it: Watched) -> None:
    shutil.rmtree(it.root)
    assert [it.check(), it.check()] == [False, False]
    assert it.causes("folder.waiting") == ["missing"]
    assert it.watch.present is False
    it.root.mkdir()
    assert it.check() is True
    assert len(it.events.named("folder.watching")) == 2


def test_a_disk_that_is_not_mounted_is_waited_for(watched: Callable[..., Watched]) -> None:
    assert watched(require_mount=True).causes("folder.waiting") == ["not_mounted"]


def test_files_without_an_event_make_it_poll(it: Watched) -> None:
    """Three files found and no event for them: the file system is silent; an event brings the events back."""
    it.watch.compared({os.stat(it.root).st_ino}, 3)
    assert it.causes("watch.degraded") == ["silent"]
    assert it.watch.compare_every == IntakeSettings().reconcile_lossy
    it.hear_a_file()
    it.check()
    assert len(it.events.named("watch.restored")) == 1
    assert it.watch.compare_every == IntakeSettings().reconcile


def test_a_directory_without_a_watch_makes_it_poll(it: Watched) -> None:
    """The kernel's own list decides: what stays unwatched after arming again is compared often instead."""
    directories = {os.stat(it.root).st_ino, 1}  # inode 1 is nobody's
    for _ in range(3):
        it.watch.compared(directories, 0)
    assert it.causes("watch.degraded") == ["watch_limit"]
    assert it.watch.status().items() >= {"wanted": 2, "armed": 1}.items()


def test_a_watch_whose_threads_ended_is_armed_again(it: Watched) -> None:
    it.watch._observer.stop()
    it.watch._observer.join()
    assert it.check() is True
    assert it.causes("watch.degraded") == ["dead"]
    it.hear_a_file()


def test_an_overflow_asks_for_a_comparison(it: Watched) -> None:
    """What watchdog writes into its log reaches the hints and the event log, and nothing reaches standard error."""
    with OverflowListener([it.watch], it.events):
        logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; events were lost")
    assert it.hints.take().whole == {"shop"}
    assert len(it.events.named("watch.overflow")) == 1


def test_a_hint_never_says_less_than_before() -> None:
    hints = Hints(10, lambda: None)
    for event in (FileEvent.CLOSED, FileEvent.TOUCHED):
        hints.file("shop", "a.jpg", event)
    assert hints.take().files == {("shop", "a.jpg"): FileEvent.CLOSED}
