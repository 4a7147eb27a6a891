"""The readiness policy: never complete before its time, always answered in the end, however events are split."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.config.load import IntakeSettings
from rmbgd.fs import FileVersion
from rmbgd.imaging.completeness import Head, Tail
from rmbgd.intake import readiness
from rmbgd.intake.readiness import ArrivingFile, Decision, Readiness, ReadinessFacts, Writer

RULES = IntakeSettings(quiet_closed=0.5, quiet_unknown=2, quiet_remote=5, incomplete_timeout=900, stuck_upload=3600)
GOOD = ReadinessFacts(Writer.NONE, True, Tail.COMPLETE)
HOLE = ReadinessFacts(Writer.NONE, False, Tail.COMPLETE)


def version(size: int = 10, ctime: int = 3) -> FileVersion:
    return FileVersion(1, size, 2, ctime)


def arrive(*, size: int = 10, announced: bool = True, remote: bool = False, at: float = 0.0) -> ArrivingFile:
    return readiness.appeared(version(size), at, announced=announced, remote=remote, rules=RULES)


def wait_for(arrival: ArrivingFile, facts: ReadinessFacts, limit: float = 1e6) -> tuple[float, Decision]:
    """Look whenever the policy says so, until it does not wait any more."""
    while True:
        now = arrival.look_at
        assert now < limit
        decision = readiness.judge(arrival, facts, now, RULES)
        if decision.readiness is not Readiness.WAIT:
            return now, decision
        assert arrival.look_at > now


def test_the_quiet_time_is_shortest_after_a_close_and_longest_where_writers_hide() -> None:
    """Without an event uploaders may pause for a second; network file systems, and some others, hide their writers."""
    assert wait_for(arrive(), GOOD) == (0.5, Decision(Readiness.READY))
    assert wait_for(arrive(announced=False), GOOD)[0] == 2.0
    assert wait_for(arrive(remote=True), GOOD)[0] == 5.0
    assert wait_for(arrive(), ReadinessFacts(Writer.UNSEEN, True, Tail.COMPLETE))[0] == 5.0


def test_every_change_begins_the_quiet_anew() -> None:
    arrival = arrive()
    for at, changed in ((0.4, (2, 10, 2, 3)), (0.5, (2, 11, 2, 3)), (0.6, (2, 11, 9, 3)), (0.7, (2, 11, 9, 8))):
        assert readiness.observed(arrival, FileVersion(*changed), at, announced=True, rules=RULES)
    assert not readiness.observed(arrival, FileVersion(2, 11, 9, 8), 0.8, announced=True, rules=RULES)
    assert wait_for(arrival, GOOD)[0] == 0.7 + 0.5


def test_hearing_of_a_close_shortens_the_wait() -> None:
    arrival = arrive(announced=False)
    assert not readiness.observed(arrival, version(), 0.8, announced=True, rules=RULES)
    assert wait_for(arrival, GOOD)[0] == 0.8


def test_an_open_writer_holds_a_file_however_long() -> None:
    """Never ready, never refused; reported once after an hour; looked at less and less often."""
    arrival = arrive()
    reported, looks = [], []
    while arrival.look_at < 20_000:
        now = arrival.look_at
        decision = readiness.judge(arrival, ReadinessFacts(Writer.OPEN, True, Tail.UNKNOWN), now, RULES)
        assert (decision.readiness, decision.gate, decision.report_incomplete) == (Readiness.WAIT, "writer", False)
        reported += [now] * decision.report_stuck
        looks.append(arrival.look_at - now)
    assert looks[:7] == [0.5, 1, 2, 4, 8, 16, 30]
    assert max(looks) == readiness.DELAY_MAXIMUM
    assert len(reported) == 1
    assert 3600 <= reported[0] <= 3600 + readiness.DELAY_MAXIMUM


def test_a_companion_holds_a_file_however_long_and_is_told_of() -> None:
    arrival, reported = arrive(), []
    facts = ReadinessFacts(Writer.NONE, False, Tail.MISSING, ".aria2")
    while arrival.look_at < 20_000:
        decision = readiness.judge(arrival, facts, arrival.look_at, RULES)
        assert (decision.readiness, decision.gate) == (Readiness.WAIT, "companion")
        reported += [decision.report_incomplete, decision.report_stuck]
    assert sum(reported) == 2
    assert wait_for(arrival, GOOD)[1].readiness is Readiness.READY


def test_a_file_that_changes_without_growing_is_being_filled() -> None:
    """A copy that keeps its time stamp sets it back; a file that replaces it begins anew."""
    for changed, refilled in (
        ((1, 10, 9, 9), True),
        ((1, 11, 9, 9), False),
        ((1, 10, 1, 9), False),
        ((7, 10, 9, 9), False),
    ):
        arrival = arrive()
        assert readiness.observed(arrival, FileVersion(*changed), 1.0, announced=False, rules=RULES)
        assert arrival.refilled is refilled
    arrival.refilled = True
    readiness.observed(arrival, FileVersion(7, 12, 10, 10), 2.0, announced=False, rules=RULES)
    assert arrival.refilled
    readiness.observed(arrival, FileVersion(8, 12, 11, 11), 3.0, announced=False, rules=RULES)
    assert not arrival.refilled


def test_a_file_that_never_stops_changing_is_reported_once() -> None:
    arrival, reported = arrive(), []
    for second in range(5000):
        readiness.observed(arrival, version(size=second), float(second), announced=False, rules=RULES)
        reported += [second] * readiness.still_stuck(arrival, float(second), RULES)
    assert reported == [3600]


def test_a_missing_end_is_waited_for_then_refused() -> None:
    arrival = arrive()
    facts = ReadinessFacts(Writer.NONE, True, Tail.MISSING)
    assert readiness.judge(arrival, facts, 0.5, RULES).report_incomplete
    assert not readiness.judge(arrival, facts, 1.0, RULES).report_incomplete
    assert wait_for(arrival, facts) == (900.0, Decision(Readiness.REFUSE, "tail"))
    assert wait_for(arrive(size=0), GOOD) == (900.0, Decision(Readiness.REFUSE, "empty"))


def test_what_only_a_decoder_can_judge_goes_to_the_decoder_in_the_end() -> None:
    """A hole, a doubtful tail, a decoder's own complaint: after the patience the next try is the last."""
    cut_off = arrive()
    cut_off.cut_off = True
    for arrival, facts, gate in (
        (arrive(), HOLE, "hole"),
        (arrive(), ReadinessFacts(Writer.NONE, True, Tail.DOUBTFUL), "tail"),
        (cut_off, GOOD, "decode"),
    ):
        assert wait_for(arrival, facts) == (900.0, Decision(Readiness.FINAL, gate))


@pytest.mark.parametrize("announced", [True, False])
def test_what_begins_like_no_image_is_not_waited_for(announced: bool) -> None:
    """Its holes and its end do not matter; its writer, its companion and its quiet time do."""
    note = ReadinessFacts(Writer.NONE, False, Tail.UNKNOWN, head=Head.FOREIGN)
    arrival = arrive(announced=announced)
    quiet = RULES.quiet_closed if announced else RULES.quiet_unknown
    assert wait_for(arrival, note) == (quiet, Decision(Readiness.FINAL))
    for held, gate in ((replace(note, writer=Writer.OPEN), "writer"), (replace(note, companion=".part"), "companion")):
        assert readiness.judge(arrival, held, 100.0, RULES).gate == gate == arrival.gate


def test_zeros_at_the_beginning_are_space_that_is_still_to_be_filled() -> None:
    blank = ReadinessFacts(Writer.NONE, True, Tail.UNKNOWN, head=Head.BLANK)
    assert wait_for(arrive(), blank) == (900.0, Decision(Readiness.FINAL, "head"))


def test_patience_that_has_ended_is_not_begun_again() -> None:
    arrival = arrive()
    arrival.final = True
    assert wait_for(arrival, HOLE) == (0.5, Decision(Readiness.FINAL, "hole"))
    assert wait_for(arrival, GOOD)[1].readiness is Readiness.FINAL


def test_new_bytes_void_a_decoders_complaint() -> None:
    arrival = arrive()
    arrival.cut_off = True
    readiness.judge(arrival, GOOD, 0.5, RULES)
    readiness.observed(arrival, version(size=20), 20.0, announced=True, rules=RULES)
    assert wait_for(arrival, GOOD) == (20.5, Decision(Readiness.READY))


TIMES = st.lists(st.floats(0.0, 30.0, allow_nan=False), max_size=12)
FACTS = st.builds(
    ReadinessFacts,
    *(st.sampled_from(Writer), st.booleans(), st.sampled_from(Tail), st.sampled_from(("", ".part"))),
    st.sampled_from(Head),
)


@given(TIMES, st.booleans(), st.booleans(), FACTS)
def test_never_before_its_quiet_time(gaps: list[float], announced: bool, remote: bool, facts: ReadinessFacts) -> None:
    arrival, heard = arrive(announced=announced, remote=remote), announced
    now = changed = 0.0
    for number, gap in enumerate(gaps):
        now += gap
        decision = readiness.judge(arrival, facts, now, RULES)
        quiet = 5.0 if remote or facts.writer is Writer.UNSEEN else 0.5 if heard else 2.0
        assert decision.readiness is Readiness.WAIT or now >= changed + quiet
        if number % 2:
            readiness.observed(arrival, version(size=number), now, announced=announced, rules=RULES)
            changed, heard = now, announced


@given(TIMES, st.booleans(), FACTS.filter(lambda facts: facts.writer is not Writer.OPEN and not facts.companion))
def test_always_in_the_end(gaps: list[float], announced: bool, facts: ReadinessFacts) -> None:
    arrival, now = arrive(announced=announced), 0.0
    for number, gap in enumerate(gaps):
        now += gap
        if number % 3 == 0:
            readiness.put_off(arrival, now)
        elif number % 3 == 1:
            readiness.judge(arrival, facts, now, RULES)
        else:
            readiness.observed(arrival, version(size=number), now, announced=announced, rules=RULES)
    when, decision = wait_for(arrival, facts)
    assert decision.readiness is not Readiness.WAIT
    assert when <= arrival.changed_at + RULES.incomplete_timeout + readiness.DELAY_MAXIMUM


@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=8), st.booleans())
def test_independent_of_how_events_are_split(gaps: list[float], announced: bool) -> None:
    often, once = arrive(announced=announced), arrive(announced=announced)
    for now in itertools.accumulate(gaps):
        readiness.observed(often, version(), now, announced=False, rules=RULES)
    assert wait_for(often, GOOD) == wait_for(once, GOOD)
