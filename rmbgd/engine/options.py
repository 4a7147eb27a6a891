"""What the parent asks of the engine in the child: plain values, from JSON. Knows no torch and no setting's default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEBI = 1 << 20


@dataclass(frozen=True)
class ModelChoice:
    """One model to load: see models.weights.load_model."""

    source: str
    patch_order: str = "auto"
    sha256: str = ""


@dataclass(frozen=True)
class Options:
    """What the parent asks for. What stands below the line is for GPUs alone.

    models            by the name that Work.model uses
    models_directory  where fetched weights lie
    device            "cpu", "cuda:0", ...
    precision         auto (float16 on a GPU, else float32), float32, float16, bfloat16, float8
    threads           0: one per core that the process may use
    batch_maximum     images; the largest size that may be offered

    graphs            replay recorded launches instead of launching kernel by kernel
    kernels           auto or off: kernels in Triton
    staging_bytes     of the device, for images on their way
    pinned_bytes      of the arena, page-locked, at most
    spare_bytes       of the device, to be left free
    """

    models: Mapping[str, ModelChoice]
    models_directory: Path
    device: str = "cpu"
    precision: str = "auto"
    threads: int = 0
    batch_maximum: int = 8
    graphs: bool = True
    kernels: str = "auto"
    staging_bytes: int = 128 * MEBI
    pinned_bytes: int = 256 * MEBI
    spare_bytes: int = 1024 * MEBI

    @staticmethod
    def from_json(options: Mapping[str, Any]) -> Options:
        models = {name: ModelChoice(**choice) for name, choice in options["models"].items()}
        return Options(**{**options, "models": models, "models_directory": Path(options["models_directory"])})
