"""What is said when work leaves a GPU, comes back to it, or waits for it: one event at each edge.

Decides nothing. Belongs to the attendant, who calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rmbgd.clock import Clock
from rmbgd.engine.health_types import Changed, Degraded, Failback, Failover, Phase, event_of
from rmbgd.events import Emit


@dataclass(frozen=True, slots=True)
class Moves:
    """How events call the two sides. `aside`: where work goes while no GPU is well; empty when it waits."""

    aside: str
    aside_model: str
    own_model: str


class Teller:
    """`others`: the GPUs besides `device` that are in use now."""

    def __init__(
        self, device: str, moves: Moves, emit: Emit, clock: Clock, others: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._device, self._moves, self._emit, self._clock, self._others = device, moves, emit, clock, others
        self._away_since: float | None = None  # since work goes elsewhere, or waits

    def tell(self, decision: Changed | Degraded | Failover | Failback, computing: Sequence[int]) -> None:
        """`computing`: jobs that are on a device now."""
        match decision:
            case Changed() | Degraded():
                event, keys = event_of(self._device, decision)
                self._emit(event, **keys)
                if isinstance(decision, Changed) and decision.after is Phase.OK:
                    self._back()
            case Failover():
                self._away(decision, computing)
            case Failback():
                self._back()

    def never_came(self) -> None:
        """Work goes elsewhere because the device was not well when the service started. Told once."""
        if self._away_since is None:
            self._away_since = self._clock.monotonic()
            aside, aside_model = self._aside()
            reason = "gpu_not_ready" if aside else "waiting_for_gpu"
            model = {"model": aside_model} if aside else {}
            self._emit("engine.degraded", device=self._device, reason=reason, **model)

    def _away(self, decision: Failover, computing: Sequence[int]) -> None:
        self._away_since = self._clock.monotonic()
        keys: dict[str, object] = {"reason": decision.reason}
        optional = {"reading": decision.reading, "threshold": decision.threshold}
        keys |= {name: value for name, value in optional.items() if value is not None}
        if decision.operator_action:
            keys["operator_action"] = decision.operator_action
        aside, aside_model = self._aside()
        if not aside:
            self._emit("engine.degraded", device=self._device, **keys | {"reason": "waiting_for_gpu"})
            return
        keys |= {"from": self._device, "to": aside, "model": aside_model}
        self._emit("engine.failover", images=list(computing), **keys)

    def _back(self) -> None:
        if self._away_since is None:  # it was not away: well again after a suspicion, or at first
            return
        seconds = round(self._clock.monotonic() - self._away_since, 3)
        self._away_since = None
        keys = {"from": self._aside()[0] or "none", "to": self._device, "model": self._moves.own_model}
        self._emit("engine.failback", **keys, seconds=seconds)

    def _aside(self) -> tuple[str, str]:
        """(devices, model) that do this one's work now: the other GPUs as long as one is well, else what stands in."""
        others = ", ".join(self._others())
        return (others, self._moves.own_model) if others else (self._moves.aside, self._moves.aside_model)
