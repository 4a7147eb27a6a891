"""File operations: a rename that never replaces, with and without the kernel's help; and whose fault an error is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.clock import backoff
from rmbgd.errors import ImageError, StorageFault
from rmbgd.fs import HostMemory, SystemFileSystem, atomic_write, fault_of, host_memory, storage_faults
from rmbgd.testing.fs import CrashingFs, FailingFs, WorldStopped


class WithoutFlag(SystemFileSystem):
    """A file system whose rename knows no flags."""

    def _rename_flagged(self, *_: object) -> None:
        raise OSError(errno.EINVAL, "no such flag")


class WithoutFlagOrLinks(WithoutFlag):
    """FAT: no flags, no hard links."""

    def _rename_by_link(self, *arguments: object) -> None:
        real, os.link = os.link, refuse
        try:
            super()._rename_by_link(*arguments)
        finally:
            os.link = real


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no links here")


@pytest.mark.parametrize("kind", [SystemFileSystem, WithoutFlag, WithoutFlagOrLinks])
@pytest.mark.parametrize("taken", ["file", "dangling link", "folder"])
def test_rename_noreplace_replaces_nothing(tmp_path: Path, kind: type[SystemFileSystem], taken: str) -> None:
    """Whatever stands at the target stays, and so does the source."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    if taken == "file":
        target.write_text("old")
    elif taken == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")

    with pytest.raises(FileExistsError):
        kind().rename_noreplace(str(source), str(target))
    assert source.read_text() == "new"
    assert taken != "file" or target.read_text() == "old"


@pytest.mark.parametrize("kind", [SystemFileSystem, WithoutFlag, WithoutFlagOrLinks])
def test_rename_noreplace_renames(tmp_path: Path, kind: type[SystemFileSystem]) -> None:
    """A free name is taken, also with both folders given as descriptors."""
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    (first / "name").write_text("x")
    here, there = os.open(first, os.O_RDONLY), os.open(second, os.O_RDONLY)
    try:
        kind().rename_noreplace("name", "other", source_folder=here, target_folder=there)
    finally:
        os.close(here)
        os.close(there)

    assert not (first / "name").exists()
    assert (second / "other").read_text() == "x"


def test_create_gives_the_mode_that_was_asked(tmp_path: Path) -> None:
    """The umask does not change the mode, and an existing name is not opened."""
    before = os.umask(0o077)
    try:
        os.close(SystemFileSystem().create(str(tmp_path / "x"), 0o644))
    finally:
        os.umask(before)

    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    with pytest.raises(FileExistsError):
        SystemFileSystem().create(str(tmp_path / "x"), 0o644)


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_has_somebody_at_fault(code: int) -> None:
    """The table answers for every errno there is, and an unknown one is held, not lost."""
    fault = fault_of(OSError(code, os.strerror(code)), "/where")

    if isinstance(fault, StorageFault):
        assert fault.kind in {"disk_full", "quota", "read_only", "io_error", "denied", "missing"}
        assert fault.path == "/where"
    else:
        assert code in (errno.ENAMETOOLONG, errno.EFBIG)


def test_the_usual_errors_are_called_by_their_name() -> None:
    """A full disk, a quota, a read-only and a missing one are told apart; a long name is the image's."""
    kinds = {errno.ENOSPC: "disk_full", errno.EDQUOT: "quota", errno.EROFS: "read_only", errno.ENOENT: "missing"}
    for code, kind in kinds.items():
        with pytest.raises(StorageFault) as caught, storage_faults("/out"):
            raise OSError(code, os.strerror(code))

        assert caught.value.kind == kind
    with pytest.raises(ImageError), storage_faults("/out"):
        raise OSError(errno.ENAMETOOLONG, "too long")


def test_the_world_stops_and_stays_stopped(tmp_path: Path) -> None:
    """After the given number of steps nothing happens any more, clean-up included."""
    (tmp_path / "a").write_text("x")
    fs = CrashingFs(after=1)
    fs.rename(str(tmp_path / "a"), str(tmp_path / "b"))

    for _ in range(3):
        with pytest.raises(WorldStopped):
            fs.unlink(str(tmp_path / "b"))

    assert (tmp_path / "b").exists()
    assert fs.taken == 1


def test_failing_operations_follow_their_script(tmp_path: Path) -> None:
    """Errors come in the order of the script, 0 lets a call through, and a script that has ended lets all through."""
    fs = FailingFs({"make_folder": [errno.ENOSPC, 0, errno.EROFS]})
    outcomes = []
    for name in "abcd":
        try:
            fs.make_folder(str(tmp_path / name))
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno)

    assert outcomes == [errno.ENOSPC, 0, errno.EROFS, 0]
    assert [name for name, _ in fs.calls] == ["make_folder"] * 4


@pytest.mark.parametrize("durable", [False, True])
def test_atomic_write_replaces_a_file_whole(tmp_path: Path, durable: bool) -> None:
    """Content and mode are the new ones, whatever the umask says, and nothing else is left in the folder."""
    path = tmp_path / "status.json"
    before = os.umask(0o077)
    try:
        for data in (b"first", b"the second, longer one"):
            atomic_write(path, data, mode=0o640, durable=durable)
    finally:
        os.umask(before)

    assert b"the second, longer one" == path.read_bytes()
    assert 0o640 == path.stat().st_mode & 0o777
    assert [path] == list(tmp_path.iterdir())


def test_a_failed_atomic_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the error is the caller's, the old content stands, the temporary is gone."""
    path = tmp_path / "status.json"
    atomic_write(path, b"old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        atomic_write(path, b"new")
    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(0.001, 1e6))
def test_backoff_doubles_up_to_its_bound(failures: int, first: float, maximum: float) -> None:
    """Nothing after no failure, `first` after one, never less than before, never beyond the bound."""
    wait = backoff(failures, first, maximum)

    assert wait == (0.0 if failures == 0 else min(first * 2.0 ** min(failures - 1, 64), maximum))
    assert wait <= backoff(failures + 1, first, maximum) <= maximum


def test_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    """In bytes; 0 where nothing can be read."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        8000000 kB\nMemAvailable:    1234 kB\nHugePages_Total:       0\n")

    assert HostMemory(8_000_000 * 1024, 1234 * 1024) == host_memory(str(meminfo))
    assert HostMemory(0, 0) == host_memory(str(tmp_path / "absent"))
    assert host_memory().total >= host_memory().available > 0
