"""Frames of recurrent networks: one after another, on one device as long as that takes images."""

from __future__ import annotations

from dataclasses import replace

from rmbgd.engine.types import DeviceView, FrameLink
from rmbgd.fs import FileVersion
from rmbgd.pipeline.recurrent import RecurrentFrames
from rmbgd.sequence.turns import OrderGate
from rmbgd.store.records import FrameTurn, Job

JOB = Job(1, "film", "a", "/in/a", FileVersion(1, 2, 3, 4), 1, 0.0, 0.0, True)
FIRST, SECOND, OTHER = (
    replace(JOB, job_id=number, turn=FrameTurn(name, number, ticket, previous))
    for number, name, ticket, previous in ((1, "take", 1, 0), (2, "take", 2, 1), (3, "other", 1, 0))
)
BOTH = (DeviceView("cuda:0", usable=True), DeviceView("cuda:1", usable=True))


def test_a_frame_waits_for_the_one_before_it_and_not_for_other_sequences() -> None:
    opened: list[int] = []
    frames = RecurrentFrames(OrderGate(), lambda: opened.append(1))
    assert frames.may_take(FIRST, "cuda:0", BOTH)
    assert not frames.may_take(SECOND, "cuda:0", BOTH)
    assert frames.may_take(OTHER, "cuda:1", BOTH)
    assert frames.may_take(JOB, "cuda:1", BOTH)  # no frame at all
    frames.computed(FIRST, "cuda:0")
    assert opened == [1]
    assert frames.may_take(SECOND, "cuda:0", BOTH)


def test_a_sequence_stays_on_its_device_while_that_takes_images() -> None:
    frames = RecurrentFrames(OrderGate(), lambda: None)
    frames.computed(FIRST, "cuda:0")
    assert not frames.may_take(SECOND, "cuda:1", BOTH)
    gone = (replace(BOTH[0], usable=False), BOTH[1])
    assert frames.may_take(SECOND, "cuda:1", gone)
    frames.computed(SECOND, "cuda:1")
    assert frames.link(SECOND) == FrameLink("film/take", 2, 1)
    assert frames.link(JOB) is None
