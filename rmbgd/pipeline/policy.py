"""The batching policy with everything it needs to know of one seat: what computes now, and what its folders want.

Decides nothing itself (batching.py does). Says what was decided for which device: one event per table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmbgd.config import Folder, Pipeline, Recipe
from rmbgd.engine.base import EngineDescription
from rmbgd.engine.seats import Seat
from rmbgd.events import Emit
from rmbgd.jobs import Frame
from rmbgd.pipeline import batching
from rmbgd.pipeline.channel import Choice
from rmbgd.pipeline.segmenting import Choose


class Policy:
    """Belongs to the seat's thread. `description`: what the seat's engine said at its start."""

    def __init__(
        self,
        seat: Seat,
        description: EngineDescription,
        folders: Mapping[str, tuple[Folder, Recipe]],
        pipeline: Pipeline,
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
        return batching.choose([self._facts(frame) for frame in frames], self._limits(self._description()), now)

    def _description(self) -> EngineDescription:
        return self._seat.description() or self._at_start

    def _limits(self, description: EngineDescription) -> batching.Limits:
        sizes = tuple(size for size in description.batch_sizes if size <= self._pipeline.batch_maximum)
        return batching.Limits(sizes, self._pipeline.batch_wait, description.seconds)

    def _table(self, folder: Folder, limits: batching.Limits) -> list[int]:
        if folder.latency == "realtime":
            return [1]
        return list(batching.table(limits, folder.latency_target).values())

    def _facts(self, frame: Frame) -> batching.Waiting:
        folder, recipe = self._folders[frame.job.folder]
        return batching.Waiting(
            recipe.model, folder.latency == "realtime", frame.job.attempt > 1, frame.ready_at, folder.latency_target
        )
