"""Python, its libraries, torch, the GPU with its driver, and memory.

Asks torch and the driver through probe.py, never in this process. Knows nothing of folders and models.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rmbgd import config
from rmbgd.doctor.findings import Finding, fail, ok, warn

PATIENCE = 120.0  # s; importing torch from a slow disk takes most of a minute
GIBI = 1 << 30
OWN_NEED = 1 * GIBI  # bytes beside the arena: two interpreters, torch, the small model
LIBRARIES = {  # module -> what to install
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "isal": "isal",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "simplejpeg": "simplejpeg",
    "structlog": "structlog",
    "watchdog": "watchdog",
}

# What NVML's errors mean to somebody who has to do something about it. The texts are nvmlErrorString's.
NVML_CAUSES = {
    "Library Not Found": (
        "no NVIDIA driver on this machine (libnvidia-ml.so.1 is not there)",
        "install the driver for the card, then reboot",
    ),
    "Driver Not Loaded": (
        "the NVIDIA kernel module is not loaded",
        "modprobe nvidia; if that fails, install the driver for this kernel and reboot",
    ),
    "Driver/library version mismatch": (
        "the NVIDIA driver was upgraded, but the old kernel module still runs",
        "reboot, or unload and load the nvidia modules",
    ),
    "Insufficient Permissions": (
        "this user may not open /dev/nvidia*",
        "add the user to the group that owns /dev/nvidia0 (video or render), or run as the service's user",
    ),
    "GPU is lost": ("the GPU has fallen off the bus", "power the machine off and on; look at cooling and power supply"),
}


def examine(settings: config.Config) -> Iterator[Finding]:
    yield python()
    yield libraries()
    torch = ask("torch")
    nvml = ask("nvml")
    yield judge_torch(torch)
    yield judge_gpu(settings.engine.device, torch, nvml)
    yield memory(settings)


def ask(question: str, *, patience: float = PATIENCE) -> dict[str, Any]:
    """The probe's answer; when there is none, {"error": ..., "text": ...} with the reason."""
    command = [sys.executable, "-m", "rmbgd.doctor.probe", question]
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "Timeout", "text": f"no answer within {patience:g} s"}
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        text = f"the asking process ended with {done.returncode}" + (f": {said[-1]}" if said else "")
        return {"error": "Crash", "text": text}
    return answer if isinstance(answer, dict) else {"error": "Nonsense", "text": repr(answer)}


def python() -> Finding:
    # Too old a Python does not come as far as this: the package says which it needs.
    return ok("python", f"{'.'.join(str(part) for part in sys.version_info[:3])} at {sys.executable}")


def libraries() -> Finding:
    missing = [package for module, package in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        return fail("libraries", f"missing: {', '.join(missing)}", f"{sys.executable} -m pip install rmbgd")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pillow", "watchdog"))
    return ok("libraries", versions)


def judge_torch(answer: Mapping[str, Any]) -> Finding:
    if "error" in answer:
        return fail("torch", f"{answer['error']}: {answer['text']}", f"{sys.executable} -m pip install rmbgd")
    built = f"CUDA {answer['built_for_cuda']}" if answer["built_for_cuda"] else "CPU only"
    return ok("torch", f"{answer['version']}, built for {built}, {answer['threads']} CPU threads")


def judge_gpu(device: str, torch: Mapping[str, Any], nvml: Mapping[str, Any]) -> Finding:
    """`device` as configured: with "cuda" a GPU is needed, with "auto" welcome, with "cpu" not looked for."""
    if device == "cpu":
        return ok("gpu", 'not used: engine.device is "cpu"')
    if torch.get("cuda"):
        return _judge_devices(device, torch, nvml)
    cause, hint = _why_no_gpu(torch, nvml)
    if device.startswith("cuda"):
        return fail("gpu", f'engine.device is "{device}", but {cause}', hint)
    # Somebody who has a card and does not get it wants to know; on a machine without one the CPU is simply right.
    has_card = bool(nvml.get("devices")) or os.path.exists("/proc/driver/nvidia")
    return warn("gpu", f"pictures are made by the CPU: {cause}", hint) if has_card else ok("gpu", f"CPU: {cause}")


def _judge_devices(device: str, torch: Mapping[str, Any], nvml: Mapping[str, Any]) -> Finding:
    devices = torch["devices"]
    wanted = int(device.partition(":")[2]) if ":" in device else None
    if wanted is not None and wanted >= len(devices):
        return fail("gpu", f'engine.device is "{device}", but there are {len(devices)}', 'count begins with "cuda:0"')
    if broken := [entry["name"] for entry in devices if not entry["computes"]]:
        return fail("gpu", f"{', '.join(broken)}: a sum on it came out wrong", "take the card out of service")
    texts = [f"{d['name']}, {d['memory_bytes'] / GIBI:.1f} GiB, capability {d['capability']}" for d in devices]
    if "error" in nvml:
        cause, hint = _nvml_cause(nvml)
        return warn("gpu", f"{'; '.join(texts)}; its health cannot be read: {cause}", hint)
    warmth = [f"{d['temperature']} C" for d in nvml["devices"] if d.get("temperature") is not None]
    return ok("gpu", f"{'; '.join(texts)}; driver {nvml['driver']}; {', '.join(warmth) or 'temperature unknown'}")


def _why_no_gpu(torch: Mapping[str, Any], nvml: Mapping[str, Any]) -> tuple[str, str]:
    if "error" in nvml:
        return _nvml_cause(nvml)
    if not nvml["devices"]:
        return f"the driver {nvml['driver']} sees no card", "look whether lspci shows one"
    name = nvml["devices"][0]["name"]
    if "error" in torch:
        return f"torch cannot be asked about {name}", "see the line about torch"
    if not torch["built_for_cuda"]:
        return f"{name} is there, but this torch is built for the CPU only", (
            "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu126"
        )
    cause = torch.get("cause", "no reason given")
    return f"{name} is there, but torch cannot use it: {cause}", (
        f"driver {nvml['driver']} may be too old for CUDA {torch['built_for_cuda']}, "
        "or CUDA_VISIBLE_DEVICES hides the card"
    )


def _nvml_cause(nvml: Mapping[str, Any]) -> tuple[str, str]:
    for text, cause in NVML_CAUSES.items():
        if text.lower() in str(nvml["text"]).lower():
            return cause
    return f"the NVIDIA driver cannot be asked ({nvml['error']}: {nvml['text']})", ""


def memory(settings: config.Config) -> Finding:
    with open("/proc/meminfo", encoding="ascii") as file:
        kibi = {line.split(":")[0]: int(line.split()[1]) for line in file if line.rstrip().endswith("kB")}
    total, available = kibi["MemTotal"] << 10, kibi["MemAvailable"] << 10
    need = settings.pipeline.arena_bytes + OWN_NEED
    text = f"{available / GIBI:.1f} of {total / GIBI:.1f} GiB available; about {need / GIBI:.1f} GiB needed"
    if need > total:
        return fail("memory", text, "lower pipeline.arena_bytes together with limits.pixels")
    if need > available:
        return warn("memory", text, "stop what else runs here, or lower pipeline.arena_bytes with limits.pixels")
    return ok("memory", text)
