"""Questions to torch and to the NVIDIA driver, asked in a process of their own and answered as JSON on stdout.

Runs as `python -m rmbgd.engine.device_query torch|nvml`, so that a library that hangs, crashes or fills gigabytes
does so elsewhere.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmbgd.engine.sensors.nvml import cards
from rmbgd.engine.visible_devices import VARIABLE, Card, hides_all, visible

PATIENCE = 120.0  # s; importing torch from a slow disk takes most of a minute
NVML_PATIENCE = 20.0  # s; a sleeping card takes a few to wake up


def ask(question: str, *, patience: float = PATIENCE) -> dict[str, Any]:
    """The probe's answer; when there is none, {"error": ..., "text": ...} with the reason."""
    command = [sys.executable, "-m", "rmbgd.engine.device_query", question]
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "Timeout", "text": f"no answer within {patience:g} s"}
    except OSError as error:  # this user may not execute that Python, or no process can be started
        return {"error": "Crash", "text": f"{sys.executable}: {error.strerror}"}
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        text = f"the asking process ended with {done.returncode}" + (f": {said[-1]}" if said else "")
        return {"error": "Crash", "text": text}
    return answer if isinstance(answer, dict) else {"error": "Nonsense", "text": repr(answer)}


def ask_torch() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    found: dict[str, Any] = {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda,
        "cuda": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
        "devices": [],
    }
    if not found["cuda"] and found["built_for_cuda"]:
        try:
            torch.cuda.init()
        except Exception as error:  # noqa: BLE001, whatever it is: its text is the cause that is asked for
            found["cause"] = str(error).splitlines()[0]
    for index in range(torch.cuda.device_count() if found["cuda"] else 0):
        properties = torch.cuda.get_device_properties(index)
        # That it can be listed does not say that it computes: wrong architectures fail at the first kernel.
        computes = torch.ones(1024, device=f"cuda:{index}").sum().item() == 1024.0
        capability = f"{properties.major}.{properties.minor}"
        memory = properties.total_memory
        facts = {"name": properties.name, "memory_bytes": memory, "capability": capability, "computes": computes}
        found["devices"].append(facts)
    return found


def ask_nvml() -> dict[str, Any]:
    nvml = importlib.import_module("pynvml")
    readings: dict[str, Callable[[Any], Any]] = {
        "memory_bytes": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "temperature": lambda handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    nvml.nvmlInit()  # left again when this process ends
    found: dict[str, Any] = {"driver": nvml.nvmlSystemGetDriverVersion(), "devices": []}
    for index, card in enumerate(cards(nvml)):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        device = {"name": nvml.nvmlDeviceGetName(handle), **asdict(card)}
        for key, read in readings.items():
            try:
                device[key] = read(handle)
            except nvml.NVMLError as error:  # what a board does not have is unknown, not healthy
                device |= {key: None, f"{key}_error": str(error)}
        found["devices"].append(device)
    return found


# --- whether this machine has a GPU that can compute

NODES = ("nvidia0", "nvhost-gpu", "nvgpu", "nvmap")  # one of them is there where a GPU's driver is, Jetson included
UNWELL = ("mismatch", "lost", "reset", "unknown error", "timeout")  # NVML's words for a GPU that is there all the same


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """`count` GPUs; `why`, in words for the operator."""

    count: int
    why: str


def visible_gpus(ask: Callable[..., Mapping[str, Any]] = ask, devices: Path = Path("/dev")) -> VisibleGpus:
    """What NVML sees and CUDA is shown; where there is no NVML, what torch sees. A GPU that is unwell is there."""
    variable = os.environ.get(VARIABLE)
    if hides_all(variable):
        return VisibleGpus(0, f'{VARIABLE}="{variable}" hides every GPU')
    answer = ask("nvml", patience=NVML_PATIENCE)
    if "error" not in answer:
        names = [str(each["name"]) for each in answer["devices"]]
        shown = visible(variable, [Card(each["uuid"], tuple(each["instances"])) for each in answer["devices"]])
        why = f"the driver {answer['driver']} sees {', '.join(names) or 'no card'}"
        if variable is not None:
            why += f', of which {VARIABLE}="{variable}" shows {", ".join(names[index] for index in shown) or "none"}'
        return VisibleGpus(len(shown), why)
    said = f"{answer['error']}: {answer['text']}"
    if any(word in said.lower() for word in UNWELL):
        return VisibleGpus(1, f"the driver says {said}")
    if not any((devices / node).exists() for node in NODES):
        return VisibleGpus(0, f"no driver's device below {devices} ({said})")
    answer = ask("torch", patience=PATIENCE)
    if found := [str(each["name"]) for each in answer.get("devices", [])]:
        return VisibleGpus(len(found), f"torch sees {', '.join(found)}")
    return VisibleGpus(0, f"torch sees none: {answer.get('cause') or answer.get('text') or 'no reason given'} ({said})")


def not_visible(asked: str, visible: VisibleGpus) -> str:
    """Why there is no GPU as `engine.device` insists on it; empty where it is, or does not insist."""
    if not asked.startswith("cuda") or visible.count > int(asked.partition(":")[2] or 0):
        return ""
    text = f'"{asked}" is asked for, but {visible.count} GPUs are visible: {visible.why}'
    return f'{text}; see `rmbgd doctor`, or set engine.device = "auto"'


def main() -> int:
    try:
        answer = {"torch": ask_torch, "nvml": ask_nvml}[sys.argv[1]]()
    except Exception as error:  # noqa: BLE001, the parent wants the cause, whatever it is
        answer = {"error": type(error).__name__, "text": str(error).strip() or type(error).__name__}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
