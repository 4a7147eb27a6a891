"""Policy: which of the waiting images go to the engine now. A pure function of what waits, the limits and the time.

Does not take anything from a channel, wait, or measure: the segment loop does, with this as its `choose`.

The busy device is the timer: while it computes, images gather, and when it is free whatever waits goes, up to the
largest size that is allowed. A size is used only exactly full (5 go as 4, then 1): an empty place costs as much as a
image. Realtime images go first and alone, suspects alone, all others in the order in which they came, whatever
folder they are from: a folder that drops thousands delays the others by what was there before them, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rmbgd.config.load import Folder, PipelineSettings, Recipe
from rmbgd.engine.seats import Seat
from rmbgd.engine.types import EngineDescription
from rmbgd.events import Emit
from rmbgd.pipeline.infer import Choose
from rmbgd.pipeline.items import Frame
from rmbgd.pipeline.queue import Choice

GAIN = 0.02
"""A larger batch must save at least this share of the time per image, or it only makes each of them later."""

HEAD_START = 60.0
"""Seconds by which a realtime image counts as older than it is. It overtakes all that wait in any line that is not
beyond help, and whoever has waited longer than this is not overtaken any more: a flood of realtime images delays the
others, but does not starve them."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What matters of one waiting image.

    model     name of the model it asks for; a batch has one
    realtime  its folder does not want to wait for company
    suspect   the service or an engine went down with it before: nobody else should suffer again
    since     when it became ready, seconds on the clock that `now` is read from
    latency   seconds that it should take at most, as its folder wants; infinite where it does not matter
    """

    model: str
    realtime: bool
    suspect: bool
    since: float
    latency: float = math.inf


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may be.

    sizes    allowed by the engine and the settings, ascending, 1 among them
    wait     seconds that the oldest image may wait for company; 0 is hardly ever worse
    seconds  measured seconds per batch, by size, where measured
    """

    sizes: tuple[int, ...]
    wait: float = 0.0
    seconds: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if 1 not in self.sizes or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"batch sizes {self.sizes} must be ascending and begin with 1")


def choose(waiting: Sequence[Waiting], limits: Limits, now: float) -> list[int] | float:
    """Indices of `waiting` (oldest first, at least one) that go now, or the moment to ask again.

    An infinite `now` means that nothing more will come.
    """
    head = min(range(len(waiting)), key=lambda index: (_place(waiting[index]), index))
    first = waiting[head]
    if first.realtime or first.suspect:
        return [head]
    alike = [
        index
        for index, image in enumerate(waiting)
        if image.model == first.model and not image.suspect and not image.realtime
    ]
    targets = [waiting[index].latency for index in alike]
    size = batch_size(targets, limits)
    deadline = first.since + limits.wait
    if now < deadline and size < batch_size(targets + [min(targets)] * limits.sizes[-1], limits):
        return deadline
    return alike[:size]


def batch_size(targets: Sequence[float], limits: Limits) -> int:
    """The size to use when images with these latencies wait, in order: the largest full, in time, and worth it."""
    best = 1
    for size in limits.sizes:
        if size > len(targets) or _too_slow(size, min(targets[:size]), limits):
            break
        if _worth_it(size, best, limits):
            best = size
    return best


def table(limits: Limits, latency: float) -> dict[int, int]:
    """How many go, by how many wait, of a folder with this latency; for the log."""
    return {count: batch_size([latency] * count, limits) for count in range(1, limits.sizes[-1] + 1)}


def _place(image: Waiting) -> float:
    """Its place in the line, as if it had come then."""
    return image.since - HEAD_START if image.realtime else image.since


def _too_slow(size: int, latency: float, limits: Limits) -> bool:
    """An image may just miss one batch and be in the next, so two batches must fit into what it should take."""
    return size > 1 and 2 * _expected(size, limits.seconds) > latency


def _expected(size: int, seconds: Mapping[int, float]) -> float:
    """What a batch takes; where not measured, no more than a larger one, nor than smaller ones in its place."""
    if size in seconds:
        return seconds[size]
    larger = [taken for measured, taken in seconds.items() if measured > size]
    smaller = [taken * size / measured for measured, taken in seconds.items() if measured < size]
    return min(larger + smaller, default=0.0)


def _worth_it(size: int, smaller: int, limits: Limits) -> bool:
    if size not in limits.seconds or smaller not in limits.seconds:
        return True
    return limits.seconds[size] / size <= (1 - GAIN) * limits.seconds[smaller] / smaller


# --- The batching policy with everything it needs to know of one seat: what computes now, and what its folders want.


class Policy:
    """Belongs to the seat's thread. `description`: what the seat's engine said at its start."""

    def __init__(
        self,
        seat: Seat,
        description: EngineDescription,
        folders: Mapping[str, tuple[Folder, Recipe]],
        pipeline: PipelineSettings,
        emit: Emit,
    ) -> None:
        self._seat, self._at_start, self._folders, self._pipeline, self._emit = (
            seat, description, folders, pipeline, emit,
        )  # fmt: skip
        self._told: dict[str, object] = {}  # by device

    def now(self) -> Choose:
        """For the next batch. Tells the table when the device that computes has none told, or another one."""
        description = self._description()
        limits = self._limits(description)
        folders = {
            name: {"latency": folder.latency_target, "table": self._table(folder, limits)}
            for name, (folder, _) in self._folders.items()
        }
        if self._told.get(description.device) != folders:
            self._told[description.device] = folders
            milliseconds = {str(size): round(1000 * seconds, 3) for size, seconds in limits.seconds.items()}
            self._emit("engine.batching", device=description.device, milliseconds=milliseconds, folders=folders)
        return self._choose

    def _choose(self, frames: Sequence[Frame], now: float) -> Choice:
        """Called with the channel's lock held: waits for nothing."""
        if not self._seat.may_take():
            return None
        return choose([self._facts(frame) for frame in frames], self._limits(self._description()), now)

    def _description(self) -> EngineDescription:
        return self._seat.description() or self._at_start

    def _limits(self, description: EngineDescription) -> Limits:
        sizes = tuple(size for size in description.batch_sizes if size <= self._pipeline.batch_maximum)
        return Limits(sizes, self._pipeline.batch_wait, description.seconds)

    def _table(self, folder: Folder, limits: Limits) -> list[int]:
        if folder.latency == "realtime":
            return [1]
        return list(table(limits, folder.latency_target).values())

    def _facts(self, frame: Frame) -> Waiting:
        folder, recipe = self._folders[frame.job.folder]
        return Waiting(
            recipe.model, folder.latency == "realtime", frame.job.attempt > 1, frame.ready_at, folder.latency_target
        )
