"""Whether something is mounted at a folder, with real mounts: disks, binds from the same disk, binds onto itself."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rmbgd import mounts
from rmbgd.mounts import Mount, file_system, is_mounted, is_there
from tests.support.mounts import mounted, run


def bound(source: Path, where: Path) -> AbstractContextManager[None]:
    return mounted(where, "none", "bind", source)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """With a space and an accent in its name, which mountinfo writes as it likes."""
    path = tmp_path / "drop foldér"
    path.mkdir()
    return path


def test_an_ordinary_directory_is_no_mount_and_the_root_is_one(place: Path) -> None:
    assert [is_mounted(str(path)) for path in (place, place / "missing", "/")] == [False, False, True]
    assert is_there(str(place), require_mount=False)
    assert not is_there(str(place), require_mount=True)


@pytest.mark.integration
def test_a_file_system_is_a_mount_while_it_is_there(place: Path, tmp_path: Path) -> None:
    """Its own directories are none, and a link to it is followed."""
    (tmp_path / "link").symlink_to(place)
    with mounted(place, "tmpfs", "size=1m"):
        (place / "inner").mkdir()
        assert is_mounted(str(place))
        assert is_mounted(str(tmp_path / "link"))
        assert not is_mounted(str(place / "inner"))
        assert file_system(str(place / "inner")) == "tmpfs"
        assert (str(place), "tmpfs") in [(mount.point, mount.kind) for mount in mounts.read_mounts()]
    assert not is_mounted(str(place))
    assert str(place) not in [mount.point for mount in mounts.read_mounts()]


@pytest.mark.integration
def test_a_directory_bound_from_the_same_disk_is_a_mount(place: Path, tmp_path: Path) -> None:
    """Its device number is that of the folder around it: os.path.ismount cannot see it."""
    (tmp_path / "store").mkdir()
    with bound(tmp_path / "store", place):
        assert not os.path.ismount(place)
        assert is_mounted(str(place))
        assert is_there(str(place), require_mount=True)
    assert not is_mounted(str(place))


@pytest.mark.integration
def test_a_directory_bound_onto_itself_is_none(place: Path) -> None:
    """As systemd does with the paths that a service may write: nothing has been plugged in."""
    with bound(place, place):
        assert not is_mounted(str(place))
        with bound(place, place):
            assert not is_mounted(str(place))


@pytest.mark.integration
def test_a_disk_bound_onto_itself_still_is_one(place: Path, tmp_path: Path) -> None:
    with mounted(place, "tmpfs", "size=1m"):
        run("mount", "--bind", place, place)
        assert is_mounted(str(place))
    (tmp_path / "store").mkdir()
    with bound(tmp_path / "store", place), bound(place, place):
        assert is_mounted(str(place))


def test_a_part_of_a_file_system_is_known_by_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sub-volumes and binds show a root of their own; what lies at the same place below its parent is no mount."""
    table = [
        Mount(1, 0, "0:30", "/@", "/", "btrfs"),
        Mount(2, 1, "0:30", "/@data", "/data", "btrfs"),
        Mount(3, 1, "0:30", "/@/srv/in", "/srv/in", "btrfs"),
        Mount(4, 2, "0:30", "/@data/in", "/data/in", "btrfs"),
        Mount(5, 2, "8:1", "/", "/data/stick", "vfat"),
    ]
    monkeypatch.setattr(mounts, "read_mounts", lambda: table)
    found = {mount.point: is_mounted(mount.point) for mount in table}
    assert found == {"/": True, "/data": True, "/srv/in": False, "/data/in": False, "/data/stick": True}
