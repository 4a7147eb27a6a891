"""Syncs that fail once and for long, disks without names, inputs that cannot be read, no descriptors (F9 to F19)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from rmbgd.clock import SystemClock
from rmbgd.errors import Reason
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline import storage_retry
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.testing.fs import FailingFs
from tests.support import audit
from tests.support.images import sample_image, samples
from tests.support.mounts import disk, first_block, mounted
from tests.support.service import ServiceUnderTest
from tests.support.workspace import Workspace, sha256

CALLS_MAXIMUM = 40  # more syncs than this for one image is a defect of the test


class Honest(FailingFs):
    """Fails as told, and after a failed sync of a file nothing may have its name until it was written anew."""

    def __init__(self, script: dict[str, list[int]]) -> None:
        super().__init__(script)
        self.distrusted: set[str | int] = set()

    def before(self, name: str, subject: str | int) -> None:
        assert not (name.startswith("rename") and subject in self.distrusted), f"{subject}: its sync failed"
        if name == "unlink":
            self.distrusted.discard(subject)
        try:
            super().before(name, subject)
        except OSError:
            if name == "sync_file":
                self.distrusted.add(os.readlink(f"/proc/self/fd/{subject}"))
            raise


@pytest.mark.parametrize("times", [1, 5], ids=["once", "for long"])
@pytest.mark.parametrize("step", ["sync_file", "sync_folder"])
def test_each_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, times: int) -> None:
    """EIO from the first, second ... last sync: held, tried anew, published once and archived once, and told."""
    monkeypatch.setattr(storage_retry, "RETRY_MAXIMUM", 0.0)
    for number in range(CALLS_MAXIMUM):
        base = tmp_path / str(number)
        base.mkdir()
        fs = Honest({step: [0] * number + [errno.EIO] * times})
        doors, workspace = Mock(), Workspace(base, fs=fs)
        retry = StorageRetry(doors, RecordedEvents(), SystemClock())
        workspace.drop("s/a.jpg", b"original")
        write = functools.partial(workspace.publish, workspace.claim("s/a.jpg"), sidecar_facts={"of": "a"})
        published = retry.retry_until_writable(write, "output", NullHeartbeat())
        assert published.sha256 == sha256(b"cutout")
        assert workspace.files("output")["s/a.png"] == b"cutout"
        assert set(workspace.files("output")) == {"s/a.png", "s/a.png.json"}
        assert workspace.files("done") == {"s/a.jpg": b"original"} or b"original" in workspace.files("input").values()
        assert len(doors.pause.mock_calls) == len(doors.resume.mock_calls)
        workspace.close()
        if [name for name, _ in fs.calls].count(step) <= number:
            break
    else:
        pytest.fail("the failing call was always reached")
    assert number >= 2, "the syncs were not counted"


# ----------------------------------------------------------------------------------------------- the running service


@contextlib.contextmanager
def failing_syncs(service: ServiceUnderTest, number: int) -> Iterator[Path]:
    """In every thread of the service the `number`-th sync says EIO. Yields the tracer's log."""
    log = service.base / f"strace-{number}"
    calls = "fsync,fdatasync"
    inject = f"inject={calls}:error=EIO:when={number}"
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={calls}", "-e", inject, "-p", str(service.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    try:
        if "attached" not in said:
            pytest.skip(f"strace cannot attach here: {said}")
        yield log
    finally:
        tracer.terminate()
        tracer.communicate()


@pytest.mark.timeout(120)
def test_syncs_of_the_running_service_fail(tmp_path: Path) -> None:
    """The kernel's EIO for the n-th sync of each thread, the ledger's too: all come out, each computed once."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    data: dict[str, bytes] = {}
    with ServiceUnderTest(tmp_path) as service:
        for number in (1, 2, 3):
            with failing_syncs(service, number) as log:
                data |= service.serve_all(samples(range(10 * number, 10 * number + 4)))
            assert "(INJECTED)" in log.read_text(), "no sync failed"
        service.wait(lambda: set(audit.files(service.done)) == set(data), "every original archived")
        audit.assert_settled(service, data)
        assert service.computed() == len(data)


@pytest.mark.parametrize("role", ["done", "state"])
def test_no_names_left(tmp_path: Path, role: str) -> None:
    data = samples(range(20))
    service = ServiceUnderTest(tmp_path)
    where: Path = getattr(service, role)
    with mounted(where, "tmpfs", "size=16m,nr_inodes=40"), service:
        with contextlib.suppress(OSError):
            for number in range(100):
                (where / f"filler-{number}").touch()
        fillers = list(where.glob("filler-*"))
        assert len(fillers) < 100, "the file system was not full"
        service.serve_all(data)
        for filler in fillers:
            filler.unlink()
        service.signal(1)
        service.wait(lambda: set(audit.files(service.done)) == set(data), "every original archived")
        audit.assert_settled(service, data)
        assert service.computed() == len(data)


def test_input_whose_blocks_cannot_be_read(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path, folder={"originals": "keep", "done": None})
    disk_image = tmp_path / "image"
    with disk(disk_image) as device:
        with mounted(service.input, "ext4", "rw", device):
            (service.input / "good.png").write_bytes(sample_image(1))
            (service.input / "filler").write_bytes(os.urandom(8 << 20))
            (service.input / "bad.png").write_bytes(sample_image(2, size=(400, 300)))
            subprocess.run(["sync", "-f", service.input], check=True)
            offset = first_block(service.input / "bad.png")
            (service.input / "filler").unlink()
        os.truncate(disk_image, offset)
        with mounted(service.input, "ext4", "ro,noload", device), service:
            service.wait_for("image.done", path="good.png")
            assert service.wait_for("image.failed", path="bad.png")["reason"] == Reason.IO_ERROR
            assert (service.input / "bad.png").exists()


def test_descriptors_run_out(tmp_path: Path) -> None:
    data = samples(range(20))
    with ServiceUnderTest(tmp_path, settings={"service": {"status_interval": 0.1}}) as service:
        pid = service.pid
        service.turn()
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_now = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now, before[1]))
        service.drop_all(data)
        service.wait_for("intake.blocked", cause="Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        service.wait_for_endings(len(data) + 1)
        service.wait_for_new_status()
        audit.assert_settled(service, data)
