"""The state of a filter on disk: the newest whole slot counts, whatever is torn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rmbgd.sequence.state_file import PAGE, Saved, StateFile


def plane(number: int, shape: tuple[int, int] = (40, 50)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def saved(number: int, *, shape: tuple[int, int] = (40, 50), ended: bool = False) -> Saved:
    return Saved(number, {"guide": plane(number, (9, 11)), "alpha": plane(-number % 97, shape)}, ended)


def assert_same(found: Saved, wanted: Saved) -> None:
    assert (found.number, found.ended, list(found.arrays)) == (wanted.number, wanted.ended, list(wanted.arrays))
    assert all(np.array_equal(found.arrays[name], wanted.arrays[name]) for name in wanted.arrays)


def filled(path: Path, numbers: range, slots: int = 3) -> StateFile:
    file = StateFile(path, slots)
    assert file.load() == ([], "")
    for number in numbers:
        file.save(saved(number))
    return StateFile(path, slots)


def test_the_last_ones_are_read_back_newest_last(tmp_path: Path) -> None:
    found, problem = filled(tmp_path / "state", range(10)).load()
    assert problem == ""
    assert [each.number for each in found] == [7, 8, 9]
    for each in found:
        assert_same(each, saved(each.number))


def test_its_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "state"
    filled(path, range(4))
    size = path.stat().st_size
    file = StateFile(path, 3)
    file.load()
    for number in range(4, 200):
        file.save(saved(number))
    assert path.stat().st_size == size == 3 * 2 * PAGE


def test_it_goes_on_in_the_oldest_slot_after_a_restart(tmp_path: Path) -> None:
    file = filled(tmp_path / "state", range(5))
    file.load()
    file.save(saved(5, ended=True))
    found, _ = StateFile(tmp_path / "state", 3).load()
    assert [(each.number, each.ended) for each in found] == [(3, False), (4, False), (5, True)]


@pytest.mark.parametrize("cut", [1, 30, 200, PAGE + 1, 2 * PAGE - 1])
def test_a_torn_slot_does_not_count(tmp_path: Path, cut: int) -> None:
    """The newest slot was written over the oldest one up to `cut` bytes when the process was killed."""
    path = tmp_path / "state"
    filled(path, range(3))  # numbers 0, 1, 2, in slots 1, 2, 0
    before = path.read_bytes()
    file = StateFile(path, 3)
    file.load()
    file.save(saved(3))
    after = path.read_bytes()
    where = 2 * PAGE  # slot 1
    path.write_bytes(before[:where] + after[where : where + cut] + before[where + cut :])
    found, problem = StateFile(path, 3).load()
    numbers = [each.number for each in found]
    whole = cut >= len(after) or after[where : where + cut] + before[where + cut :] == after[where:]
    assert problem == ""
    assert numbers == ([1, 2, 3] if whole else [1, 2]) or numbers == [0, 1, 2]
    for each in found:
        assert_same(each, saved(each.number))


def test_other_sizes_begin_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = filled(path, range(4))
    file.load()
    file.save(saved(4, shape=(200, 300)))
    found, problem = StateFile(path, 3).load()
    assert ([each.number for each in found], problem) == ([4], "")
    assert_same(found[0], saved(4, shape=(200, 300)))


@pytest.mark.parametrize("data", [b"", b"\xff" * 5000, b"rmbgd-sequence 1", b"rmbgd-sequence 1" + b"\0" * 5000])
def test_a_damaged_file_is_a_problem_and_no_state(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state").write_bytes(data)
    assert StateFile(tmp_path / "state", 3).load() == ([], "damaged")


def test_hostile_facts_read_nothing_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    filled(path, range(3))
    data = path.read_bytes().replace(b'"guide":[9,11]', b'"guide":[9,1e9')
    path.write_bytes(data.replace(b'"alpha":[40,50]', b'"alpha":[-1,50]'))
    assert StateFile(path, 3).load() == ([], "damaged")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        StateFile(tmp_path / "state", 3).save(saved(1))
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
