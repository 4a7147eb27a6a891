"""Runs the self-test of a GPU in a fresh process: enumeration, weights, memory test, golden image, time.

The process belongs to the probe's thread until the supervisor adopts it as the worker, or dismisses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from rmbgd.clock import Clock
from rmbgd.config.load import HealthSettings
from rmbgd.engine.golden_references import GoldenReferences
from rmbgd.engine.health_types import ProbeReport
from rmbgd.engine.selftest import golden_difference
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, ModelError

WARM_RUNS = 3  # of which the quickest counts: what else runs on the machine is no illness of the device


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found. `fault` where a step raised one, `model_error` where the operator has to mend something."""

    report: ProbeReport
    description: EngineDescription | None = None
    fault: EngineFault | None = None
    model_error: ModelError | None = None


class Probe:
    """One probe: a worker that is not started, and what to compare its answers with.

    device, sha256    as the worker must describe itself; sha256 by model, empty when none was accepted before
    baseline          s that the golden image took when the device passed its first probe, if it did
    """

    def __init__(
        self,
        number: int,
        worker: EngineWorker,
        references: GoldenReferences,
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
        self.description: EngineDescription | None = None  # set by the probe's thread before it reports
        self._references = references
        self._device, self._sha256, self._baseline, self._health = device, sha256, baseline, health
        self._decided = threading.Event()
        self._dismissed = False  # set before _fate, by whoever decides

    def run(self, report: Callable[[Probe, ProbeResult], None]) -> None:
        """The thread's body: run the steps, report, and keep the process until it is adopted or dismissed."""
        result = self._run_steps()
        self.description = result.description
        report(self, result)
        self._decided.wait()
        if self._dismissed:
            self.worker.close()

    def adopt(self) -> EngineWorker:
        """The process now belongs to the caller. Under the lock of the one who also dismisses."""
        self._decided.set()
        return self.worker

    def dismiss(self) -> None:
        """The process is not wanted: it ends now, even in the middle of the probe. Not after `adopt`."""
        self._dismissed = True
        self._references.abort()
        self.worker.abort()
        self._decided.set()

    def _run_steps(self) -> ProbeResult:
        steps: dict[str, object] = {"fresh_process": True, "baseline": self._baseline}
        try:
            description = self.worker.start()
            steps["enumerated"] = description.device == self._device
            self._measure(description, steps)
        except ModelError as error:
            return ProbeResult(_report(steps | {"enumerated": True, "error": str(error)}), model_error=error)
        except EngineFault as fault:
            if isinstance(fault, EngineMemory):
                steps.setdefault("enumerated", True)  # it answered, if only to say that it is full
            return ProbeResult(_report(steps | {"error": _first_line(fault)}), fault=fault)
        return ProbeResult(_report(steps), description)

    def _measure(self, description: EngineDescription, steps: dict[str, object]) -> None:
        loaded = sha256_of(description)
        references = self._references.of(description)
        if self._dismissed:
            raise EngineLost("this probe was dismissed")
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
