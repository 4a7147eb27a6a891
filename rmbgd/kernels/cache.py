"""Where compiled kernels lie, and which directory this process uses. Compiles nothing.

`rmbgd models optimize` fills <models>/kernels/<triton, torch, card>; a process that runs kernels there needs no C
compiler and no minutes. Without that directory Triton keeps its own habits: TRITON_CACHE_DIR, else the home directory.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

import torch

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
