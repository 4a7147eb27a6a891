"""Whether the Triton kernels can be used here, and if not, why, in words for the log. Never raises, chooses no path.

Imports Triton only when asked, and believes it only after a kernel has been compiled and has computed: a missing C
compiler, an architecture that this release does not know and a broken cache are all found here, before any image.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

Wanted = Literal["auto", "on", "off"]

# Ampere: the first with asynchronous copies and bfloat16 matrix units, for which the tiles were chosen.
CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Availability:
    """`why`: one clause for a log or a table, said in both cases."""

    usable: bool
    why: str


def triton_for(device: torch.device | str, wanted: Wanted = "auto") -> Availability:
    """Whether to run Triton kernels on `device`.

    wanted  "off": no; "auto": where a CUDA device of capability 8.0 or more can; "on": like auto, and also on a CPU
            where Triton's interpreter is switched on (TRITON_INTERPRET=1), which is for tests: it is slow
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
    interpreted = bool(triton.knobs.runtime.interpret)
    if device.type == "cpu":
        if wanted == "on" and interpreted:
            return Availability(True, f"Triton {triton.__version__} in its interpreter")
        return Availability(False, "a CPU")
    try:
        capability = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError) as error:
        return Availability(False, f"no usable CUDA device: {_line(error)}")
    if capability < CAPABILITY:
        return Availability(False, f"{name} has capability {capability[0]}.{capability[1]}, the kernels need 8.0")
    if refusal := _trial(device):
        return Availability(False, refusal)
    return Availability(True, f"Triton {triton.__version__} on {name}")


def _trial(device: torch.device) -> str:
    """Compile and run the smallest kernel: what went wrong, or nothing."""
    try:
        with torch.cuda.device(device):  # Triton launches on the current one
            answer = importlib.import_module("rmbgd.models.kernels.trial_kernel").doubled(
                torch.arange(8, device=device)
            )
    # Triton raises what its parts raise: subprocess errors, OSError, its own. Each means: do without.
    except Exception as error:  # noqa: BLE001
        return f"a kernel does not compile or run: {_line(error)}; see rmbgd models optimize"
    if answer.tolist() != list(range(0, 16, 2)):
        return "a kernel computes nonsense"
    return ""


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


# --- Where compiled kernels lie, and which directory this process uses. Compiles nothing.


VARIABLE = "TRITON_CACHE_DIR"


def directory_for(models: Path, *, triton: str, torch: str, card: str, capability: tuple[int, int]) -> Path:
    """The directory of one combination: another release or card never reads what was compiled for this one."""
    words = (f"triton-{triton}", f"torch-{torch}", card, f"{capability[0]}.{capability[1]}")
    return models / "kernels" / "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", word).strip("-") for word in words)


def directory_here(models: Path, device: torch.device) -> Path:
    """That of the releases that are installed and of the card. Raises ImportError, or RuntimeError without a card."""
    return directory_for(
        models,
        triton=importlib.metadata.version("triton"),
        torch=str(torch.__version__),
        card=torch.cuda.get_device_name(device),
        capability=torch.cuda.get_device_capability(device),
    )


def use_cache(models: Path, device: torch.device) -> Path | None:
    """Let Triton find what was compiled for this card, where it was: the directory, or None.

    Call it before the first kernel, in the process that runs kernels: it sets that process's environment.
    """
    if device.type != "cuda":
        return None
    try:
        found = directory_here(models, device)
    except (ImportError, RuntimeError, AssertionError):
        return None
    if not found.is_dir():
        return None
    os.environ[VARIABLE] = str(found)
    return found


# --- Tells the layers of a network whether to run their kernels. Does not know which layers have one; they say so.


@runtime_checkable
class HasKernel(Protocol):
    """A layer that can run as a Triton kernel."""

    def use_kernels(self, *, triton: bool) -> None:
        """Choose, and make once what the kernel reads besides the weights. Weights must be in place."""
        ...


def use_kernels(network: nn.Module, *, triton: bool) -> int:
    """Choose for every layer of `network`: how many have a kernel. Networks begin without.

    Call it when the weights lie on their device in their type; again after either changes. The kernels' own tensors
    are not saved with the network. With 0 the network is one for which nobody wrote a kernel.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, HasKernel)]
    for layer in layers:
        layer.use_kernels(triton=triton)
    return len(layers)
