"""Questions to torch and to the NVIDIA driver, asked in a process of their own and answered as JSON on stdout.

Runs as `python -m rmbgd.doctor.probe torch|nvml`, so that a library that hangs, crashes or fills gigabytes does so
elsewhere. Does not judge what it finds: compute.py does.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any


def ask_torch() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    found: dict[str, Any] = {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda,
        "cuda": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
        "devices": [],
    }
    if not found["cuda"]:
        if found["built_for_cuda"]:
            try:
                torch.cuda.init()
            except Exception as error:  # noqa: BLE001, whatever it is: its text is the cause that is asked for
                found["cause"] = str(error).splitlines()[0]
        return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        # That it can be listed does not say that it computes: wrong architectures fail at the first kernel.
        total = float(torch.ones(1024, device=f"cuda:{index}").sum().item())
        found["devices"].append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
                "computes": total == 1024.0,
            }
        )
    return found


def ask_nvml() -> dict[str, Any]:
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        devices = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            device: dict[str, Any] = {"name": nvml.nvmlDeviceGetName(handle)}
            for key, read in _readings(nvml, handle).items():
                try:
                    device[key] = read()
                except nvml.NVMLError as error:
                    device[key] = None  # what a board does not have is unknown, not healthy
                    device[f"{key}_error"] = str(error)
            devices.append(device)
        return {"driver": driver, "devices": devices}
    finally:
        nvml.nvmlShutdown()


def _readings(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    return {
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }


QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {"torch": ask_torch, "nvml": ask_nvml}


def main() -> int:
    try:
        answer = QUESTIONS[sys.argv[1]]()
    except Exception as error:  # noqa: BLE001, the parent wants the cause, whatever it is
        answer = {"error": type(error).__name__, "text": str(error).strip() or type(error).__name__}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
