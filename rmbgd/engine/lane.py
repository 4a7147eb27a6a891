"""One device and the engines that serve it, one after the other: started, replaced after a fault, never too often.

Does not choose between devices and does not know images' fates: resilient.py does. Owned by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rmbgd.clock import Clock
from rmbgd.engine.retry import delay
from rmbgd.engine.types import Backend, BatchReport, EngineDescription, Limit, Work
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.events import Emit

T = TypeVar("T")

GROW_AFTER = 64  # batches answered at a limit that memory imposed, after which twice as many are tried again


class Lane:
    """`make` gives a new engine that was not started; each is used until its first sticky fault.

    delay_maximum    seconds; longest pause between two starts of an engine that keeps failing
    keep_when_short  an engine that lacks memory for one image alone stays: the image can go to another device, and
                     whoever takes the memory may give it back. Without another device a fresh process is tried, which
                     has the least in memory
    forgiving        weights that cannot be used are a fault among others even at the first start: it only stands by,
                     and `model_error` says it to whoever has nothing else
    """

    def __init__(
        self,
        device: str,
        make: Callable[[], Backend],
        *,
        emit: Emit,
        clock: Clock,
        delay_maximum: float,
        keep_when_short: bool = False,
        forgiving: bool = False,
    ) -> None:
        self.device = device
        self.description: EngineDescription | None = None  # of the last engine that was ready
        self.restarts = 0
        self.failures = 0  # in a row, since a batch was answered
        self.next_start = clock.monotonic()  # not to be started before
        self._make = make
        self._emit = emit
        self._clock = clock
        self._delay_maximum = delay_maximum
        self._keep_when_short = keep_when_short
        self._forgiving = forgiving
        self.model_error: ModelError | None = None  # why the last start failed, if for that
        self._dispose: Callable[[Backend], None] = _close
        self._engine: Backend | None = None  # started, or None
        self._fault_at: float | None = None  # of the first fault since an engine was ready
        self._memory_limit: int | None = None  # images that fit into memory, when that was found out
        self._since_limit = 0

    @property
    def ready(self) -> bool:
        return self._engine is not None

    @property
    def limit(self) -> int:
        """Images it takes at once, now."""
        largest = self.description.batch_sizes[-1] if self.description else 1
        return largest if self._memory_limit is None else min(largest, self._memory_limit)

    def start(self) -> EngineDescription:
        """One try. Raises EngineFault, and then `next_start` says when to try again; ModelError, but only as long as
        no engine was ever ready: weights that were good may be good again, so later on their damage is a fault.
        """
        began = self._clock.monotonic()
        engine = self._make()
        try:
            description = engine.start()
        except ModelError as error:
            engine.close()
            if self.description is None and not self._forgiving:
                raise
            self.model_error = error
            self._failed(EngineLost(str(error)), [])
            raise EngineLost(str(error)) from error
        except EngineFault as fault:
            engine.close()
            self.model_error = None
            self._failed(fault, [])
            raise
        except BaseException:
            engine.close()
            raise
        self._engine = engine
        self.model_error = None
        self._memory_limit = None
        self._tell_ready(description, began)
        return description

    def adopt(self, engine: Backend, description: EngineDescription, began: float) -> None:
        """Take over an engine that was started elsewhere, from `began` on, and has proved itself."""
        assert self._engine is None
        self._engine = engine
        self._memory_limit = None
        self.failures = 0
        self._tell_ready(description, began)

    def surrender(self) -> Backend | None:
        """Give the engine away without closing it, for an end that may take long; None when there is none."""
        engine, self._engine = self._engine, None
        return engine

    def look(self, examine: Callable[[], T]) -> T:
        """A look at its engine between two batches. Raises EngineFault, like `segment`."""
        try:
            return examine()
        except EngineMemory:
            raise
        except EngineFault as fault:
            self.replace()
            self._failed(fault, [])
            raise

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        """Raises EngineFault; after a sticky one there is no engine until the next start."""
        assert self._engine is not None
        try:
            report = self._engine.segment(batch)
        except EngineMemory as fault:
            if len(batch) == 1 and not self._keep_when_short:  # nothing is left to halve
                self.replace()
            self._memory_limit = max(1, len(batch) // 2)
            self._since_limit = 0
            self._failed(fault, batch)
            raise
        except EngineFault as fault:
            self.replace()
            self._failed(fault, batch)
            raise
        self.failures = 0
        self._grow()
        self._tell_limits(report.limits)
        return report

    def disposes_by(self, dispose: Callable[[Backend], None]) -> None:
        """Have engines that met a fault ended by somebody else: `close` may take long."""
        self._dispose = dispose

    def replace(self) -> None:
        """Give up the engine that is there, if any; the next start makes another."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self._dispose(engine)

    close = replace

    def _grow(self) -> None:
        if self._memory_limit is not None:
            self._since_limit += 1
            if self._since_limit >= GROW_AFTER:
                self._memory_limit *= 2
                self._since_limit = 0

    def _failed(self, fault: EngineFault, batch: Sequence[Work]) -> None:
        now = self._clock.monotonic()
        if not self.ready:
            self.failures += 1
            self.next_start = now + delay(self.failures, self._delay_maximum)
            if self._fault_at is None:
                self._fault_at = now
        self._emit(
            "engine.fault",
            device=self.device,
            kind=kind_of(fault),
            detail=str(fault),
            images=[work.image_id for work in batch],
            restarts=self.restarts,
        )

    def _tell_ready(self, description: EngineDescription, began: float) -> None:
        now = self._clock.monotonic()
        first = self.description is None
        self.description = description
        self.device = description.device
        if first:
            self._emit(
                "engine.started",
                device=description.device,
                models=description.models,
                batch_sizes=list(description.batch_sizes),
                seconds=round(now - began, 3),
                **({"detail": description.detail} if description.detail else {}),
            )
        else:
            self.restarts += 1
            self._emit(
                "engine.restarted",
                device=description.device,
                seconds=round(now - (began if self._fault_at is None else self._fault_at), 3),
                restarts=self.restarts,
            )
        self._fault_at = None
        self._tell_limits(description.limits)

    def _tell_limits(self, limits: Sequence[Limit]) -> None:
        for limit in limits:
            self._emit("engine.limited", device=self.device, what=limit.what, detail=limit.detail)


def _close(engine: Backend) -> None:
    engine.close()


def kind_of(fault: EngineFault) -> str:
    """As events spell it."""
    if isinstance(fault, EngineMemory):
        return "memory"
    return "nonsense" if isinstance(fault, EngineNonsense) else "lost"
