"""Gates that frames of a sequence pass one after another, whichever thread brings them."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest

from rmbgd.fs import FileVersion
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.sequence.turns import OrderGate, Turns, ordered
from rmbgd.store.records import FrameTurn, Job

PATIENCE = 30.0  # s; nothing depends on it when all is well


def job(ticket: int, *, sequence: str = "take/", previous: int | None = None) -> Job:
    turn = FrameTurn(sequence, ticket, ticket, ticket - 1 if previous is None else previous)
    return Job(ticket, "film", f"{ticket}.png", "", FileVersion(1, 2, 3, 4), 1, 0.0, 0.0, True, turn=turn)


def test_what_is_no_frame_in_order_passes_everywhere() -> None:
    gate = OrderGate()
    still = replace(job(5), turn=None)
    late = replace(job(5), turn=FrameTurn("take/", 5, 0, 0, "late_frame"))
    for each in (still, late):
        assert ordered(each) is None
        assert gate.is_open(each)
        gate.let_pass(each)
    assert not gate.is_open(job(2))


def test_a_gate_opens_for_the_frame_behind_the_one_that_passed() -> None:
    gate = OrderGate()
    assert gate.is_open(job(1))
    assert not gate.is_open(job(2))
    gate.let_pass(job(1))
    assert gate.is_open(job(2))
    assert not gate.is_open(job(9, previous=7))
    assert not gate.is_open(job(2, sequence="other/"))


def test_a_turn_that_is_left_by_an_error_is_kept() -> None:
    gate, first = OrderGate(), job(1)
    with pytest.raises(OSError, match="full"), gate.turn(first, NullHeartbeat()):
        raise OSError("full")
    assert not gate.is_open(job(2))
    with gate.turn(first, NullHeartbeat()):
        pass
    assert gate.is_open(job(2))


def test_threads_pass_in_order() -> None:
    gate, passed = OrderGate(), []

    def go(each: Job) -> None:
        with gate.turn(each, NullHeartbeat()):
            passed.append(each.job_id)

    jobs = [job(number) for number in range(1, 41)]
    random.Random(2).shuffle(jobs)
    threads = [threading.Thread(target=go, args=(each,), daemon=True) for each in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert passed == list(range(1, 41))


def test_a_frame_that_ends_early_lets_the_others_pass_and_wakes_the_finish_stage() -> None:
    turns, woken = Turns(), []
    turns.listen(lambda: woken.append(True))
    turns.ended(job(1), NullHeartbeat())
    assert all(gate.is_open(job(2)) for gate in (turns.memory, turns.alpha, turns.names, turns.deliver))
    assert len(woken) == 1
    turns.alpha_made(job(2))
    turns.ended(job(2), NullHeartbeat())
    assert turns.alpha.is_open(job(3))
    turns.forget("film", "take/")
    assert not turns.alpha.is_open(job(3))
    assert turns.alpha.is_open(job(3, previous=0))
