"""Disks that are full, read-only, gone, or hold on to files: wait, say so, go on by itself (T21 to T24)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.errors import Reason
from tests.support import audit
from tests.support.images import rgba_of, sample_image
from tests.support.mounts import disk, immutable, mount, mounted, run, unmount, without_override
from tests.support.service import ServiceUnderTest

EVENTS_ONLY = {"intake": {"reconcile": 3600.0}}
MANY = 60
SIZE = (96, 96)  # pixels; some 30 kB of noise as a cutout, so that forty fill a megabyte


def many(count: int = MANY) -> dict[str, bytes]:
    return {f"{number}.png": sample_image(number, size=SIZE) for number in range(count)}


def drop_all(service: ServiceUnderTest, data: dict[str, bytes]) -> None:
    for name, content in data.items():
        service.drop(name, content)


def assert_nothing_is_refused_or_half(service: ServiceUnderTest) -> None:
    assert service.named("image.failed") == []
    for name in audit.files(service.output):
        if ".rmbgd" not in name:
            rgba_of(service.output / name)


def assert_all_at_first_attempt(service: ServiceUnderTest, data: dict[str, bytes]) -> None:
    assert service.named("storage.resumed")
    assert {event["attempt"] for event in service.endings()} == {1}
    assert service.computed() == len(data)


def test_full_output_is_waited_for(tmp_path: Path) -> None:
    """A full output pauses the service, nothing is refused or cut off; with space all come out, each computed once."""
    data = many()
    service = ServiceUnderTest(tmp_path)
    with mounted(service.output, "tmpfs", "size=1m"), service:
        drop_all(service, data)
        service.wait_for("storage.paused", kind="disk_full")
        assert_nothing_is_refused_or_half(service)
        assert len(audit.files(service.done)) < len(data)
        run("mount", "-o", "remount,size=64m", service.output)
        service.wait_for_endings(len(data))
        audit.assert_complete(service.roots, data)
        assert_all_at_first_attempt(service, data)


def test_output_without_inodes_is_waited_for(tmp_path: Path) -> None:
    """A file system that has bytes but no more names counts as full."""
    data = many(30)
    service = ServiceUnderTest(tmp_path)
    with mounted(service.output, "tmpfs", "size=64m,nr_inodes=12"), service:
        drop_all(service, data)
        service.wait_for("storage.paused", kind="disk_full")
        assert_nothing_is_refused_or_half(service)
        run("mount", "-o", "remount,nr_inodes=1000", service.output)
        service.wait_for_endings(len(data))
        audit.assert_complete(service.roots, data)
        assert_all_at_first_attempt(service, data)


def test_little_space_left_stops_claiming(tmp_path: Path) -> None:
    """Below free_bytes_minimum nothing more is claimed: images stay in their folder until there is space."""
    data = many(10)
    settings = {"pipeline": {"free_bytes_minimum": 4 << 20}}
    service = ServiceUnderTest(tmp_path, settings=settings)
    with mounted(service.output, "tmpfs", "size=16m"):
        filler = service.output / "filler"
        filler.write_bytes(bytes(14 << 20))
        with service:
            drop_all(service, data)
            service.wait_for("storage.paused", kind="disk_full")
            assert audit.places(service.roots, data) == dict.fromkeys(data, "input")
            filler.unlink()
            service.wait_for_endings(len(data))
            audit.assert_complete(service.roots, data)
            assert_all_at_first_attempt(service, data)


def test_full_archive_keeps_originals_and_computes_nothing_twice(tmp_path: Path) -> None:
    """Originals that do not fit into the archive wait beside their folder, over a restart too, and follow later."""
    data = many(20)
    service = ServiceUnderTest(tmp_path)
    with mounted(service.done, "tmpfs", "size=256k"), service:
        drop_all(service, data)
        service.wait_for("storage.retire_failed")
        service.wait_for_endings(len(data))
        assert service.stop() == 0
        service.start()
        run("mount", "-o", "remount,size=64m", service.done)
        service.wait(lambda: set(audit.files(service.done)) == set(data), "every original archived")
        audit.assert_complete(service.roots, data)
        assert len(service.endings()) == service.computed() == len(data)


def test_full_disk_under_the_ledger_is_waited_for(tmp_path: Path) -> None:
    """What cannot be recorded is not done: the service pauses, and ends everything when the ledger can grow again."""
    data = many(150)
    service = ServiceUnderTest(tmp_path)
    with mounted(service.state, "tmpfs", "size=1m"), service:
        filler = service.state / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        drop_all(service, data)
        service.wait_for("storage.paused")
        assert_nothing_is_refused_or_half(service)
        filler.unlink()
        run("mount", "-o", "remount,size=64m", service.state)
        service.wait_for_endings(len(data))
        audit.assert_complete(service.roots, data)
        assert_all_at_first_attempt(service, data)
        assert service.stop() == 0
        audit.assert_ledger_settled(service.state, done=len(data))


@contextlib.contextmanager
def read_only(service: ServiceUnderTest) -> Iterator[None]:
    run("mount", "-o", "remount,ro", service.output)
    try:
        yield
    finally:
        run("mount", "-o", "remount,rw", service.output)


@contextlib.contextmanager
def missing(service: ServiceUnderTest) -> Iterator[None]:
    os.rename(service.output, service.base / "away")
    try:
        yield
    finally:
        os.rename(service.base / "away", service.output)


@contextlib.contextmanager
def denied(service: ServiceUnderTest) -> Iterator[None]:
    with immutable(service.output):
        yield


@pytest.mark.parametrize(("trouble", "kind"), [(read_only, "read_only"), (missing, "missing"), (denied, "denied")])
def test_output_that_refuses_is_waited_for(tmp_path: Path, trouble, kind: str) -> None:
    """A read-only, missing or immutable output pauses the service with a kind of its own; then it goes on by itself."""
    data = many(12)
    service = ServiceUnderTest(tmp_path)
    with contextlib.ExitStack() as stack:
        if trouble is read_only:
            device = stack.enter_context(disk(tmp_path / "output.img"))
            mount(service.output, "ext4", "rw", device)
            stack.callback(unmount, service.output)
            (service.output / "lost+found").rmdir()
        stack.enter_context(service)
        with trouble(service):
            drop_all(service, data)
            service.wait_for("storage.paused", kind=kind)
            assert service.endings() == []
        service.wait_for_endings(len(data))
        audit.assert_complete(service.roots, data)
        assert_all_at_first_attempt(service, data)


def test_stop_while_the_output_refuses_loses_nothing(tmp_path: Path) -> None:
    """A stop does not wait for a disk: results are given up, images go back, and the next start publishes them."""
    data = many(12)
    with ServiceUnderTest(tmp_path) as service:
        with denied(service):
            drop_all(service, data)
            service.wait_for("storage.paused", kind="denied")
            assert service.stop() == 0
            assert audit.places(service.roots, data) == dict.fromkeys(data, "input")
            assert audit.claimed(service.input) == []
        service.start()
        service.wait_for_endings(len(data))
        assert {event["attempt"] for event in service.endings()} == {1}
    audit.assert_complete(service.roots, data)


def test_failed_folder_that_refuses_is_waited_for(tmp_path: Path) -> None:
    """A bad image whose quarantine cannot be written is refused when it can, and others are not lost meanwhile."""
    data = {"bad.png": b"no image " * 40, "good.png": sample_image(1)}
    with ServiceUnderTest(tmp_path) as service:
        with immutable(service.failed):
            service.drop("bad.png", data["bad.png"])
            service.wait_for("storage.paused", kind="denied")
            service.drop("good.png", data["good.png"])
        service.wait_for_endings(2)
    audit.assert_complete(service.roots, data, bad={"bad.png": Reason.UNIDENTIFIED})


def test_one_folders_disk_does_not_stop_another_folder(tmp_path: Path) -> None:
    """While the output of one folder refuses, another folder's images come out."""
    roots = {role: tmp_path / "other" / role for role in ("input", "output", "done", "failed")}
    for root in roots.values():
        root.mkdir(parents=True)
    other = {"name": "other"} | {role: str(root) for role, root in roots.items()}
    with ServiceUnderTest(tmp_path, more_folders=[other]) as service:
        with denied(service):
            service.drop("held.png", sample_image(1))
            service.wait_for("storage.paused", kind="denied")
            service.drop("free.png", sample_image(2), roots["input"])
            service.wait_for("image.done", path="free.png", folder="other")
            assert service.endings("held.png") == []
        service.wait_for("image.done", path="held.png")
    audit.assert_complete(service.roots, {"held.png": sample_image(1)})
    audit.assert_complete(roots, {"free.png": sample_image(2)})


def test_unreadable_input_waits_for_its_rights(tmp_path: Path) -> None:
    """A file that the service may not read stays, is told once, and comes out when somebody gives the right."""
    service = ServiceUnderTest(tmp_path, settings=EVENTS_ONLY, prefix=without_override())
    with service:
        private = service.desk / "private.png"
        private.write_bytes(sample_image(1))
        private.chmod(0o600)
        os.chown(private, 65534, 65534)
        os.rename(private, service.input / "private.png")
        service.wait_for("intake.blocked", path="private.png")
        service.turn(8)
        assert service.endings() == []
        assert len(service.named("intake.blocked")) == 1
        (service.input / "private.png").chmod(0o644)
        service.wait_for("image.done", path="private.png")
        assert service.named("image.failed") == []
    audit.assert_complete(service.roots, {"private.png": sample_image(1)})


def test_unreadable_sub_folder_waits_for_its_rights(tmp_path: Path) -> None:
    """A folder that may not be entered is told once; its images come out when it may."""
    service = ServiceUnderTest(tmp_path, prefix=without_override())
    closed = service.input / "closed"
    closed.mkdir()
    (closed / "a.png").write_bytes(sample_image(1))
    closed.chmod(0o700)
    os.chown(closed, 65534, 65534)
    with service:
        service.wait_for("intake.blocked", path="closed")
        service.turn(8)
        assert len(service.named("intake.blocked")) == 1
        os.chown(closed, 0, 0)
        service.wait_for("image.done", path="closed/a.png")
    audit.assert_complete(service.roots, {"closed/a.png": sample_image(1)})


def test_input_that_nobody_may_move_is_computed_once_where_it_is(tmp_path: Path) -> None:
    """An immutable input is read in place, once over many comparisons and a restart, and archived when it may be."""
    service = ServiceUnderTest(tmp_path)
    (service.input / "fixed.png").write_bytes(sample_image(1))
    with immutable(service.input / "fixed.png"):
        with service:
            service.wait_for("image.done", path="fixed.png")
            service.wait_for("storage.retire_failed", path="fixed.png")
            service.signal(signal.SIGHUP)
            service.wait_for("service.reload")
            service.turn(5)
        service.start()
        service.turn(3)
        assert len(service.endings()) == service.computed() == 1
    with service:
        service.wait(service.is_idle, "the original archived")
        assert len(service.endings()) == service.computed() == 1
    audit.assert_complete(service.roots, {"fixed.png": sample_image(1)})


def test_original_that_cannot_be_archived_is_not_computed_again(tmp_path: Path) -> None:
    """The output stands, the job is done; moving is tried again, after a restart too, and told once a run."""
    data = many(5)
    with ServiceUnderTest(tmp_path) as service:
        with immutable(service.done):
            drop_all(service, data)
            service.wait_for_endings(len(data))
            service.wait_for("storage.retire_failed", count=len(data))
            assert len(audit.files(service.output)) == len(data)
            assert service.stop() == 0
            service.start()
            service.wait_for("storage.retire_failed", count=2 * len(data))
        service.wait(lambda: len(audit.files(service.done)) == len(data), "every original archived")
        assert len(service.endings()) == service.computed() == len(data)
    audit.assert_complete(service.roots, data)


def test_original_that_cannot_be_deleted_is_not_computed_again(tmp_path: Path) -> None:
    """An original that turns immutable while it is computed: its output stands, and it goes as soon as it can."""
    with ServiceUnderTest(tmp_path, folder={"originals": "delete"}) as service:
        service.hold.touch()
        service.drop("a.png", sample_image(1))
        service.wait(lambda: service.given() == 1, "the image in the engine")
        (name,) = audit.claimed(service.input)
        with immutable(service.input / ".rmbgd" / name):
            service.hold.unlink()
            service.wait_for("image.done", path="a.png")
            service.wait_for("storage.retire_failed", path="a.png")
            assert service.stop() == 0
            service.start()
            service.turn(3)
        service.wait(service.is_idle, "the original deleted")
        assert service.computed() == 1
        assert audit.files(service.output) == ["a.png"]
