"""The segment stage: one thread feeds one device, and takes what is waiting whenever the device is free.

Owns the engine and nothing else. Touches no file; what the batching policy decides, it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rmbgd.clock import Clock
from rmbgd.engine.resilient import Stopped
from rmbgd.engine.types import Answer, Backend, EngineDescription, Poisoned, Work
from rmbgd.errors import EngineFault, Reason
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.items import Arrival, Cutout, Frame, Postponed, Rejection
from rmbgd.pipeline.queue import Choice, NoSenders, Receiver, Sender

Choose = Callable[[Sequence[Frame], float], Choice]


def segment_loop(
    engine: Backend,
    started: Callable[[EngineDescription], Callable[[], Choose]],
    work_of: Callable[[Frame], Work],
    frames: Receiver[Frame],
    arrivals: Sender[Arrival],
    clock: Clock,
    heartbeat: Heartbeat,
) -> None:
    """Until the last decoder has gone. `started` learns what the engine is; what it answers gives the policy for it,
    and is asked before each batch, since another device may compute by then."""
    with frames, arrivals:
        try:
            try:
                policy = started(engine.start())
            except Stopped:  # nothing was computed here, and nothing is in hand
                return
            while True:
                try:
                    batch = frames.receive_chosen(policy())
                except NoSenders:
                    return
                for arrival in segment(engine, batch, work_of, clock, heartbeat):
                    arrivals.send(arrival)
        finally:
            heartbeat.waiting()  # this thread ends, and nobody is to wonder why it says nothing any more
            engine.close()
            heartbeat.waiting()


def segment(
    engine: Backend, batch: list[Frame], work_of: Callable[[Frame], Work], clock: Clock, heartbeat: Heartbeat
) -> list[Arrival]:
    """What became of each frame. An engine that is gone for good means that the service is stopping: they go back."""
    begun = clock.monotonic()
    for frame in batch:
        frame.timing.add("queue", begun - frame.ready_at)
    try:
        report = engine.segment([work_of(frame) for frame in batch])
    except EngineFault as fault:
        return [Postponed(frame.job, "stopping", str(fault), frame.timing, frame.facts, frame.lease) for frame in batch]
    heartbeat.working()
    spent = clock.monotonic() - begun
    for frame in batch:
        frame.timing.add("engine", spent)
    return [outcome(frame, answer) for frame, answer in zip(batch, report.answers, strict=True)]


def outcome(frame: Frame, answer: Answer | Poisoned) -> Cutout | Rejection:
    if isinstance(answer, Poisoned):
        return Rejection(frame.job, Reason.POISON, answer.detail, "engine", frame.timing, frame.facts, frame.lease)
    return Cutout(frame, answer)
