"""Runs the self-test of a GPU in a fresh process, and compares its answers with those of the CPU, kept on disk.

The process belongs to the probe's thread until the supervisor adopts it as the worker, or dismisses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.clock import Clock
from rmbgd.config.load import HealthSettings
from rmbgd.engine.golden_image import HEIGHT, WIDTH, from_levels, to_levels
from rmbgd.engine.health_types import ProbeReport
from rmbgd.engine.selftest import golden_difference, golden_factor
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineFault, EngineLost, EngineMemory, ModelError
from rmbgd.fs import atomic_write

IDENTITY = ("sha256", "architecture", "patch_order", "input_size", "filter")
"""Facts that make a model what it is."""

REFERENCE = {"runtime": "torch", "precision": "float32"}
"""How references are computed: plainly, whatever the CPU computes images with."""

Alpha = NDArray[np.float32]


class GoldenReferences:
    """What each model makes of the golden image on the CPU, by torch in float32: computed once, kept in one file per
    model, weights and version of torch.

    Belongs to the thread of a probe; `abort` may come from any. `make` gives a worker on the CPU, not started, that
    will load the very models of the GPU. `alone`, where several GPUs share it, keeps two from computing the same.
    """

    def __init__(self, directory: Path, make: Callable[[], EngineWorker], alone: threading.Lock | None = None) -> None:
        self._directory, self._make, self._alone = directory, make, alone or threading.Lock()
        self._known: dict[str, Alpha] = {}  # by file name
        self._worker: EngineWorker | None = None  # written by the probe's thread, read by any

    def of(self, description: EngineDescription) -> dict[str, Alpha] | None:
        """Alpha float32 [240, 320] per model of the GPU's; None when the CPU loaded other weights under these names.

        May take as long as loading and computing every model on the CPU once. Raises EngineFault, ModelError.
        """
        names = {model: file_name(model, facts) for model, facts in description.models.items()}
        if not self._know(names.values()):
            with self._alone:
                if not self._know(names.values()):  # not computed meanwhile by the probe of another GPU
                    self._compute()
        known = {model: self._known[name] for model, name in names.items() if name in self._known}
        return known if len(known) == len(names) else None

    def _know(self, names: Iterable[str]) -> bool:
        for name in names:
            if name not in self._known and (stored := self._read(name)) is not None:
                self._known[name] = stored
        return set(names) <= self._known.keys()

    def abort(self) -> None:
        if worker := self._worker:
            worker.abort()

    def _compute(self) -> None:
        worker = self._worker = self._make()
        try:
            for model, facts in worker.start().models.items():
                name = file_name(model, facts)
                self._known[name] = alpha = worker.golden(model).alpha
                data = io.BytesIO()
                np.savez_compressed(data, alpha=to_levels(alpha))
                with contextlib.suppress(OSError):  # it costs only time at the next start
                    self._directory.mkdir(parents=True, exist_ok=True)
                    atomic_write(self._directory / name, data.getvalue())
        finally:
            self._worker = None
            worker.close()

    def _read(self, name: str) -> Alpha | None:
        try:
            with open(self._directory / name, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                levels = arrays["alpha"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return from_levels(levels) if levels.shape == (HEIGHT, WIDTH) and levels.dtype == np.uint16 else None


def file_name(model: str, facts: Mapping[str, object]) -> str:
    """Of the reference: readable, and another one for other weights or other arithmetic."""
    how = [*REFERENCE.values(), importlib.metadata.version("torch")]
    digest = hashlib.sha256(repr([*(str(facts.get(fact)) for fact in IDENTITY), *how]).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]', '_', model)[-60:]}-{digest[:16]}.npz"


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
        self.number, self.worker, self.began, self._clock = number, worker, clock.monotonic(), clock
        self.description: EngineDescription | None = None  # set by the probe's thread before it reports
        self._references = references
        self._device, self._sha256, self._baseline, self._health = device, sha256, baseline, health
        self._decided = threading.Event()
        self._dismissed = False  # set before `_decided`, under the lock of the supervisor

    def run(self, report: Callable[[Probe, ProbeResult], None]) -> None:
        """The thread's body: run the steps, report, and keep the process until it is adopted or dismissed."""
        result = self._run_steps()
        self.description = result.description
        report(self, result)
        self._decided.wait()
        if self._dismissed:
            self.worker.close()

    def adopt(self) -> EngineWorker:
        """The process now belongs to the caller, who holds the lock under which it is dismissed, too."""
        self._decided.set()
        return self.worker

    def dismiss(self) -> None:
        """The process is not wanted: it ends now, even in the middle of the probe. Not after `adopt`."""
        self._dismissed = True
        self._references.abort()
        self.worker.abort()
        self._decided.set()

    def _run_steps(self) -> ProbeResult:
        steps: dict[str, Any] = {"fresh_process": True, "baseline": self._baseline}
        try:
            description = self.worker.start()
            steps["enumerated"] = description.device == self._device
            self._measure(description, steps)
        except ModelError as error:
            steps |= {"enumerated": True, "error": str(error)}
            return ProbeResult(ProbeReport(**steps), model_error=error)
        except EngineFault as fault:
            if isinstance(fault, EngineMemory):
                steps.setdefault("enumerated", True)  # it answered, if only to say that it is full
            steps["error"] = str(fault).partition("\n")[0]
            return ProbeResult(ProbeReport(**steps), fault=fault)
        return ProbeResult(ProbeReport(**steps), description)

    def _measure(self, description: EngineDescription, steps: dict[str, Any]) -> None:
        loaded = sha256_of(description)
        references = self._references.of(description)
        if self._dismissed:
            raise EngineLost("this probe was dismissed")
        steps["model_intact"] = references is not None and self._sha256 in ({}, loaded)
        if references is None:
            return
        began = self._clock.monotonic()  # each step before has a deadline of its own
        steps["canary_passes"] = steps["canary_bad"] = 0
        for number in range(self._health.probe_passes):
            steps["canary_bad"] += self.worker.canary(self._health.canary_blocks).bad
            steps["canary_passes"] = number + 1
        mean = peak = seconds = 0.0
        for model, reference in references.items():
            found = self.worker.golden(model)
            this_mean, this_peak = golden_difference(found.alpha, reference, self._health.golden_outliers)
            mean, peak = max(mean, this_mean), max(peak, this_peak)
            seconds = max(seconds, min(self.worker.golden(model).seconds for _ in range(WARM_RUNS)))
        steps["golden_factor"] = golden_factor(description.models.values())
        steps |= {"golden_mean": mean, "golden_peak": peak, "seconds": seconds}
        steps["test_seconds"] = self._clock.monotonic() - began


def sha256_of(description: EngineDescription) -> dict[str, object]:
    return {model: facts.get("sha256") for model, facts in description.models.items()}
