"""File operations: a rename that never replaces, with and without the kernel's help; and whose fault an error is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd import fs
from rmbgd.clock import backoff
from rmbgd.errors import ImageError, StorageFault
from rmbgd.fs import HostMemory, SystemFileSystem, atomic_write, fault_of, host_memory, storage_faults, usable_cores
from rmbgd.testing.fs import CrashingFs, WorldStopped


@pytest.fixture(params=["all", "no flags", "neither flags nor hard links"])
def files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SystemFileSystem:
    """On a file system that can do all, whose rename knows no flags, and on FAT."""
    if request.param != "all":
        monkeypatch.setattr(fs, "_renameat2", Mock(side_effect=OSError(errno.EINVAL, "no flags")))
    if "links" in request.param:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EPERM, "no links")))
    return SystemFileSystem()


@pytest.mark.parametrize("taken", ["file", "dangling link", "folder"])
def test_rename_noreplace_replaces_nothing(tmp_path: Path, files: SystemFileSystem, taken: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    if taken == "file":
        target.write_text("old")
    elif taken == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        files.rename_noreplace(str(source), str(target))
    assert source.read_text() == "new"
    assert taken != "file" or target.read_text() == "old"


def test_rename_noreplace_takes_a_free_name_between_open_folders(tmp_path: Path, files: SystemFileSystem) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "name").write_text("x")
    with fs.folder_beneath(str(tmp_path), "one") as here, fs.folder_beneath(str(tmp_path), "two") as there:
        files.rename_noreplace("name", "other", source_folder=here, target_folder=there)
    assert not (tmp_path / "one" / "name").exists()
    assert (tmp_path / "two" / "other").read_text() == "x"


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
def test_create_gives_the_mode_that_was_asked_for_to_a_new_file_only(tmp_path: Path) -> None:
    os.close(SystemFileSystem().create(str(tmp_path / "x"), 0o644))
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    with pytest.raises(FileExistsError):
        SystemFileSystem().create(str(tmp_path / "x"), 0o644)


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_has_somebody_at_fault(code: int) -> None:
    fault = fault_of(OSError(code, os.strerror(code)), "/where")
    if isinstance(fault, StorageFault):
        assert fault.kind in {"disk_full", "quota", "read_only", "io_error", "denied", "missing"}
        assert fault.path == "/where"
    else:
        assert code in (errno.ENAMETOOLONG, errno.EFBIG)


def test_the_usual_errors_are_called_by_their_name() -> None:
    kinds = {errno.ENOSPC: "disk_full", errno.EDQUOT: "quota", errno.EROFS: "read_only", errno.ENOENT: "missing"}
    for code, kind in kinds.items():
        with pytest.raises(StorageFault) as caught, storage_faults("/out"):
            raise OSError(code, os.strerror(code))
        assert caught.value.kind == kind
    with pytest.raises(ImageError), storage_faults("/out"):
        raise OSError(errno.ENAMETOOLONG, "too long")


def test_the_world_stops_and_stays_stopped(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    crashing = CrashingFs(after=1)
    crashing.rename(str(tmp_path / "a"), str(tmp_path / "b"))
    for _ in range(3):
        with pytest.raises(WorldStopped):
            crashing.unlink(str(tmp_path / "b"))
    assert (tmp_path / "b").exists()
    assert crashing.taken == 1


@pytest.mark.usefixtures("strict_umask")
@pytest.mark.parametrize("durable", [False, True])
def test_atomic_write_replaces_a_file_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "status.json"
    for data in (b"first", b"the second, longer one"):
        atomic_write(path, data, mode=0o640, durable=durable)
    assert b"the second, longer one" == path.read_bytes()
    assert 0o640 == path.stat().st_mode & 0o777
    assert [path] == list(tmp_path.iterdir())


def test_a_failed_atomic_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "write", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        atomic_write(path, b"new")
    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(0.001, 1e6))
def test_backoff_doubles_up_to_its_bound(failures: int, first: float, maximum: float) -> None:
    wait = backoff(failures, first, maximum)
    assert wait == (0.0 if failures == 0 else min(first * 2.0 ** min(failures - 1, 64), maximum))
    assert wait <= backoff(failures + 1, first, maximum) <= maximum


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        8000000 kB\nMemAvailable:    1234 kB\nHugePages_Total:       0\n")
    assert HostMemory(8_000_000 * 1024, 1234 * 1024) == host_memory(str(meminfo))
    assert HostMemory(0, 0) == host_memory(str(tmp_path / "absent"))
    assert host_memory().total >= host_memory().available > 0


def test_a_read_only_folder_may_be_so_for_the_service_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd says "read-only" of every folder that the unit does not name."""
    error = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    assert "read_only: EROFS: Read-only file system (/data/out)" == str(fault_of(error, "/data/out"))
    monkeypatch.setenv("INVOCATION_ID", "1")
    assert "for this service; if the disk itself is writable, ReadWritePaths= of the unit" in str(fault_of(error, "/"))


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 64),
        ({"": "max 100000", "a": "250000 100000", "a/b": "max 100000"}, 3),
        ({"a": "800000 100000", "a/b": "150000 100000"}, 2),
        ({"a/b": "1000 100000"}, 1),
        ({"a/b": "nonsense"}, 64),
    ],
    ids=["no cgroup v2", "of the parent", "the least counts", "less than a core", "unreadable"],
)
def test_cores_are_those_of_the_affinity_and_the_quotas(tmp_path, monkeypatch, quotas, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    membership, root = tmp_path / "cgroup", tmp_path / "root"
    membership.write_text("1:name=systemd:/x\n0::/a/b\n")
    for group, text in quotas.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / "cpu.max").write_text(text + "\n")
    assert usable_cores(str(membership), str(root)) == cores
    assert usable_cores(str(tmp_path / "missing"), str(root)) == 64
