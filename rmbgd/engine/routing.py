"""Which device the next pictures go to: the GPU while its attendant says so, else the CPU, else nowhere.

Does not judge the GPU (failover.py) nor do what that judgement asks for (attendant.py). Belongs to the engine's owner,
who also looks at the GPU between two batches when it is due: with work at hand that costs milliseconds, and without any
a sick device does no harm until the next picture, before which it is looked at.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial

from rmbgd.beat import Beat, NoBeat
from rmbgd.clock import Clock
from rmbgd.config import Health
from rmbgd.engine.attendant import Attendant
from rmbgd.engine.base import EngineDescription
from rmbgd.engine.device import Answered, Fault, FaultKind, Golden
from rmbgd.engine.lane import Lane
from rmbgd.engine.probe import golden_difference, judge_golden
from rmbgd.engine.resilient import Stop
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineMemory

SIZES = (1, 2, 4, 8, 16)  # offered while the GPU has not said what it takes; a lane splits what is too much for it


class FailoverRouting:
    """A GPU lane and, unless the operator requires the GPU, a standby lane on the CPU.

    standby  starts as any lane does; None: pictures wait for the GPU
    warm     the standby is started with the service and stays loaded; else it starts when it is needed
    models   that pictures ask for
    """

    def __init__(
        self,
        gpu: Lane,
        standby: Lane | None,
        attendant: Attendant,
        *,
        warm: bool,
        models: Sequence[str],
        health: Health,
        clock: Clock,
        beat: Beat | None = None,
    ) -> None:
        self._gpu, self._standby, self._attendant = gpu, standby, attendant
        self._warm, self._models, self._health, self._clock = warm, tuple(models), health, clock
        self._beat = beat or NoBeat()
        self._number = 0  # of the process that the GPU lane holds
        self._worker: EngineWorker | None = None  # that process
        self._canary_due = self._golden_due = 0.0

    # ------------------------------------------------------------------------------------------------ Routing

    def lane(self, *, accused: bool = False) -> Lane | None:
        if accused and self._standby is not None:
            return self._standby
        if self._gpu_is_usable():
            return self._gpu
        standby = self._standby
        if standby is not None and (standby.ready or not self._warm) and self._attendant.undecided:
            return None
        if standby is not None and not standby.ready and self._warm:
            return standby
        if not self._attendant.undecided:
            self._attendant.went_aside()
        return standby

    def limit(self, lane: Lane) -> int:
        if lane is not self._gpu:
            return lane.limit
        limit = self._attendant.state.batch_limit
        return lane.limit if limit is None else max(min(lane.limit, limit), 1)

    def began(self, lane: Lane, pictures: Sequence[int]) -> None:  # noqa: ARG002 - concerned wherever they are
        self._attendant.computing(pictures)

    def answered(self, lane: Lane, pictures: int) -> None:
        self._attendant.computing(())
        if lane is self._gpu:
            self._attendant.tell(Answered(self._number, pictures))

    def faulted(self, lane: Lane, fault: EngineFault, pictures: Sequence[int]) -> None:
        if lane is self._gpu:
            self._attendant.computing(pictures)
            self._attendant.faulted(self._number, fault)
        self._attendant.computing(())

    def description(self) -> EngineDescription | None:
        if (error := self._attendant.model_error) is not None:
            raise error
        if self._gpu_is_usable():
            return self._gpu.description
        if self._attendant.undecided or (self._standby is not None and not self._standby.ready):
            return None
        self._attendant.went_aside()
        # The weights that were asked for have not been seen: what is computed now must not be found again later.
        unseen: dict[str, dict[str, object]] = {name: {"sha256": f"not seen {uuid.uuid4()}"} for name in self._models}
        return EngineDescription(self.device, unseen, SIZES)

    def wait(self, stop: Stop) -> None:
        undecided = self._attendant.undecided

        def changed() -> bool:
            return stop.is_set() or self._attendant.process() is not None or self._attendant.undecided != undecided

        self._attendant.wait(changed)

    def close(self) -> None:
        self._attendant.stop()
        self._give_up_gpu()
        if self._standby is not None:
            self._standby.close()
        self._attendant.close()

    # ------------------------------------------------------------------------------------------------ for others

    @property
    def device(self) -> str:
        """In use now. Any thread."""
        if self._attendant.process() is not None:
            return self._gpu.device
        return self._standby.device if self._standby is not None else "none"

    def describe(self) -> dict[str, object]:
        """For the health event. Any thread; reads single values only."""
        lanes = [lane for lane in (self._gpu, self._standby) if lane is not None]
        devices: dict[str, object] = {self._gpu.device: self._attendant.describe()}
        if self._standby is not None:
            in_use = self._attendant.process() is None
            state = "ready" if self._standby.ready else "starting" if self._warm or in_use else "on_demand"
            devices[self._standby.device] = {"state": state}
        usable = self._attendant.process() is not None or (self._standby is not None and self._standby.ready)
        state = "starting" if self._attendant.undecided else "ready" if usable else "waiting"
        return {
            "state": state,
            "device": self.device,
            "restarts": sum(lane.restarts for lane in lanes),
            "failures": sum(lane.failures for lane in lanes),
            "devices": devices,
        }

    def wake(self) -> None:
        """Something outside has changed: who waits looks again. Any thread."""
        self._attendant.wake()

    # ------------------------------------------------------------------------------------------------ the owner's own

    def _gpu_is_usable(self) -> bool:
        """With its newest process in the lane, looked at when that was due."""
        while (number := self._attendant.process()) is not None:
            if self._gpu.ready and number == self._number:
                if not self._look():
                    continue
                if self._standby is not None and self._standby.ready and not self._warm:
                    self._standby.close()
                return True
            self._give_up_gpu()
            adopted = self._attendant.adopt(number)
            if adopted is None:  # condemned between two questions; should it not be, there is no process to use
                self._attendant.tell(Fault(FaultKind.STICKY, number, "no process came up"))
                continue
            worker, description, began = adopted
            worker.belongs_to(self._beat)
            self._gpu.adopt(worker, description, began)
            self._number, self._worker = number, worker
            now = self._clock.monotonic()
            self._canary_due = now + self._health.canary_interval
            self._golden_due = now + self._health.golden_interval
        self._give_up_gpu()
        return False

    def _give_up_gpu(self) -> None:
        worker, self._worker = self._worker, None
        if self._gpu.surrender() is not None and worker is not None:
            self._attendant.bury(worker)

    def _look(self) -> bool:
        """The canary and the known picture, when due. False when the question which device to use is open again."""
        now = self._clock.monotonic()
        try:
            if now >= self._canary_due:
                self._canary_due = now + self._health.canary_interval
                self._run_canary()
            # A wrong answer is repeated at once, until it is right or the device is left: no picture goes there before.
            while self._attendant.take_golden_wish() or now >= self._golden_due:
                self._golden_due = now + self._health.golden_interval
                self._run_golden()
        except EngineFault as fault:
            self._attendant.faulted(self._number, fault)
        return self._attendant.process() == self._number and self._gpu.ready

    def _run_canary(self) -> None:
        worker = self._worker
        assert worker is not None
        try:
            found = self._gpu.look(partial(worker.canary, self._health.canary_blocks))
        except EngineMemory:  # pictures have the memory: no pass this time, and nobody's fault
            return
        self._attendant.tell(found)

    def _run_golden(self) -> None:
        worker, description = self._worker, self._gpu.description
        assert worker is not None
        assert description is not None
        for model, reference in self._attendant.references(description).items():
            found = self._gpu.look(partial(worker.golden, model))
            mean, peak = golden_difference(found.alpha, reference, self._health.golden_outliers)
            verdict = judge_golden(mean, peak, self._health)
            self._attendant.tell(Golden(verdict.passed, self._number, verdict.reading, verdict.threshold))
            if not verdict.passed:
                return
