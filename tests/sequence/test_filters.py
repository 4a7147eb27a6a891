"""Temporal filters of sequences: their state over restarts, what is said of it, and disks that refuse it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from rmbgd.events import RecordedEvents
from rmbgd.fs import FileVersion
from rmbgd.sequence.filters import FilterRules, Filters, Resumed
from rmbgd.store.records import FrameTurn, Job

Bytes = NDArray[np.uint8]


def image(number: int, size: tuple[int, int] = (40, 60)) -> tuple[Bytes, Bytes]:
    rng = np.random.default_rng(number)
    rgb = rng.integers(0, 30, (*size, 3), np.uint8)
    alpha = np.zeros(size, np.uint8)
    rgb[10:30, 10 + number : 30 + number] += 150
    alpha[10:30, 10 + number : 30 + number] = rng.integers(150, 256)
    return rgb, alpha


def job(number: int, folder: str = "film", sequence: str = "take/") -> Job:
    turn = FrameTurn(sequence, number, number + 1, number)
    return Job(number + 1, folder, f"take/{number}.png", "", FileVersion(1, 2, 3, 4), 1, 0.0, 0.0, True, turn=turn)


class Bench:
    """Filters over `path`; `None` keeps no state."""

    def __init__(self, path: Path | None, *, steady: bool = True) -> None:
        self.events = RecordedEvents()
        self.filters = Filters({"film": FilterRules(steady, states=path)}, 3, self.events)

    def apply(self, *numbers: int, size: tuple[int, int] = (40, 60)) -> list[Bytes]:
        return [self.filters.apply(job(number), *image(number, size)) for number in numbers]

    @property
    def started(self) -> list[tuple[object, object]]:
        return [(each["state"], each.get("why")) for each in self.events.named("sequence.started")]


def test_a_filter_that_goes_on_after_a_restart_makes_the_same(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole").apply(*range(6))
    first = Bench(tmp_path / "cut")
    made = first.apply(0, 1, 2)
    second = Bench(tmp_path / "cut")
    assert second.filters.resume("film", "take/").last == 2
    made += second.apply(3, 4, 5)
    assert all(np.array_equal(one, other) for one, other in zip(made, whole, strict=True))
    assert (first.started, second.started) == ([("new", None)], [("resumed", None)])
    assert not np.array_equal(whole[5], image(5)[1]), "nothing was steadied"


def test_frames_that_a_kill_left_unpublished_come_out_the_same(tmp_path: Path) -> None:
    """The state ran ahead of them by as many frames as there are finish threads."""
    made = Bench(tmp_path).apply(*range(6))
    again = Bench(tmp_path).apply(4, 5)
    assert np.array_equal(again[0], made[4])
    assert np.array_equal(again[1], made[5])


def test_a_frame_that_was_not_published_is_undone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    made = bench.apply(0, 1, 2)
    bench.filters.undo(job(2))
    assert np.array_equal(bench.apply(2)[0], made[2])
    bench.filters.undo(job(2))
    assert Bench(tmp_path).filters.resume("film", "take/").last == 1


def test_an_end_is_kept_and_a_number_that_came_before_begins_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.apply(4, 5)
    said = bench.filters.close("film", "take/")
    assert {key: said[key] for key in ("frames", "first", "last")} == {"frames": 2, "first": 4, "last": 5}
    assert bench.filters.close("film", "take/") == {"frames": 0}
    later = Bench(tmp_path)
    found = later.filters.resume("film", "take/")
    assert (found.last, found.ended) == (5, True)
    assert np.array_equal(later.apply(0)[0], image(0)[1])
    assert later.started == [("reset", "its numbers begin again")]


def test_another_size_begins_anew_and_says_so(tmp_path: Path) -> None:
    Bench(tmp_path).apply(0, 1)
    later = Bench(tmp_path)
    assert np.array_equal(later.apply(2, size=(50, 70))[0], image(2, (50, 70))[1])
    assert later.started == [("reset", "another size")]


def test_a_damaged_state_begins_anew_and_says_so(tmp_path: Path) -> None:
    Bench(tmp_path).apply(0, 1)
    for state in tmp_path.iterdir():
        state.write_bytes(b"x" * 9000)
    later = Bench(tmp_path)
    assert later.filters.resume("film", "take/") == Resumed()
    later.apply(2)
    assert later.started == [("reset", "damaged")]


@pytest.mark.parametrize("path", ["kept", None])
def test_frames_that_are_only_ordered_pass_as_they_are(tmp_path: Path, path: str | None) -> None:
    bench = Bench(None if path is None else tmp_path / path, steady=False)
    assert all(np.array_equal(made, image(number)[1]) for number, made in enumerate(bench.apply(0, 1, 2)))
    assert "flicker" not in bench.filters.close("film", "take/")
    if path is not None:
        found = Bench(tmp_path / path, steady=False).filters.resume("film", "take/")
        assert (found.last, found.ended) == (2, True)


def test_a_folder_that_refuses_states_costs_no_frame(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bench, kept = Bench(tmp_path / "file" / "states"), Bench(tmp_path / "kept")
    made, wanted = bench.apply(0, 1, 2), kept.apply(0, 1, 2)
    assert all(np.array_equal(one, other) for one, other in zip(made, wanted, strict=True))
    assert len(bench.events.named("sequence.state_lost")) == 1


def test_frames_come_out_the_same_however_often_their_work_is_cut_short(tmp_path: Path) -> None:
    made = Bench(tmp_path).apply(*range(6))
    for _ in range(3):
        assert np.array_equal(Bench(tmp_path).apply(4)[0], made[4])
    again = Bench(tmp_path)
    assert np.array_equal(again.apply(4, 5)[1], made[5])
    assert np.array_equal(again.apply(6)[0], Bench(tmp_path / "whole").apply(*range(7))[6])


def test_what_comes_before_every_state_was_no_frame_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert not bench.filters.is_before("film", "take/", 0)
    bench.apply(*range(5, 10))
    assert [bench.filters.is_before("film", "take/", number) for number in (6, 7, 9, 10)] == [True, False, False, False]


def test_planes_that_only_the_disk_has_are_read_again(tmp_path: Path) -> None:
    with mock.patch("rmbgd.sequence.filters.IN_MEMORY", 1):
        bench, made = Bench(tmp_path / "few"), {}
        for number in range(5):
            for sequence in ("a/", "b/", "c/"):
                published = bench.filters.apply(job(number, sequence=sequence), *image(number))
                made[sequence, number] = published
        held = [state.memory for state in bench.filters._filters.values()]
    whole = Bench(tmp_path / "whole").apply(*range(5))
    assert all(np.array_equal(published, whole[number]) for (_, number), published in made.items())
    assert [memory is None for memory in held] == [True, True, False]
