"""A fresh process proves a GPU: found, weights, canary, golden image against the CPU's, time. On a thread of its own.

Does not judge (probe.py does) nor decide what follows (failover.py does). The process belongs to this thread until it
is adopted as the lane's engine, or dismissed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from rmbgd.clock import Clock
from rmbgd.config.load import HealthSettings
from rmbgd.engine.golden_references import References
from rmbgd.engine.health_types import ProbeReport
from rmbgd.engine.selftest import golden_difference
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, ModelError

WARM_RUNS = 3  # of which the quickest counts: what else runs on the machine is no illness of the device


@dataclass(frozen=True, slots=True)
class Result:
    """What a probe found. `fault` where a step raised one, `model_error` where the operator has to mend something."""

    report: ProbeReport
    description: EngineDescription | None = None
    fault: EngineFault | None = None
    model_error: ModelError | None = None


class Proof:
    """One probe: a worker that is not started, what to compare with, and what becomes of it.

    device, sha256    as the worker must describe itself; sha256 by model, empty when none was accepted before
    baseline          seconds that the golden image took when the device first proved itself, if it did
    """

    def __init__(
        self,
        number: int,
        worker: EngineWorker,
        references: References,
        *,
        device: str,
        sha256: dict[str, object],
        baseline: float | None,
        health: HealthSettings,
        clock: Clock,
    ) -> None:
        self.number = number
        self.worker = worker
        self.began = clock.monotonic()
        self.description: EngineDescription | None = None  # set by the probe's thread before the result is told
        self._references = references
        self._device, self._sha256, self._baseline, self._health = device, sha256, baseline, health
        self._fate = threading.Event()
        self._dismissed = False  # set before _fate, by whoever decides

    def run(self, tell: Callable[[Proof, Result], None]) -> None:
        """The thread's body: probe, tell, and keep the process until somebody wants it, or nobody does."""
        result = self._prove()
        self.description = result.description
        tell(self, result)
        self._fate.wait()
        if self._dismissed:
            self.worker.close()

    def adopt(self) -> EngineWorker:
        """The process now belongs to the caller. Under the lock of the one who also dismisses."""
        self._fate.set()
        return self.worker

    def dismiss(self) -> None:
        """Nobody wants the process: it ends now, even in the middle of the probe. Not after `adopt`."""
        self._dismissed = True
        self._references.abort()
        self.worker.abort()
        self._fate.set()

    def _prove(self) -> Result:
        steps: dict[str, object] = {"fresh_process": True, "baseline": self._baseline}
        try:
            description = self.worker.start()
            steps["enumerated"] = description.device == self._device
            self._measure(description, steps)
        except ModelError as error:
            return Result(_report(steps | {"enumerated": True, "error": str(error)}), model_error=error)
        except EngineFault as fault:
            if isinstance(fault, EngineMemory):
                steps.setdefault("enumerated", True)  # it answered, if only to say that it is full
            return Result(_report(steps | {"error": _first_line(fault)}), fault=fault)
        return Result(_report(steps), description)

    def _measure(self, description: EngineDescription, steps: dict[str, object]) -> None:
        loaded = sha256_of(description)
        references = self._references.of(description)
        if self._dismissed:
            raise EngineLost("nobody waits for this probe any more")
        steps["model_intact"] = references is not None and self._sha256 in ({}, loaded)
        if references is None:
            return
        steps["canary_passes"] = steps["canary_bad"] = 0
        for number in range(self._health.probe_passes):
            bad = self.worker.canary(self._health.canary_blocks).bad
            steps |= {"canary_passes": number + 1, "canary_bad": int(str(steps["canary_bad"])) + bad}
        mean = peak = seconds = 0.0
        for model, reference in references.items():
            found = self.worker.golden(model)
            this_mean, this_peak = golden_difference(found.alpha, reference, self._health.golden_outliers)
            mean, peak = max(mean, this_mean), max(peak, this_peak)
            warm = min(self.worker.golden(model).seconds for _ in range(WARM_RUNS))
            seconds = max(seconds, warm)
        steps |= {"golden_mean": mean, "golden_peak": peak, "seconds": seconds}


def sha256_of(description: EngineDescription) -> dict[str, object]:
    return {model: facts.get("sha256") for model, facts in description.models.items()}


def _report(steps: dict[str, object]) -> ProbeReport:
    return ProbeReport(**steps)  # type: ignore[arg-type]


def _first_line(fault: EngineFault) -> str:
    return str(fault).partition("\n")[0]
