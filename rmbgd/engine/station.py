"""One GPU: its lane, whoever looks after it, and the process in it, for whichever thread has its turn.

Does not choose between devices (routing.py does), nor judge this one (failover.py), nor do what that judgement asks for
(attendant.py). Looks at the GPU between two batches when it is due: with work at hand that costs milliseconds, and
without any a sick device does no harm until the next image, before which it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rmbgd.clock import Clock
from rmbgd.config.load import HealthSettings
from rmbgd.engine.attendant import Attendant
from rmbgd.engine.health_types import Answered, Fault, FaultKind, Golden
from rmbgd.engine.lane import Lane
from rmbgd.engine.selftest import golden_difference, judge_golden
from rmbgd.engine.turns import Turn
from rmbgd.engine.types import Backend
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory
from rmbgd.heartbeat import NullHeartbeat

PATIENCE = 0.5  # s for a faulty process to be gone; its images are to be elsewhere within two


class Station:
    """What is not said to be for any thread is for the one that has `turn`."""

    def __init__(self, lane: Lane, attendant: Attendant, *, health: HealthSettings, clock: Clock) -> None:
        self.lane, self.attendant = lane, attendant
        self.turn = Turn()
        self._health, self._clock = health, clock
        self._number = 0  # of the process that the lane holds
        self._worker: EngineWorker | None = None  # that process
        self._canary_due = self._golden_due = 0.0
        attendant.after_check(self.sweep)
        lane.disposes_by(self._dispose)

    @property
    def device(self) -> str:
        """Any thread."""
        return self.lane.device

    @property
    def in_use(self) -> bool:
        """Images may go to it. Any thread, without waiting."""
        return self.attendant.in_use

    def usable(self) -> bool:
        """With its newest process in the lane, looked at when that was due."""
        while (number := self.attendant.process()) is not None:
            if self.lane.ready and number == self._number:
                if not self._look():
                    continue
                return True
            self._give_up()
            adopted = self.attendant.adopt(number)
            if adopted is None:  # condemned between two questions; should it not be, there is no process to use
                self.attendant.tell(Fault(FaultKind.STICKY, number, "no process came up"))
                continue
            worker, description, began = adopted
            worker.belongs_to(self.turn, patience=PATIENCE)
            self.lane.adopt(worker, description, began)
            self._number, self._worker = number, worker
            now = self._clock.monotonic()
            self._canary_due = now + self._health.canary_interval
            self._golden_due = now + self._health.golden_interval
        self._give_up()
        return False

    def limit(self) -> int:
        """Images at once, at least 1."""
        limit = self.attendant.state.batch_limit
        return self.lane.limit if limit is None else max(min(self.lane.limit, limit), 1)

    def answered(self, images: int) -> None:
        self.attendant.tell(Answered(self._number, images))

    def faulted(self, fault: EngineFault) -> bool:
        """Whether what was computed may have caused it: not when the device is gone, or was given up before."""
        gone = isinstance(fault, EngineLost) and fault.cause in ("no_device", "unkillable")
        blamed = not gone and self.attendant.process() == self._number
        self.attendant.faulted(self._number, fault)
        return blamed

    def tidy(self) -> None:
        """Let go of a process that is not to be used any more."""
        if self.lane.ready and self.attendant.process() != self._number:
            self._give_up()

    def sweep(self) -> None:
        """Tidy, unless somebody is at it. Any thread."""
        if self.lane.ready and not self.in_use and self.turn.try_take(NullHeartbeat()):
            try:
                self.tidy()
            finally:
                self.turn.give()

    def close(self) -> None:
        """No process and no thread after this, as far as nothing is stuck."""
        self.attendant.stop()
        self._give_up()
        self.attendant.close()

    def _give_up(self) -> None:
        worker, self._worker = self._worker, None
        if self.lane.surrender() is not None and worker is not None:
            self.attendant.bury(worker)

    def _dispose(self, engine: Backend) -> None:
        """After a fault: at once, unless the process is still on its way out of the driver."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.lingers:
            self.attendant.bury(worker)
        else:
            engine.close()

    def _look(self) -> bool:
        """The canary and the golden image, when due. False when the question which device to use is open again."""
        now = self._clock.monotonic()
        try:
            if now >= self._canary_due:
                self._canary_due = now + self._health.canary_interval
                self._run_canary()
            # A wrong answer is repeated at once, until it is right or the device is left: no image goes there before.
            while self.attendant.take_golden_wish() or now >= self._golden_due:
                self._golden_due = now + self._health.golden_interval
                self._run_golden()
        except EngineFault as fault:
            self.attendant.faulted(self._number, fault)
        return self.attendant.process() == self._number and self.lane.ready

    def _run_canary(self) -> None:
        worker = self._worker
        assert worker is not None
        try:
            found = self.lane.look(partial(worker.canary, self._health.canary_blocks))
        except EngineMemory:  # images have the memory: no pass this time, and nobody's fault
            return
        self.attendant.tell(found)

    def _run_golden(self) -> None:
        worker, description = self._worker, self.lane.description
        assert worker is not None
        assert description is not None
        for model, reference in self.attendant.references(description).items():
            found = self.lane.look(partial(worker.golden, model))
            mean, peak = golden_difference(found.alpha, reference, self._health.golden_outliers)
            verdict = judge_golden(mean, peak, self._health)
            self.attendant.tell(Golden(verdict.passed, self._number, verdict.reading, verdict.threshold))
            if not verdict.passed:
                return


def by_queue(stations: Sequence[Station]) -> list[Station]:
    """Those that the fewest threads wait for first."""
    return sorted(stations, key=lambda station: station.turn.asking)
