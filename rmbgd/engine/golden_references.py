"""What each model makes of the golden image on the CPU: computed once, kept on disk, compared with every time after.

Does not judge differences (probe.py does) and knows no GPU. One file per model and weights, so that new weights get a
new answer. A file that cannot be written costs only time at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.examine import LEVELS
from rmbgd.engine.golden_image import HEIGHT, WIDTH
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.worker import EngineWorker

IDENTITY = ("sha256", "architecture", "patch_order", "input_size")
"""Facts that make a model what it is."""

Alpha = NDArray[np.float32]


class GoldenReferences:
    """Belongs to the thread of a probe; `abort` may come from any. `make` gives a worker on the CPU, not started, that
    will load the very models of the GPU. `alone`, where several GPUs share it, keeps two from computing the same."""

    def __init__(self, directory: Path, make: Callable[[], EngineWorker], alone: threading.Lock | None = None) -> None:
        self._directory = directory
        self._alone = alone or threading.Lock()
        self._make = make
        self._known: dict[str, Alpha] = {}  # by file name
        self._worker: EngineWorker | None = None  # written by the probe's thread, read by any

    def of(self, description: EngineDescription) -> dict[str, Alpha] | None:
        """Alpha float32 [240, 320] per model of the GPU's; None when the CPU loaded other weights under these names.

        May take as long as loading and computing every model on the CPU once. Raises EngineFault, ModelError.
        """
        names = {model: file_name(model, facts) for model, facts in description.models.items()}
        if not self._know(names.values()):
            with self._alone:
                if not self._know(names.values()):  # nobody else has computed them meanwhile
                    self._compute()
        if set(names.values()) - self._known.keys():
            return None
        return {model: self._known[name] for model, name in names.items()}

    def _know(self, names: Iterable[str]) -> bool:
        for name in names:
            if name not in self._known and (stored := self._read(name)) is not None:
                self._known[name] = stored
        return set(names) <= self._known.keys()

    def abort(self) -> None:
        worker = self._worker
        if worker is not None:
            worker.abort()

    def _compute(self) -> None:
        worker = self._worker = self._make()
        try:
            description = worker.start()
            for model, facts in description.models.items():
                name = file_name(model, facts)
                self._known[name] = worker.golden(model).alpha
                self._write(name, self._known[name])
        finally:
            self._worker = None
            worker.close()

    def _read(self, name: str) -> Alpha | None:
        try:
            with open(self._directory / name, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                levels = arrays["alpha"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if levels.shape != (HEIGHT, WIDTH) or levels.dtype != np.uint16:
            return None
        alpha: Alpha = levels.astype(np.float32) / np.float32(LEVELS)
        return alpha

    def _write(self, name: str, alpha: Alpha) -> None:
        levels = np.floor(alpha.clip(0, 1) * LEVELS + 0.5).astype(np.uint16)
        temporary = self._directory / f"{name}.tmp"
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez_compressed(file, alpha=levels)
            os.replace(temporary, self._directory / name)


def file_name(model: str, facts: Mapping[str, object]) -> str:
    """For people, and unmistakable."""
    digest = hashlib.sha256(repr([str(facts.get(fact)) for fact in IDENTITY]).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]', '_', model)[-60:]}-{digest[:16]}.npz"
