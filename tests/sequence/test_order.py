"""Which frame goes next: in order, whatever order they come in; a missing one is waited for, and no longer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmbgd.sequence.order import Gap, OrderRules, SequenceOrder

RULES = OrderRules(wait=2.0, window=8, quiet=60.0)


def order(*numbers: int, rules: OrderRules = RULES, wanted: int | None = None) -> SequenceOrder[str]:
    made: SequenceOrder[str] = SequenceOrder(rules, wanted)
    for number in numbers:
        made.add(number, f"f{number}")
    return made


def go(sequence: SequenceOrder[str], now: float) -> list[tuple[int, str]]:
    """Everything that may go now, with its note."""
    gone = []
    while (chosen := sequence.look(now)) is not None:
        sequence.take(chosen, now)
        gone.append((chosen.number, chosen.note))
    return gone


@given(st.permutations(range(8)))
def test_any_order_within_the_window_comes_out_in_order(numbers: list[int]) -> None:
    sequence, gone = order(), []
    for number in numbers:
        sequence.add(number, f"f{number}")
        gone += go(sequence, 0.0)
    assert gone == [(number, "") for number in range(8)]
    assert sequence.missing == 0


@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.floats(0, 3), min_size=40, max_size=40))
def test_every_frame_goes_once_and_those_without_a_note_ascend(numbers: list[int], waits: list[float]) -> None:
    sequence, gone, now = order(), [], 0.0
    for index, (number, wait) in enumerate(zip(numbers, waits, strict=False)):
        sequence.add(number, f"f{index}")
        now += wait
        gone += go(sequence, now)
    for _ in range(60):  # whatever is missing is passed over at last
        gone += go(sequence, now := now + RULES.wait)
    assert sorted(number for number, _ in gone) == sorted(numbers)
    in_order = [number for number, note in gone if not note]
    assert in_order == sorted(set(in_order))
    assert len(sequence) == 0


def test_a_missing_frame_is_waited_for_from_the_moment_at_which_it_is_wanted() -> None:
    sequence = order(0, 1, 3, 4)
    assert go(sequence, 10.0) == [(0, ""), (1, "")]
    assert go(sequence, 11.9) == []
    assert sequence.waits_until() == 12.0
    chosen = sequence.look(12.0)
    assert chosen is not None
    assert (chosen.passes, chosen.gap) == (True, Gap(2, 2, "waited"))
    assert go(sequence, 12.0) == [(3, ""), (4, "")]
    assert (sequence.missing, sequence.waits_until()) == (1, None)


def test_a_missing_frame_that_comes_in_time_is_no_gap() -> None:
    sequence = order(0, 2)
    go(sequence, 0.0)
    sequence.add(1, "f1")
    assert go(sequence, 1.9) == [(1, ""), (2, "")]
    assert sequence.missing == 0


def test_too_many_behind_it_and_it_is_passed_over_at_once() -> None:
    sequence = order(0, *range(5, 12))
    assert go(sequence, 0.0) == [(0, "")]
    sequence.add(12, "f12")
    chosen = sequence.look(0.0)
    assert chosen is not None
    assert chosen.gap == Gap(1, 4, "window")
    assert [number for number, _ in go(sequence, 0.0)] == list(range(5, 13))
    assert sequence.missing == 4


def test_a_new_sequence_begins_with_its_lowest_number_once_it_was_waited_for() -> None:
    sequence = order(7, 6)
    assert go(sequence, 0.0) == []
    sequence.add(5, "f5")
    chosen = sequence.look(2.0)
    assert chosen is not None
    assert (chosen.number, chosen.passes, chosen.gap) == (5, True, None)
    assert [number for number, _ in go(sequence, 2.0)] == [5, 6, 7]


def test_late_and_doubled_frames_go_at_once_and_are_not_confused() -> None:
    sequence = order(0, 2)
    go(sequence, 0.0)
    go(sequence, 2.0)
    for number in (1, 0, 2):
        sequence.add(number, f"again{number}")
    assert go(sequence, 2.0) == [(1, "late_frame"), (0, "doubled_number"), (2, "doubled_number")]


def test_two_files_of_one_number() -> None:
    sequence = order(0, 1)
    sequence.add(1, "f01")
    assert go(sequence, 0.0) == [(0, ""), (1, ""), (1, "doubled_number")]


def test_what_is_discarded_does_not_go() -> None:
    sequence = order(0, 1, 2)
    sequence.discard(1, "f1")
    sequence.discard(9, "f9")  # was never there
    assert go(sequence, 0.0) == [(0, "")]
    sequence.add(1, "f1")
    assert go(sequence, 0.0) == [(1, ""), (2, "")]
    sequence.add(0, "late")
    sequence.discard(0, "late")
    assert go(sequence, 0.0) == []


def test_a_claim_that_failed_is_wanted_again_or_missing() -> None:
    sequence = order(0, 1)
    first = sequence.look(0.0)
    assert first is not None
    sequence.take(first, 0.0)
    sequence.give_back(first)
    sequence.add(0, "f0")
    assert go(sequence, 0.0) == [(0, ""), (1, "")]
    sequence.give_back(first)  # 1 has gone meanwhile
    assert sequence.missing == 1
    sequence.add(0, "f0")
    assert go(sequence, 0.0) == [(0, "late_frame")]


def test_a_sequence_ends_by_quiet_or_by_order_and_not_while_something_waits() -> None:
    sequence = order(0, 2)
    go(sequence, 0.0)
    sequence.ending = "marker"
    assert sequence.end_reason(1.0) == ""
    go(sequence, 2.0)
    assert sequence.end_reason(2.0) == "marker"
    sequence.ending = ""
    assert sequence.end_reason(61.9) == ""
    assert sequence.end_reason(62.0) == "quiet"


def test_it_goes_on_where_it_ended_or_begins_again() -> None:
    sequence = order(3, 4, wanted=3)
    assert go(sequence, 0.0) == [(3, ""), (4, "")]
    sequence.add(0, "f0")
    sequence.add(1, "f1")
    sequence.begin_again()
    assert go(sequence, 0.0) == [(0, ""), (1, "")]


def test_a_look_that_finds_nothing_forgets_that_something_was_missing() -> None:
    sequence = order(0, 2)
    go(sequence, 0.0)
    sequence.discard(2, "f2")
    assert sequence.look(1.0) is None
    sequence.add(2, "f2")
    assert go(sequence, 2.5) == []  # waited for anew
    assert go(sequence, 4.5) == [(2, "")]
