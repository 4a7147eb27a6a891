"""A temporary that takes the file of another: moved, given back where nothing is published, copied if it is gone."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rmbgd.errors import StorageFault
from rmbgd.fs import SystemFileSystem
from rmbgd.publish.temporary import Temporary

DATA = bytes(range(256)) * 5000


def temporary(folder: Path, name: str) -> Temporary:
    return Temporary(str(folder), "", name, 0o640, SystemFileSystem())


@pytest.fixture
def film(tmp_path: Path) -> Temporary:
    made = temporary(tmp_path, "film")
    os.write(made.fileno(), DATA)
    return made


def fails_after(take: Callable[[Temporary], None], film: Temporary) -> None:
    take(film)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_its_file_is_moved_and_hashed(tmp_path: Path, film: Temporary) -> None:
    with temporary(tmp_path, "made") as made:
        made.take(film)
        assert sorted(os.listdir(tmp_path)) == ["made"]
        assert made.publish(str(tmp_path / "out"), replace=False)
    film.__exit__(None, None, None)
    assert (made.sha256, made.size) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == DATA
    assert (tmp_path / "out").stat().st_nlink == 1


def test_it_goes_back_where_nothing_is_published_and_is_taken_again(tmp_path: Path, film: Temporary) -> None:
    with pytest.raises(StorageFault), temporary(tmp_path, "made") as made:
        fails_after(made.take, film)
    assert os.listdir(tmp_path) == ["film"]
    with temporary(tmp_path, "made") as made:
        made.take(film)
        assert made.publish(str(tmp_path / "out"), replace=False)
    assert (tmp_path / "out").read_bytes() == DATA
    film.__exit__(None, None, None)
    assert os.listdir(tmp_path) == ["out"]


def test_one_that_was_removed_meanwhile_is_copied(tmp_path: Path, film: Temporary) -> None:
    (tmp_path / "film").unlink()
    with temporary(tmp_path, "made") as made:
        made.take(film)
        assert made.publish(str(tmp_path / "out"), replace=False)
    assert ((tmp_path / "out").read_bytes(), made.sha256) == (DATA, hashlib.sha256(DATA).hexdigest())
    film.__exit__(None, None, None)


def test_without_a_taker_it_is_removed(tmp_path: Path, film: Temporary) -> None:
    film.__exit__(None, None, None)
    film.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []
