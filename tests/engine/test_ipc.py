"""Messages between parent and child: what is said arrives, and what is no message is refused."""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine import ipc
from rmbgd.engine.types import Answer, BatchReport, EngineDescription, Limit, MatteReport, OutputPlane, Region, Work

shares = st.floats(0, 1)
sides = st.integers(1, 65535)
regions = st.builds(Region, st.integers(0, 1 << 40), sides, sides, st.booleans(), st.sampled_from(OutputPlane))
works = st.builds(Work, st.integers(0, 1 << 60), regions, st.text(), st.booleans(), st.booleans(), st.booleans())
mattes = st.builds(MatteReport, st.integers(0), shares, shares, shares, shares, st.none() | shares)
answers = st.builds(Answer, mattes, st.text(), st.text(), st.integers(1, 16), st.integers(1, 9))
NO_REPORTS = [{}, {"answers": 1}, {"answers": [[]]}, {"answers": [], "milliseconds": 1}]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def journey(message: dict) -> dict:
    return json.loads(json.dumps(message))


@given(works)
def test_work_survives_the_journey(work):
    assert ipc.to_work(journey(asdict(work))) == work


@given(
    st.lists(answers, max_size=16),
    st.dictionaries(st.text(), st.floats(0, 1e6)),
    st.lists(st.integers(0, 99)),
    st.text(),
)
def test_a_report_survives_the_journey(entries, milliseconds, left_out, detail):
    report = BatchReport(list(entries), milliseconds, [Limit("graphs", detail)], left_out)
    assert ipc.to_report(journey(asdict(report))) == report


@given(st.dictionaries(st.integers(1, 16), st.floats(0, 100)))
def test_a_description_survives_the_journey(seconds):
    """JSON knows no numbers as keys."""
    models, limits = {"u2netp": {"sha256": "ab"}}, [Limit("pinned", "none")]
    description = EngineDescription("cpu", models, (1, 2, 4), seconds, {"threads": 2}, limits)
    assert ipc.to_description(journey(ipc.from_description(description))) == description


def report_with(coverage: object, disagreement: object = None) -> dict:
    matte = {"image_id": 1, "coverage": coverage, "peak": 1.0, "solid": 0.5, "soft": 0.1, "disagreement": disagreement}
    entry = {"matte": matte, "device": "cpu", "model": "m", "batch": 1, "tries": 1}
    return {"answers": [entry], "milliseconds": {}, "limits": [], "not_finite": []}


NO_SHARES = [math.nan, math.inf, 1.5, -0.5, "0.5"]


@pytest.mark.parametrize(
    "message",
    [*map(report_with, [*NO_SHARES, None]), *(report_with(0.5, share) for share in NO_SHARES), *NO_REPORTS],
)
def test_a_report_without_sense_is_garbled(message):
    """Alpha statistics are finite numbers from 0 to 1, and nothing is missing or of another type."""
    assert ipc.to_report(report_with(0.5)).answers[0].matte.coverage == 0.5
    with pytest.raises(ipc.GarbledError):
        ipc.to_report(message)


def test_messages_keep_their_borders(ends):
    messages = [{"n": 1}, {"n": 2, "text": "ü\ud83d"}]
    for message in messages:
        ipc.send(ends[0], message)
    assert [ipc.receive(ends[1]) for _ in messages] == messages


def test_half_a_message_ends_at_the_deadline_or_with_the_other_side(ends):
    one, other = ends
    one.sendall(struct.pack("!I", 10) + b"{")
    with pytest.raises(TimeoutError):
        ipc.receive(other, 0.01)
    one.sendall(struct.pack("!I", 10) + b"{")
    one.close()
    with pytest.raises(EOFError):
        ipc.receive(other, 1.0)


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"null"])
def test_what_is_no_message_is_garbled(ends, body):
    """A length beyond the maximum is refused before anything more is read."""
    one, other = ends
    one.sendall(struct.pack("!I", len(body)) + body + b"HTTP/1.1 400 Bad Request")
    with pytest.raises(ipc.GarbledError):
        ipc.receive(other)
    with pytest.raises(ipc.GarbledError, match="bytes"):
        ipc.receive(other)


def test_a_standstill_of_the_whole_process_does_not_count(ends, monkeypatch):
    """When the clock jumps by an hour within one slice of waiting, an answer that comes afterwards is still taken."""
    one, other = ends
    times = iter([0.0, 0.0, 3600.0])
    monkeypatch.setattr(ipc._Patience, "SLICE", 0.01)

    def monotonic() -> float:
        now = next(times, 3600.0)
        if now:
            ipc.send(one, {"late": True})
        return now

    assert ipc.receive(other, 5.0, monotonic) == {"late": True}


def test_time_allowed_is_spent_in_slices_and_no_longer():
    """Each wait is a second at most, and what passed is taken off what was allowed."""
    times = iter([0.0, 0.5, 1.5, 2.5, 4.0, 5.0])
    patience = ipc._Patience(3.0, lambda: next(times))
    assert [patience.slice() for _ in range(3)] == [1.0, 1.0, 0.5]
    with pytest.raises(TimeoutError):
        patience.slice()
