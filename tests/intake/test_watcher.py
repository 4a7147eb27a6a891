"""The watch on a drop folder, and what shows that it does not work."""

import os
import shutil
import threading

import pytest

from rmbgd.config.load import Folder, IntakeSettings
from rmbgd.events import RecordedEvents
from rmbgd.intake.watcher import FileEvent, FolderWatch, Hints, OverflowListener
from rmbgd.testing.clock import FakeClock

pytestmark = pytest.mark.timeout(30)


class Watched:
    def __init__(self, base, **options):
        self.root = base / "input"
        self.root.mkdir()
        names = {role: str(base / role) for role in ("input", "output", "done", "failed")}
        self.woken = threading.Event()
        self.hints = Hints(1000, self.woken.set)
        self.clock = FakeClock()
        self.events = RecordedEvents()
        self.watch = FolderWatch(
            Folder(name="shop", **names, **options), IntakeSettings(), self.hints, self.events, self.clock
        )

    def check(self):
        self.clock.advance(10)
        return self.watch.check()

    def hinted(self, wanted):
        """Collect hints until `wanted` is among them."""
        files, directories = {}, set()
        while not wanted(files, directories):
            assert self.woken.wait(10), f"heard only {files} {directories}"
            self.woken.clear()
            taken = self.hints.take()
            files |= {path: heard for (_, path), heard in taken.files.items()}
            directories |= {path for _, path in taken.directories}
        return files


@pytest.fixture
def watched(tmp_path):
    made = []

    def make(**options):
        made.append(Watched(tmp_path, **options))
        made[-1].check()
        return made[-1]

    yield make
    for each in made:
        each.watch.close()


def test_each_way_of_arriving_leaves_a_hint(watched, tmp_path):
    it = watched()
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
    assert FileEvent.CLOSED == heard["written.jpg"]
    assert FileEvent.APPEARED == heard["linked.jpg"]
    assert FileEvent.APPEARED == heard["a.jpg"]


def test_a_change_of_rights_leaves_a_hint(watched):
    """A file that could not be read is looked at again as soon as it is mended."""
    it = watched()
    (it.root / "a.jpg").write_bytes(b"x")
    it.hinted(lambda files, _: files.get("a.jpg") == FileEvent.CLOSED)
    os.chmod(it.root / "a.jpg", 0o600)
    it.hinted(lambda files, _: files.get("a.jpg") == FileEvent.TOUCHED)


def test_our_own_folder_leaves_no_hint(watched):
    """Claims are renames inside the drop folder; they announce nothing."""
    it = watched()
    (it.root / ".rmbgd").mkdir()
    (it.root / "a.jpg").write_bytes(b"x")
    os.rename(it.root / "a.jpg", it.root / ".rmbgd" / "1-a.jpg")
    (it.root / "z.jpg").write_bytes(b"x")
    heard = it.hinted(lambda files, _: "z.jpg" in files)
    assert not [path for path in heard if path.startswith(".rmbgd")]


def test_a_replaced_folder_is_watched_anew_and_compared(watched):
    """Another directory under the same name: reported once, compared at once, and watched again."""
    it = watched()
    os.rename(it.root, it.root.with_name("old"))
    it.root.mkdir()
    assert it.check() is True
    assert 1 == len(it.events.named("folder.replaced"))
    (it.root / "a.jpg").write_bytes(b"x")
    it.hinted(lambda files, _: "a.jpg" in files)


def test_a_missing_folder_is_waited_for(watched):
    """Gone and back: one event when it goes, one when it is watched again, and then it is compared."""
    it = watched()
    shutil.rmtree(it.root)
    assert [it.check(), it.check()] == [False, False]
    assert ["missing"] == [event["cause"] for event in it.events.named("folder.waiting")]
    assert it.watch.present is False
    it.root.mkdir()
    assert it.check() is True
    assert 2 == len(it.events.named("folder.watching"))


def test_a_disk_that_is_not_mounted_is_waited_for(watched):
    """With require_mount an ordinary directory under the mount point is not taken for the disk."""
    it = watched(require_mount=True)
    assert ["not_mounted"] == [event["cause"] for event in it.events.named("folder.waiting")]


def test_files_without_an_event_make_it_poll(watched):
    """Three files found and no event for them: the file system is silent; an event brings the events back."""
    it = watched()
    it.watch.compared({os.stat(it.root).st_ino}, 3)
    assert ["silent"] == [event["cause"] for event in it.events.named("watch.degraded")]
    assert IntakeSettings().reconcile_lossy == it.watch.compare_every
    (it.root / "a.jpg").write_bytes(b"x")
    it.hinted(lambda files, _: "a.jpg" in files)
    it.check()
    assert 1 == len(it.events.named("watch.restored"))
    assert IntakeSettings().reconcile == it.watch.compare_every


def test_a_directory_without_a_watch_makes_it_poll(watched):
    """The kernel's own list decides: what stays unwatched after arming again is compared often instead."""
    it = watched()
    directories = {os.stat(it.root).st_ino, 1}  # inode 1 is nobody's
    for _ in range(3):
        it.watch.compared(directories, 0)
    assert ["watch_limit"] == [event["cause"] for event in it.events.named("watch.degraded")]
    assert {"wanted": 2, "armed": 1}.items() <= it.watch.status().items()


def test_a_dead_thread_is_noticed(watched):
    it = watched()
    it.watch._observer.stop()
    it.watch._observer.join()
    assert it.check() is True
    assert ["dead"] == [event["cause"] for event in it.events.named("watch.degraded")]
    (it.root / "a.jpg").write_bytes(b"x")
    it.hinted(lambda files, _: "a.jpg" in files)


def test_an_overflow_asks_for_a_comparison(watched):
    """What watchdog writes into its log reaches the hints and the event log, and nothing reaches standard error."""
    import logging

    it = watched()
    with OverflowListener([it.watch], it.events):
        logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; events were lost")
    assert {"shop"} == it.hints.take().whole
    assert 1 == len(it.events.named("watch.overflow"))


def test_a_hint_never_says_less_than_before():
    hints = Hints(10, lambda: None)
    hints.file("shop", "a.jpg", FileEvent.CLOSED)
    hints.file("shop", "a.jpg", FileEvent.TOUCHED)
    assert {("shop", "a.jpg"): FileEvent.CLOSED} == hints.take().files
