"""File operations: a rename that never replaces, with and without the kernel's help; and whose fault an error is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rmbgd.errors import ImageError, StorageFault
from rmbgd.fs import SystemFs, fault_of, storage_faults
from rmbgd.testing.fs import CrashingFs, FailingFs, WorldStopped


class WithoutFlag(SystemFs):
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


@pytest.mark.parametrize("kind", [SystemFs, WithoutFlag, WithoutFlagOrLinks])
@pytest.mark.parametrize("taken", ["file", "dangling link", "folder"])
def test_rename_noreplace_replaces_nothing(tmp_path: Path, kind: type[SystemFs], taken: str) -> None:
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


@pytest.mark.parametrize("kind", [SystemFs, WithoutFlag, WithoutFlagOrLinks])
def test_rename_noreplace_renames(tmp_path: Path, kind: type[SystemFs]) -> None:
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
        os.close(SystemFs().create(str(tmp_path / "x"), 0o644))
    finally:
        os.umask(before)

    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    with pytest.raises(FileExistsError):
        SystemFs().create(str(tmp_path / "x"), 0o644)


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
    """A full disk, a quota, a read-only and a missing one are told apart; a long name is the picture's."""
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
