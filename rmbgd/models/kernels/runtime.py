"""Whether Triton kernels run on a device, and why not; compiling ahead.

Triton is trusted only after a kernel has computed: a missing C compiler, an architecture that this release does not
know and a broken cache are all found here, before any image.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from rmbgd.errors import ModelError
from rmbgd.models.finish import FinishJob, Fitting, Method
from rmbgd.models.inference import mattes, put_images
from rmbgd.models.layers import KernelLayer
from rmbgd.models.load import LoadedModel, load_model
from rmbgd.models.registry import Architecture
from rmbgd.paths import triton_places

Wanted = Literal["auto", "on", "off"]

# Ampere: the first with asynchronous copies and bfloat16 matrix units, for which the tiles were chosen.
CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Availability:
    """`why`: one clause for a log or a table, whether usable or not."""

    usable: bool
    why: str


def triton_for(device: torch.device | str, wanted: Wanted = "auto") -> Availability:
    """Whether to run Triton kernels on `device`. Never raises.

    "auto": where a CUDA device of capability 8.0 or more can; "on": also on a CPU in Triton's interpreter, for tests
    """
    device = torch.device(device)
    if wanted == "off":
        return Availability(False, "switched off")
    if device.type not in {"cpu", "cuda"}:
        return Availability(False, f"no Triton kernels for {device.type}")
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return Availability(False, f"Triton is not installed or does not load ({error})")
    if device.type == "cpu":
        if wanted == "on" and triton.knobs.runtime.interpret:
            return Availability(True, f"Triton {triton.__version__} in its interpreter")
        return Availability(False, "a CPU")
    try:
        capability = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError) as error:
        return Availability(False, f"no usable CUDA device: {_line(error)}")
    if capability < CAPABILITY:
        return Availability(False, f"{name} has capability {capability[0]}.{capability[1]}, the kernels need 8.0")
    refusal = _trial(device)
    return Availability(not refusal, refusal or f"Triton {triton.__version__} on {name}")


def _trial(device: torch.device) -> str:
    """Compile and run the smallest kernel: what went wrong, or nothing."""
    try:
        with torch.cuda.device(device):  # Triton launches on the current one
            norm, x = nn.LayerNorm(8, device=device), torch.arange(8.0, device=device)
            output = importlib.import_module("rmbgd.models.kernels.norm").layer_norm(x, norm, torch.float32)
    # Triton raises what its parts raise: subprocess errors, OSError, its own. Each means: do without.
    except Exception as error:  # noqa: BLE001
        return f"a kernel does not compile or run: {_line(error)}; see rmbgd models optimize"
    return "" if torch.allclose(output, norm(x), atol=1e-3) else "a kernel computes nonsense"


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def use_kernels(network: nn.Module, *, triton: bool) -> int:
    """Choose for every layer of `network`: how many have a kernel. Networks begin without.

    Call it when the weights lie on their device in their type; again after either changes.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, KernelLayer)]
    for layer in layers:
        layer.use_kernels(triton=triton)
    return len(layers)


# --- Compiling ahead, so that the engine starts without a C compiler. One run serves every batch and image size.

BATCHES = (1, 2)  # a batch of one is a case of its own to libraries; every other is like two
IMAGES = ((480, 640), (3000, 4000))  # (height, width): enlarged, and reduced
FITTING = Fitting(1, 1.0, 1.0, 0.5, scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0))
FINISH = Method(iterations=1, stiffness=0.01, softest=0.0, hardest=1.0, fitting=FITTING)


@dataclass(frozen=True)
class CompiledKernels:
    directory: Path
    layers: int  # that have a kernel
    files: int
    bytes: int
    seconds: float  # of compiling and running


def optimise(source: str, models: Path, *, device: str, precision: str, patch_order: str = "auto") -> CompiledKernels:
    """Compile the kernels that a model needs for `device`, "cuda" or "cuda:N", to where this user's engine loads them.

    Raises ModelError: no CUDA device, kernels that do not compile there, or a model that is not here.
    """
    card = card_of(device)
    torch.cuda.set_device(card)  # Triton launches on the current one
    os.environ |= triton_places()
    directory = Path(os.environ["TRITON_CACHE_DIR"])
    found = triton_for(card)
    if not found.usable:
        raise ModelError(f"optimize: kernels cannot be used here: {found.why}")
    dtype: torch.dtype = getattr(torch, precision)
    loaded = load_model(source, device=card, dtype=dtype, models=models, patch_order=patch_order)
    began = time.monotonic()
    with torch.inference_mode():
        layers = use_kernels(loaded.module, triton=True)
        run(loaded, card, dtype)
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return CompiledKernels(directory, layers, len(sizes), sum(sizes), round(time.monotonic() - began, 1))


def run(loaded: LoadedModel, device: torch.device, dtype: torch.dtype, *, triton: bool = True) -> None:
    """Images through the network as the engine sends them. Raises ModelError when alpha is not finite."""
    provenance = loaded.provenance  # checks the digest of what is about to run
    kind = torch.float32 if provenance.architecture == Architecture.BIREFNET else dtype
    ones = torch.ones(3, device=device)
    for batch in BATCHES:
        shape = (batch, 3, *loaded.input_size)
        inputs = torch.zeros(shape, dtype=kind, device=device).contiguous(memory_format=torch.channels_last)
        images = [torch.zeros((*size, 3), dtype=torch.uint8, device=device) for size in IMAGES[:batch]]
        put_images(images, inputs, ones / 255, -ones / 2, filter=loaded.filter, triton=triton)
        alpha, finite = mattes(loaded.module, inputs, triton=triton)
        if not bool(finite.all()):
            raise ModelError(f"optimize: {provenance.model}: alpha of a black image is not finite in {kind}")
    if triton:  # levels of every tile, and an image that is refined
        finish = importlib.import_module("rmbgd.models.kernels.finish")
        height, width = loaded.input_size
        jobs = [
            FinishJob(40, 80, 0, -1, 48, 4, 0, (40, 80)),
            FinishJob(height, width, 0, -1, 0, 1, 0, (0, 0), refined=True),
        ]
        planes = torch.zeros(max(1 << 16, 3 * height * width), dtype=torch.uint8, device=device)
        finish.finish_images(planes, alpha, inputs, jobs, FINISH)


def card_of(device: str) -> torch.device:
    """Raises ModelError where there is no such GPU."""
    card = torch.device(device)
    if card.type != "cuda" or not torch.cuda.is_available():
        raise ModelError("optimize: there is no CUDA device here; without one there is nothing to compile")
    index = card.index or 0
    if index >= torch.cuda.device_count():
        raise ModelError(f"optimize: there is no cuda:{index}; this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", index)
