"""The retry policy: what a fault makes of an image's history, and for what reason that history ends it."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine import retry
from rmbgd.engine.retry import ALONE, GROW_AFTER, KILLS, NEW, RESTARTS, BadEnd, History, MemoryLimit, verdict
from rmbgd.errors import Reason

POISON, EXHAUSTS_MEMORY = Reason.POISON, Reason.EXHAUSTS_MEMORY
AFTER = {"f": retry.after_fault, "m": retry.after_shortage, "k": retry.after_kill, "i": retry.after_interruption}


def history_of(events: str, device: str = "cpu") -> History:
    """What these events make of one image. In capitals the image is alone: F, a fault; M, shortage of memory; K, the
    process was killed from outside; I, interrupted. Of other batches there: x failed, p was computed. w: a minute."""
    history, numbers, now, passed, failed = NEW, count(1), 0.0, 0, 0
    for event in events:
        number, now = next(numbers), now + 60.0 * (event == "w")
        passed = number if event == "p" else passed
        if event.lower() in AFTER:
            end = BadEnd(device, f"{event}{number}", event.isupper(), now, number, passed, failed)
            history = AFTER[event.lower()](history, end)
        failed = number if event.lower() in "fmix" else failed
    return history


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ("fF", None),
        ("fFF", POISON),
        ("FF", None),
        ("FFF", POISON),
        ("fpFpF", POISON),  # others pass: the image is to blame all the more
        ("FMM", POISON),  # alone, nothing is left to halve
        ("mFF", None),
        ("FIF", None),
        ("fFxF", None),  # another one failed too: the device may be sick
        ("fFxFF", None),
        ("fFxFFF", POISON),
        ("xxxfFF", POISON),  # that was before
        ("FxFxFxFxFxF", POISON),  # where everything fails, an image ends
        ("FxFxFxFxF", None),
        ("KKKKKKKK", None),  # a burst, and nothing says whom it is about
        ("kpkpkpk", None),
        ("KxKxKxK", None),
        ("KpKp", None),
        ("KpKpK", EXHAUSTS_MEMORY),
        ("KKpKKpKK", EXHAUSTS_MEMORY),
        ("KwKwK", EXHAUSTS_MEMORY),  # nothing else to compute
        ("KpKwK", EXHAUSTS_MEMORY),
        ("fFKF", POISON),  # being killed neither counts nor disturbs
        ("fKpKpF", None),
    ],
)
def test_what_ends_an_image(events, reason):
    """With three tries, where all happens on one device."""
    assert verdict(history_of(events), tries=3, fallback=None) == reason


def test_only_faults_alone_on_the_fallback_count_where_there_is_one():
    history = history_of("FFF", "cuda:0")
    assert verdict(history, tries=3, fallback="cpu") is None
    for number, reason in ((101, None), (102, POISON)):
        history = retry.after_fault(history, BadEnd("cpu", "", True, 0.0, number))
        assert verdict(history, tries=3, fallback="cpu") == reason


@given(events=st.text("fFmMkKixpw", max_size=40), tries=st.integers(2, 5))
def test_history_counts_what_happened_and_ends_every_image(events, tries):
    """An image that failed alone lines up behind what came before, and its rejection says what happened last."""
    history, own = history_of(events), [event for event in events if event.lower() in AFTER]
    faults = sum(event in "fFM" for event in own)
    assert history.runs == len(own)
    assert history.isolated == any(event in "fFMkK" for event in own)
    assert history.faults <= faults
    assert history.kills <= own.count("K")
    assert history.restarts <= RESTARTS
    alone = [f"{event}{place}" for place, event in enumerate(events, 1) if event in "FMK"]
    assert history.detail == (alone[-1] if alone else "")
    assert (history.behind >= 0) == bool(alone)
    reason = verdict(history, tries=tries, fallback=None)
    if reason is POISON:
        assert faults >= tries
        assert own.count("F") + own.count("M") >= ALONE
    elif reason is EXHAUSTS_MEMORY:
        assert own.count("K") >= KILLS
    else:
        assert own.count("F") + own.count("M") < (RESTARTS + 1) * tries


def test_memory_limit_is_halved_by_a_shortage_and_grows_again():
    """Down to one; after GROW_AFTER batches twice as much is tried, and so on."""
    limit = MemoryLimit()

    def after(batches: int) -> int:
        for _ in range(batches):
            limit.passed()
        return limit.of(16)

    assert after(GROW_AFTER) == 16
    limit.halve(16)
    assert after(0) == 8
    limit.halve(1)
    assert [after(n) for n in (0, GROW_AFTER - 1, 1, GROW_AFTER - 1, 1)] == [1, 1, 2, 2, 4]
    assert limit.of(3) == 3
