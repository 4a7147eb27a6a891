"""Python, its libraries, torch, the GPU with its driver, and memory.

Asks torch and the driver through probe.py, never in this process. Knows nothing of folders and models.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rmbgd.clock import SystemClock
from rmbgd.config import load as config
from rmbgd.engine.device_query import ask
from rmbgd.service.safe_mode import SafeMode

# --- A need and what was found of it. Looks at nothing itself.


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """`text` says what was found and why; `hint` what to do about it, empty when nothing is to be done."""

    need: str
    state: State
    text: str
    hint: str = ""


def ok(need: str, text: str) -> Finding:
    return Finding(need, State.OK, text)


def warn(need: str, text: str, hint: str = "") -> Finding:
    return Finding(need, State.WARN, text, hint)


def fail(need: str, text: str, hint: str = "") -> Finding:
    return Finding(need, State.FAIL, text, hint)


def healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.state is not State.FAIL for finding in findings)


# --- Python, its libraries, torch, the GPU with its driver, and memory.


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
    return warn("gpu", f"images are made by the CPU: {cause}", hint) if has_card else ok("gpu", f"CPU: {cause}")


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


# --- systemd, the unit and the notify library. Asks systemctl, and changes nothing.


UNIT = "rmbgd.service"
USER = "rmbgd"
OLDEST = 249  # systemd of Ubuntu 22.04 and JetPack 6; the unit uses nothing newer
PATIENCE = 10.0  # s


def examine_manager(settings: config.Config) -> Iterator[Finding]:
    yield systemd()
    yield starts(settings)
    yield notify_library()
    yield user()


def systemd() -> Finding:
    if not os.path.isdir("/run/systemd/system"):
        return warn("systemd", "not the init system here", "start `rmbgd run` otherwise, and again whenever it ends")
    version = _systemctl("--version").split()
    number = int(version[1]) if len(version) > 1 and version[1].isdigit() else 0
    if number < OLDEST:
        return warn("systemd", f"version {number} is older than {OLDEST}", "the unit may use settings it does not know")
    properties = _systemctl("show", UNIT, "-p", "LoadState,ActiveState,SubState")
    shown = dict(line.partition("=")[::2] for line in properties.splitlines())
    if shown.get("LoadState") != "loaded":
        return warn("systemd", f"version {number}; {UNIT} is not installed", "see 'Install' in README.md")
    return ok("systemd", f"version {number}; {UNIT} is {shown.get('ActiveState')} ({shown.get('SubState')})")


def _systemctl(*arguments: str) -> str:
    command = shutil.which("systemctl")
    if command is None:
        return ""
    try:
        done = subprocess.run([command, *arguments], capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode(errors="replace")


def starts(settings: config.Config) -> Finding:
    """Whether the service keeps dying, by the record that it and the exit recorder keep."""
    record = SafeMode(settings, SystemClock())
    died = ", ".join(record.causes())
    if record.safe:
        return warn(
            "starts",
            f"the last ones died ({died}): the next is in safe mode, on the CPU with the embedded model",
            "`journalctl -u rmbgd` from before service.safe_mode says why; it leaves safe mode by itself",
        )
    if died:
        return warn("starts", f"died within {settings.service.safe_window:g} s: {died}", "see `journalctl -u rmbgd`")
    return ok("starts", "none died lately")


def notify_library() -> Finding:
    if not _installed("systemd.daemon"):
        return warn(
            "systemd-python",
            "missing: the service runs by hand, but refuses to start under systemd",
            "pip install 'rmbgd[systemd]'; needs libsystemd-dev, pkg-config and a C compiler",
        )
    return ok("systemd-python", "present")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def user() -> Finding:
    """Trials by root prove little: root may write everywhere, the service may not."""
    try:
        wanted = pwd.getpwnam(USER).pw_uid
    except KeyError:
        return warn("user", f"there is no user '{USER}'", "systemd-sysusers makes it from systemd/rmbgd.sysusers")
    if os.geteuid() != wanted:
        return warn(
            "user", f"tried as user {os.geteuid()}, the service runs as '{USER}'", f"runuser -u {USER} -- rmbgd doctor"
        )
    return ok("user", USER)
