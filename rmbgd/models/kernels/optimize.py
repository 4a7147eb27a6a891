"""Compile the kernels that a model needs for the card of this machine, once, and keep them.

Compiled here, the engine starts without a C compiler. What one run compiles serves every batch and image size.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from rmbgd.errors import ModelError
from rmbgd.models.kernels.head import mattes
from rmbgd.models.kernels.resize import put_images
from rmbgd.models.kernels.runtime import VARIABLE, directory_here, triton_for, use_kernels
from rmbgd.models.load import LoadedModel, load_model
from rmbgd.models.registry import Architecture

PRECISIONS = ("float16", "bfloat16", "float32")
BATCHES = (1, 2)  # a batch of one is a case of its own to libraries; every other is like two
IMAGES = ((480, 640), (3000, 4000))  # (height, width): enlarged, and reduced


@dataclass(frozen=True)
class Optimised:
    """`layers` that have a kernel, `files` and `bytes` in the directory, `seconds` that compiling and running took."""

    directory: Path
    layers: int
    files: int
    bytes: int
    seconds: float


def optimise(source: str, models: Path, *, device: str, precision: str, patch_order: str = "auto") -> Optimised:
    """Raises ModelError, in one line: no CUDA device, kernels that do not compile there, or a model that is not here.

    device     "cuda" or "cuda:N"
    precision  one of PRECISIONS: what the service is going to compute in
    """
    place = _card(device)
    torch.cuda.set_device(place)  # Triton launches on the current one
    try:
        directory = directory_here(models, place)
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    except ImportError:
        raise ModelError("optimize: Triton is not installed; it comes with torch's CUDA wheels") from None
    except OSError as error:
        raise ModelError(f"optimize: {error.filename}: cannot be written: {error.strerror}") from error
    os.environ[VARIABLE] = str(directory)
    found = triton_for(place)
    if not found.usable:
        raise ModelError(f"optimize: kernels cannot be used here: {found.why}")
    dtype: torch.dtype = getattr(torch, precision)
    loaded = load_model(source, device=place, dtype=dtype, models=models, patch_order=patch_order)
    began = time.monotonic()
    with torch.inference_mode():
        layers = use_kernels(loaded.module, triton=True)
        run(loaded, place, dtype)
    files = [path for path in directory.rglob("*") if path.is_file()]
    return Optimised(
        directory, layers, len(files), sum(path.stat().st_size for path in files), round(time.monotonic() - began, 1)
    )


def run(loaded: LoadedModel, device: torch.device, dtype: torch.dtype, *, triton: bool = True) -> None:
    """Images through the network as the engine sends them. Raises ModelError when alpha is not finite."""
    provenance = loaded.provenance  # checks the digest of what is about to run
    kind = torch.float32 if provenance.architecture == Architecture.BIREFNET else dtype
    ones = torch.ones(3, device=device)
    for batch in BATCHES:
        shape = (batch, 3, *loaded.input_size)
        inputs = torch.zeros(shape, dtype=kind, device=device).contiguous(memory_format=torch.channels_last)
        images = [torch.zeros((*size, 3), dtype=torch.uint8, device=device) for size in IMAGES[:batch]]
        put_images(images, inputs, ones / 255, -ones / 2, triton=triton)
        _, finite = mattes(loaded.module, inputs, triton=triton)
        if not bool(finite.all()):
            raise ModelError(f"optimize: {provenance.model}: alpha of a black image is not finite in {kind}")


def _card(device: str) -> torch.device:
    place = torch.device(device)
    if place.type != "cuda" or not torch.cuda.is_available():
        raise ModelError("optimize: there is no CUDA device here; without one there is nothing to compile")
    index = place.index or 0
    if index >= torch.cuda.device_count():
        raise ModelError(f"optimize: there is no cuda:{index}; this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", index)
