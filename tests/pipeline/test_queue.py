"""The channel: what travels arrives once and in order, and closing is understood on both sides."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline.queue import NoReceivers, NoSenders, Receiver, Sender, queue
from rmbgd.testing.clock import FakeClock

PATIENCE = 60  # seconds after which a test has hung; nothing waits that long


class SpyHeartbeat(NullHeartbeat):
    def __init__(self) -> None:
        self.told, self.blocked = [], threading.Event()

    def waiting(self) -> None:
        self.told.append("waiting")
        self.blocked.set()

    def working(self) -> None:
        self.told.append("working")


@contextmanager
def holding(items: str, capacity: int = 4, clock: FakeClock | None = None) -> Iterator[tuple[Sender, Receiver]]:
    """Both ends of a queue in which these letters wait."""
    sender, receiver = queue(capacity, "items", clock or FakeClock())
    with sender, receiver:
        for item in items:
            sender.send(item)
        yield sender, receiver


def started(call: Callable[..., object], *arguments: object) -> Future:
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    receivers=st.integers(1, 3),
    capacity=st.integers(1, 5),
    most=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_or_doubled_and_the_end_is_the_last_senders_leaving(counts, receivers, capacity, most):
    first_sender, first_receiver = queue(capacity, "items")
    ends = [(producer, first_sender.clone()) for producer in range(len(counts))]

    def produce(producer: int, sender: Sender) -> None:
        with sender:
            for number in range(counts[producer]):
                sender.send((producer, number))

    def consume(receiver: Receiver) -> list[list]:
        batches = []
        with receiver, suppress(NoSenders):
            while True:
                batches.append(receiver.receive_chosen(lambda items, _now: range(min(most, len(items)))))
        return batches

    consumers = [started(consume, first_receiver.clone()) for _ in range(receivers)]
    producers = [started(produce, producer, end) for producer, end in ends]
    first_sender.close()
    first_receiver.close()
    for future in producers:
        future.result(PATIENCE)
    received = [future.result(PATIENCE) for future in consumers]

    per_consumer = [[item for batch in batches for item in batch] for batches in received]
    everything = sorted(item for items in per_consumer for item in items)
    assert everything == sorted((p, n) for p, count in enumerate(counts) for n in range(count))
    for items in per_consumer:
        for producer in range(len(counts)):
            own = [number for p, number in items if p == producer]
            assert own == sorted(own)
    assert all(1 <= len(batch) <= min(most, capacity) for batches in received for batch in batches)


@given(leave_after=st.integers(0, 5), producers=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_every_sender_learns_that_the_last_receiver_has_left(leave_after, producers):
    sender, receiver = queue(2, "items")

    def produce(end: Sender) -> None:
        with end:
            while True:
                end.send(0)

    futures = [started(produce, sender.clone()) for _ in range(producers)]
    sender.close()
    with receiver:
        for _ in range(leave_after):
            receiver.receive()
    for future in futures:
        with pytest.raises(NoReceivers):
            future.result(PATIENCE)


def test_a_full_channel_blocks_its_sender_and_says_so():
    heartbeat = SpyHeartbeat()
    with holding("", 1) as (sender, receiver), sender.clone(heartbeat) as blocked:
        assert sender.free() == 1
        sender.send("a")
        assert sender.free() == 0
        future = started(blocked.send, "b")
        heartbeat.blocked.wait(PATIENCE)
        assert [receiver.receive(), receiver.receive()] == ["a", "b"]
        future.result(PATIENCE)
        assert (heartbeat.told[0], heartbeat.told[-1]) == ("waiting", "working")


def test_an_urgent_item_goes_into_a_full_channel():
    with holding("ab", capacity=2) as (sender, receiver):
        sender.send("!", urgent=True)
        assert receiver.statistics().depth == 3
        assert [receiver.receive() for _ in range(3)] == ["a", "b", "!"]


def test_an_empty_channel_makes_its_receiver_wait_and_says_so():
    heartbeat = SpyHeartbeat()
    with holding("", 1) as (sender, receiver), receiver.clone(heartbeat) as blocked:
        future = started(blocked.receive)
        heartbeat.blocked.wait(PATIENCE)
        sender.send("a")
        assert future.result(PATIENCE) == "a"
        assert heartbeat.told[-1] == "working"


def test_the_policy_chooses_which_waiting_items_go():
    with holding("abcde", 8) as (_, receiver):
        assert receiver.receive_chosen(lambda _items, _now: [3, 1]) == ["d", "b"]
        assert [receiver.receive() for _ in range(3)] == ["a", "c", "e"]


def test_the_policy_is_asked_again_when_something_arrives():
    heartbeat = SpyHeartbeat()
    asked: list[tuple[list, float]] = []

    def both(items, now):
        asked.append((list(items), now))
        return [0, 1] if len(items) == 2 else now + PATIENCE

    with holding("a", 8, FakeClock(start=100.0)) as (sender, receiver), receiver.clone(heartbeat) as mine:
        future = started(mine.receive_chosen, both)
        heartbeat.blocked.wait(PATIENCE)
        sender.send("b")
        assert future.result(PATIENCE) == ["a", "b"]
        assert asked == [(["a"], 100.0), (["a", "b"], 100.0)]


def test_a_policy_that_waits_is_woken_when_its_company_leaves():
    heartbeat = SpyHeartbeat()
    with holding("a") as (sender, receiver), receiver.clone(heartbeat) as mine:
        future = started(mine.receive_chosen, lambda _items, now: [0] if now == math.inf else now + 100 * PATIENCE)
        heartbeat.blocked.wait(PATIENCE)
        sender.close()
        assert future.result(PATIENCE) == ["a"]


@pytest.mark.parametrize("choice", [[], [0, 0], [-1], 0.0])
def test_a_policy_that_answers_nonsense_is_a_bug_and_loses_nothing(choice):
    with holding("a") as (_, receiver):
        with pytest.raises(RuntimeError, match="bug"):
            receiver.receive_chosen(lambda _items, _now: choice)
        assert receiver.receive() == "a"


def test_statistics_count_depth_totals_and_waits_that_still_go_on():
    clock, heartbeat = FakeClock(), SpyHeartbeat()
    with holding("", 3, clock) as (sender, receiver), receiver.clone(heartbeat) as mine:
        future = started(mine.receive)
        heartbeat.blocked.wait(PATIENCE)
        with sender._shared.lock:  # the receiver has let go of it: it is waiting
            clock.advance(5.0)
        during = receiver.statistics()
        sender.send("a")
        future.result(PATIENCE)
        sender.send("b")
        clock.advance(2.0)
        after = sender.statistics()
        assert (during.depth, during.total, during.receive_waited) == (0, 0, 5.0)
        assert (after.name, after.depth, after.capacity, after.total) == ("items", 1, 3, 2)
        assert (after.send_waited, after.receive_waited) == (0.0, 5.0)


def test_an_end_that_was_never_closed_is_told():
    sender, receiver = queue(1, "items")
    receiver.close()
    forgotten = [sender]
    del sender
    with pytest.warns(ResourceWarning, match="Sender of queue .items. was never closed"):
        forgotten.clear()


def test_a_closed_end_refuses_and_closing_twice_counts_once():
    sender, receiver = queue(1, "items")
    with receiver, sender.clone() as other:
        sender.close()
        sender.close()
        other.send("a")
        assert receiver.receive() == "a"
        with pytest.raises(ValueError, match="closed"):
            sender.send("b")
        with pytest.raises(ValueError, match="closed"):
            sender.clone()


def test_a_channel_needs_a_place():
    with pytest.raises(ValueError, match="capacity 0"):
        queue(0, "items")


class Leaving:
    def __init__(self) -> None:
        self.takes, self.asked = False, threading.Event()

    def __call__(self, _items, _now):
        self.asked.set()
        return (0,) if self.takes else None


def test_what_one_receiver_leaves_another_takes():
    with holding("") as (sender, receiver), receiver.clone() as choosy, receiver.clone() as other:
        left = started(choosy.receive_chosen, Leaving())
        for number in range(50):
            taken = started(other.receive)
            sender.send(number)
            assert taken.result(PATIENCE) == number
        assert not left.done()
        sender.close()
        with pytest.raises(NoSenders):
            left.result(PATIENCE)


def test_who_left_items_to_others_looks_again_when_told():
    leaving = Leaving()
    with holding("a") as (_, receiver):
        left = started(receiver.receive_chosen, leaving)
        assert leaving.asked.wait(PATIENCE)
        leaving.takes = True
        receiver.look_again()
        assert left.result(PATIENCE) == ["a"]


def test_who_left_the_last_items_to_others_learns_that_nothing_comes_any_more():
    leaving = Leaving()
    with holding("a") as (sender, receiver), receiver.clone() as other:
        sender.close()
        left = started(receiver.receive_chosen, leaving)
        assert leaving.asked.wait(PATIENCE)
        assert other.receive() == "a"
        with pytest.raises(NoSenders):
            left.result(PATIENCE)


def test_what_is_put_back_is_at_the_head_and_counts_as_no_progress():
    with holding("ab", 2) as (sender, receiver):
        batch = receiver.take(lambda items, _now: range(len(items)))
        sender.send("c")
        sender.send("d")
        batch.put_back(["A", "B"])
        before = receiver.statistics()
        assert (before.depth, before.total, before.finished) == (4, 4, 0)
        assert [receiver.receive() for _ in range(4)] == ["A", "B", "c", "d"]
        assert receiver.statistics().finished == 4


def test_a_batch_that_is_never_ended_goes_back_as_it_was():
    with holding("a") as (_, receiver):
        with pytest.raises(KeyError), receiver.take(lambda _items, _now: (0,)):
            raise KeyError
        assert receiver.receive() == "a"


def test_a_batch_is_ended_once():
    with holding("a") as (_, receiver):
        batch = receiver.take(lambda _items, _now: (0,))
        with pytest.raises(ValueError, match="0 items put back of 1"):
            batch.put_back([])
        batch.finish()
        with pytest.raises(RuntimeError, match="ended twice"):
            batch.put_back(["a"])


def test_no_more_is_said_only_when_no_batch_can_come_back():
    spy = SpyHeartbeat()
    with holding("a") as (sender, receiver), receiver.clone(spy) as other:
        sender.close()
        batch = receiver.take(lambda _items, _now: (0,))
        received = started(list, other)
        assert spy.blocked.wait(PATIENCE)
        batch.put_back(["again"])
        assert received.result(PATIENCE) == ["again"]
        with pytest.raises(NoSenders):
            receiver.receive()
