"""Whether the Triton kernels can be used here, and if not, why, in words for the log. Never raises, chooses no path.

Imports Triton only when asked, and believes it only after a kernel has been compiled and has computed: a missing C
compiler, an architecture that this release does not know and a broken cache are all found here, before any picture.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

import torch

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
            answer = importlib.import_module("rmbgd.kernels.trial_kernel").doubled(torch.arange(8, device=device))
    # Triton raises what its parts raise: subprocess errors, OSError, its own. Each means: do without.
    except Exception as error:  # noqa: BLE001
        return f"a kernel does not compile or run: {_line(error)}; see rmbgd models optimize"
    if answer.tolist() != list(range(0, 16, 2)):
        return "a kernel computes nonsense"
    return ""


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
