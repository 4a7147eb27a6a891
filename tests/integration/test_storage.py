"""Disks that are full, read-only, gone, or hold on to files: wait, say so, go on by itself (T21 to T24)."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.images import rgba_of, sample_image, samples
from tests.support.mounts import disk, immutable, mounted, run, without_override
from tests.support.service import ServiceUnderTest, Settings

EVENTS_ONLY = {"intake": {"reconcile": 3600.0}}
SIZE = (96, 96)  # pixels; some 30 kB of noise as a cutout, so that forty fill a megabyte


def many(count: int) -> dict[str, bytes]:
    return samples(range(count), size=SIZE)


def assert_goes_on(service: ServiceUnderTest, data: dict[str, bytes]) -> None:
    """The disk is well again, and every image comes out of its first attempt."""
    service.wait_for_endings(len(data))
    audit.assert_complete(service.roots, data)
    assert service.named("storage.resumed")
    assert {event["attempt"] for event in service.endings()} == {1}
    assert service.computed() == len(data)


@pytest.mark.parametrize(
    ("role", "count", "full", "enough"),
    [
        ("output", 60, "size=1m", "size=64m"),
        ("output", 30, "size=64m,nr_inodes=12", "nr_inodes=1000"),
        ("state", 150, "size=1m", "size=64m"),
    ],
)
def test_full_disk_is_waited_for(tmp_path: Path, role: str, count: int, full: str, enough: str) -> None:
    data = many(count)
    service = ServiceUnderTest(tmp_path)
    place: Path = getattr(service, role)
    with mounted(place, "tmpfs", full), service:
        if role == "state":
            with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        service.drop_all(data)
        service.wait_for("storage.paused", kind="disk_full")
        assert service.named("image.failed") == []
        for name in audit.files(service.output):
            if ".rmbgd" not in name:
                rgba_of(service.output / name)  # none is half
        assert len(audit.files(service.done)) < len(data)
        run("mount", "-o", f"remount,{enough}", place)
        assert_goes_on(service, data)
        assert service.stop() == 0
        if role == "output":
            audit.assert_ledger_settled(service.state, done=len(data))


def test_little_space_left_stops_claiming(tmp_path: Path) -> None:
    data = many(10)
    service = ServiceUnderTest(tmp_path, settings={"pipeline": {"free_bytes_minimum": 4 << 20}})
    with mounted(service.output, "tmpfs", "size=16m"):
        filler = service.output / "filler"
        filler.write_bytes(bytes(14 << 20))
        with service:
            service.drop_all(data)
            service.wait_for("storage.paused", kind="disk_full")
            assert audit.places(service.roots, data) == dict.fromkeys(data, "input")
            filler.unlink()
            assert_goes_on(service, data)


@pytest.mark.parametrize(
    ("kind", "stopped"), [("read_only", False), ("missing", False), ("denied", False), ("denied", True)]
)
def test_output_that_refuses_is_waited_for(tmp_path: Path, kind: str, stopped: bool) -> None:
    """By the service that was refused, or by the next: a stop meanwhile puts back what was taken."""
    data = many(12)
    service = ServiceUnderTest(tmp_path)
    with contextlib.ExitStack() as stack:
        if kind == "read_only":
            device = stack.enter_context(disk(tmp_path / "output.img"))
            stack.enter_context(mounted(service.output, "ext4", "rw", device))
            (service.output / "lost+found").rmdir()
        stack.enter_context(service)
        with contextlib.ExitStack() as trouble:
            if kind == "read_only":
                run("mount", "-o", "remount,ro", service.output)
                trouble.callback(run, "mount", "-o", "remount,rw", service.output)
            elif kind == "missing":
                os.rename(service.output, tmp_path / "away")
                trouble.callback(os.rename, tmp_path / "away", service.output)
            else:
                trouble.enter_context(immutable(service.output))
            service.drop_all(data)
            service.wait_for("storage.paused", kind=kind)
            assert service.endings() == []
            if stopped:
                assert service.stop() == 0
                assert audit.places(service.roots, data) == dict.fromkeys(data, "input")
                assert audit.claimed(service.input) == []
        if stopped:
            service.start()
            service.wait_for_endings(len(data))
            assert {event["attempt"] for event in service.endings()} == {1}
            audit.assert_complete(service.roots, data)
        else:
            assert_goes_on(service, data)


def test_one_folders_disk_does_not_stop_another_folder(tmp_path: Path) -> None:
    roots = {role: tmp_path / "other" / role for role in ("input", "output", "done", "failed")}
    service = ServiceUnderTest(tmp_path)
    with service.config.open("a") as config:
        config.write('[[folder]]\nname = "other"\n')
        for role, root in roots.items():
            root.mkdir(parents=True)
            config.write(f'{role} = "{root}"\n')
    with service:
        with immutable(service.output):
            service.drop("held.png", sample_image(1))
            service.wait_for("storage.paused", kind="denied")
            (roots["input"] / "free.png").write_bytes(sample_image(2))
            service.wait_for("image.done", path="free.png", folder="other")
            assert service.endings("held.png") == []
        service.wait_for("image.done", path="held.png")
    audit.assert_complete(service.roots, {"held.png": sample_image(1)})
    audit.assert_complete(roots, {"free.png": sample_image(2)})


@pytest.mark.parametrize(
    ("closed", "mode", "name", "settings"),
    [("a.png", 0o600, "a.png", EVENTS_ONLY), ("folder", 0o700, "folder/a.png", {})],  # a closed folder has no watch
)
def test_unreadable_input_waits_for_its_rights(
    tmp_path: Path, closed: str, mode: int, name: str, settings: Settings
) -> None:
    with ServiceUnderTest(tmp_path, settings=settings, prefix=without_override()) as service:
        private = service.desk / closed
        (service.desk / name).parent.mkdir(exist_ok=True)
        (service.desk / name).write_bytes(sample_image(1))
        private.chmod(mode)
        os.chown(private, 65534, 65534)
        os.rename(private, service.input / closed)
        blocked = service.wait_for("intake.blocked", path=closed)
        assert f"belongs to user nobody, mode {mode:04o}" in blocked["cause"]
        assert ("rsync --inplace" in blocked["cause"]) is (closed == name)
        service.turn(8)
        assert service.endings() == []
        assert len(service.named("intake.blocked")) == 1
        os.chown(service.input / closed, 0, 0)
        service.wait_for("image.done", path=name)
    audit.assert_complete(service.roots, {name: sample_image(1)})


def test_rights_to_what_is_the_services_own_are_mended(tmp_path: Path) -> None:
    """A file of its own that it may not read, and an archive of its own that it may not change."""
    with ServiceUnderTest(tmp_path, prefix=without_override()) as service:
        service.done.chmod(0o500)
        (service.desk / "a.png").write_bytes(sample_image(1))
        (service.desk / "a.png").chmod(0o000)
        os.rename(service.desk / "a.png", service.input / "a.png")
        service.wait_for("image.done", path="a.png")
        service.wait(service.is_idle, "the original archived")
        assert service.named("intake.blocked") == service.named("storage.retire_failed") == []
    audit.assert_complete(service.roots, {"a.png": sample_image(1)})


def test_folder_whose_acl_mask_was_taken_away_is_named_with_the_cure(tmp_path: Path) -> None:
    """As `tar x` leaves a folder of its own when the archive has an entry for it."""
    with ServiceUnderTest(tmp_path, prefix=without_override()) as service:
        folder = service.desk / "upload"
        folder.mkdir()
        (folder / "a.png").write_bytes(sample_image(1))
        for path in (folder / "a.png", folder):
            os.chown(path, 65534, 65534)
        entries = [(1, 7, -1), (2, 7, 0), (4, 5, -1), (0x10, 5, -1), (0x20, 5, -1)]  # tag, rights, id; user 0: rwx
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        try:
            os.setxattr(folder, "system.posix_acl_access", acl)
        except OSError as error:
            pytest.skip(f"no ACLs here: {error}")
        os.rename(folder, service.input / "upload")
        failed = service.wait_for("storage.retire_failed", path="upload/a.png")
        assert f"setfacl -m m::rwx '{service.input / 'upload'}'" in failed["detail"]
        assert "belongs to user nobody, mode 0755" in failed["detail"]
        (service.input / "upload").chmod(0o775)  # as setfacl does
        service.wait(lambda: audit.files(service.done) == ["upload/a.png"], "the original archived")


def test_input_that_nobody_may_move_is_computed_once_where_it_is(tmp_path: Path) -> None:
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


def test_original_that_cannot_be_deleted_is_not_computed_again(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder={"originals": "delete"}) as service:
        service.hold_in_engine("a.png", sample_image(1))
        (name,) = audit.claimed(service.input)
        with immutable(service.input / ".rmbgd" / name):
            service.hold.unlink()
            service.wait_for("image.done", path="a.png")
            service.wait_for("storage.retire_failed", path="a.png")
            service.restart()
            service.turn(3)
        service.wait(service.is_idle, "the original deleted")
        assert service.computed() == 1
        assert audit.files(service.output) == ["a.png"]
