"""TensorRT engines: a network's ONNX export, compiled for one card, in float16. The service does not use them.

`bench gpu` races one against the GPU backend, which decides whether it becomes the way that images go. An engine runs
on cards of the kind that it was built on, under the release of TensorRT that built it, with batches of one size only.
"""

from __future__ import annotations

import importlib
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmbgd.errors import ModelError, missing_extra
from rmbgd.fs import atomic_write
from rmbgd.models.checkpoint import sha256_of
from rmbgd.models.onnx_export import export_onnx
from rmbgd.models.store import resolve
from rmbgd.paths import cache_directory

WORKSPACE_BYTES = 8 << 30  # of the device, that kernels may take while they are chosen


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """`seconds` that building took; 0 for a file that was there."""

    path: Path
    bytes: int
    seconds: float


def build(
    source: str, models: Path, *, card: torch.device, batch: int, patch_order: str = "auto", again: bool = False
) -> BuiltEngine:
    """Build an engine for batches of exactly `batch`, unless it is there; takes minutes.

    source, models, patch_order  as `load_model` takes them
    Raises ConfigError without TensorRT, ModelError for what it refuses, OSError where the file cannot be written.
    """
    trt = tensorrt()
    path = engine_file(source, models, card=torch.cuda.get_device_name(card), version=trt.__version__, batch=batch)
    if path.exists() and not again:
        return BuiltEngine(path, path.stat().st_size, 0.0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:  # with its weights it is larger than a message of ONNX may be
        onnx = Path(scratch, "network.onnx")
        export_onnx(source, models, onnx, batch=batch, patch_order=patch_order)
        torch.cuda.set_device(card)
        data = _compiled(trt, onnx)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return BuiltEngine(path, len(data), round(time.monotonic() - began, 1))


def engine_file(source: str, models: Path, *, card: str, version: str, batch: int) -> Path:
    """Where the engine of these weights lies, beside compiled kernels: another one for all that it depends on."""
    model = resolve(source, models)
    words = (model.name, sha256_of(model.weights)[:16], f"b{batch}", card, f"tensorrt-{version}")
    name = "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", word).strip("-.")[-60:] for word in words)
    return cache_directory() / "tensorrt" / f"{name}.engine"


def tensorrt() -> Any:
    """The module. Raises ConfigError where it is not installed, or chooses no types itself."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise missing_extra("tensorrt", "tensorrt", "a TensorRT engine") from error
    if not hasattr(trt.BuilderFlag, "FP16"):
        raise ModelError(f"TensorRT {trt.__version__} does not choose float16 by itself: pip install 'tensorrt<11'")
    return trt


def load(path: Path) -> Any:
    """The engine of a file, on the current device. Raises ConfigError, and ModelError for a file that is none."""
    trt = tensorrt()
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ModelError(f"{path}: TensorRT does not read this engine; remove it, and build it again")
    return engine


def _compiled(trt: Any, onnx: Path) -> bytes:
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ModelError(f"TensorRT does not read the network: {'; '.join(errors or said)}")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise ModelError(f"TensorRT builds no engine: {'; '.join(said) or 'it does not say why'}")
    return bytes(data)
