"""What an engine does without reaches the log: from its description, and from each report."""

from __future__ import annotations

from collections.abc import Sequence

from rmbgd.clock import SystemClock
from rmbgd.engine.lane import Lane
from rmbgd.engine.types import BatchReport, EngineDescription, Limit, Work
from rmbgd.events import RecordedEvents


class Limited:
    """Says at start that nothing is page-locked, and in its first batch that memory ran short."""

    def __init__(self) -> None:
        self.news = [Limit("batch", "at most 2 images at once for now")]

    def start(self) -> EngineDescription:
        return EngineDescription("cuda:0", {}, (1, 2, 4), limits=[Limit("pinned", "no memory is page-locked")])

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        told, self.news = self.news, []
        return BatchReport([], limits=told)

    def close(self) -> None:
        pass


def test_limits_are_events_each_told_once():
    """One at start, one with the batch that found it, none afterwards; with the device's name."""
    events = RecordedEvents()
    lane = Lane("cuda:0", Limited, emit=events, clock=SystemClock(), delay_maximum=1.0)
    lane.start()
    lane.segment([])
    lane.segment([])

    assert events.named("engine.limited") == [
        {"device": "cuda:0", "what": "pinned", "detail": "no memory is page-locked"},
        {"device": "cuda:0", "what": "batch", "detail": "at most 2 images at once for now"},
    ]


def test_a_fresh_engine_tells_its_limits_again():
    """After a restart they may be others."""
    events = RecordedEvents()
    lane = Lane("cuda:0", Limited, emit=events, clock=SystemClock(), delay_maximum=1.0)
    lane.start()
    lane.replace()
    lane.start()

    assert [event["what"] for event in events.named("engine.limited")] == ["pinned", "pinned"]
