"""Whether this machine has a GPU that can compute, asked in a process of its own: a driver that hangs, hangs there.

Does not judge its health, and never imports torch or the driver's library into the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.doctor.compute import ask

NVML_PATIENCE = 20.0  # s; a sleeping card takes a few to wake up
TORCH_PATIENCE = 120.0  # s; importing torch from a slow disk takes most of a minute
NODES = ("nvidia0", "nvhost-gpu", "nvgpu", "nvmap")  # one of them is there where a GPU's driver is, Jetson included
UNWELL = ("mismatch", "lost", "reset", "unknown error", "timeout")  # NVML's words for a GPU that is there all the same

Ask = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Visible:
    """`count` GPUs; `why`, in words for the operator."""

    count: int
    why: str


def visible_gpus(ask: Ask = ask, devices: Path = Path("/dev")) -> Visible:
    """What NVML sees; where the driver has no NVML, what torch sees. A GPU that is unwell is there."""
    answer = ask("nvml", patience=NVML_PATIENCE)
    if "error" not in answer:
        names = [str(each["name"]) for each in answer["devices"]]
        if not names:
            return Visible(0, f"the driver {answer['driver']} sees no card")
        return Visible(len(names), f"the driver {answer['driver']} sees {', '.join(names)}")
    said = f"{answer['error']}: {answer['text']}"
    if any(word in said.lower() for word in UNWELL):
        return Visible(1, f"the driver says {said}")
    if not any((devices / node).exists() for node in NODES):
        return Visible(0, f"no driver's device below {devices} ({said})")
    answer = ask("torch", patience=TORCH_PATIENCE)
    found = [str(each["name"]) for each in answer.get("devices", [])]
    if found:
        return Visible(len(found), f"torch sees {', '.join(found)}")
    return Visible(0, f"torch sees none: {answer.get('cause') or answer.get('text') or 'no reason given'} ({said})")


def nvml_target(index: int, order: str | None) -> tuple[int, str | None]:
    """(index, uuid) for NVML of the device that CUDA counts as `index`; `order` is CUDA_VISIBLE_DEVICES.

    Both count in PCI order, since the engine's process is told so; the variable hides and reorders for CUDA alone.
    """
    entries = [entry.strip() for entry in (order or "").split(",") if entry.strip()]
    if index >= len(entries):
        return index, None
    entry = entries[index]
    return (int(entry), None) if entry.isdigit() else (index, entry)
