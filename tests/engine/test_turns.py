"""Turns at a device: one user at a time, in the order in which they asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rmbgd.engine.turns import Turn
from rmbgd.heartbeat import NullHeartbeat
from tests.engine.processes import PATIENCE, SpyBeat

USERS = 8


def use(turn: Turn, heartbeat: SpyBeat, body: Callable[[], None]) -> None:
    turn.take(heartbeat)
    try:
        body()
    finally:
        turn.give()


def test_users_have_it_one_after_the_other_as_they_asked() -> None:
    """Whoever asks first is first, however many wait, and nobody has it together with another."""
    turn, order = Turn(), []
    turn.take(NullHeartbeat())
    with ThreadPoolExecutor(USERS) as pool:
        asked = []
        for user in range(USERS):
            heartbeat = SpyBeat()
            asked.append(pool.submit(use, turn, heartbeat, lambda user=user: order.append((user, turn.asking))))
            assert heartbeat.blocked.wait(PATIENCE)  # it stands in the line by then
        turn.give()
        for each in asked:
            each.result(PATIENCE)

    assert order == [(user, USERS - user) for user in range(USERS)]
    assert turn.asking == 0


def test_who_comes_back_at_once_does_not_overtake() -> None:
    """A busy user that gives and takes without pause lets the one who waits in between."""
    turn, order, heartbeat = Turn(), [], SpyBeat()
    turn.take(NullHeartbeat())
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(use, turn, heartbeat, lambda: order.append("other"))
        assert heartbeat.blocked.wait(PATIENCE)
        turn.give()
        turn.take(NullHeartbeat())
        order.append("busy")
        turn.give()
        other.result(PATIENCE)

    assert order == ["other", "busy"]


def test_who_only_tries_never_waits() -> None:
    """False while somebody has it, True when nobody does."""
    turn = Turn()
    turn.take(NullHeartbeat())

    assert not turn.try_take(NullHeartbeat())
    turn.give()
    assert turn.try_take(NullHeartbeat())
    assert turn.asking == 1


def test_what_is_used_beats_for_its_user() -> None:
    """Waiting inside the device is the user's waiting; after his turn nothing is told to him any more."""
    turn, heartbeat = Turn(), SpyBeat()
    turn.take(heartbeat)
    turn.waiting()
    assert heartbeat.blocked.is_set()
    turn.working()
    assert not heartbeat.blocked.is_set()
    turn.give()
    turn.waiting()

    assert not heartbeat.blocked.is_set()
