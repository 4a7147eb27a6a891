"""Checks Python, its libraries, torch, the GPU and its driver, memory and systemd.

Torch and the driver are asked in a process of their own, so that neither can hang or crash the doctor.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rmbgd.clock import SystemClock
from rmbgd.config.extras import EXTRAS, is_installed, missing_extras
from rmbgd.config.load import Config
from rmbgd.engine.device_query import NODES, ask, not_visible, visible_gpus
from rmbgd.engine.wiring import PRECISION_FOLDER
from rmbgd.fs import host_memory
from rmbgd.paths import DEFAULT_CONFIG
from rmbgd.service.safe_mode import SafeMode
from rmbgd.service.unit_files import UNIT
from rmbgd.wording import computing

GIBI = 1 << 30
OWN_NEED = 1 * GIBI  # bytes beside the arena: two interpreters, torch, the small model
LIBRARIES = ("PIL", "cv2", "isal", "numpy", "pydantic", "rich", "safetensors", "simplejpeg", "structlog", "watchdog")
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless"}  # what to install where it has another name
INSTALL = f"{sys.executable} -m pip install rmbgd"
TORCH = f"{sys.executable} -m pip install --force-reinstall 'torch<2.14' --index-url https://download.pytorch.org/whl"
CUDA_BUILD = f"a CUDA build uses it: {TORCH}/cu126; docs/install.md says which one fits the driver"
CPU_BUILD = f"the CPU build is 0.2 instead of 2.7 GB to download: {TORCH}/cpu"
USER = "rmbgd"
SYSTEMD_RUNS = "/run/systemd/system"  # sd_booted(3)
OLDEST_SYSTEMD = 249  # of Ubuntu 22.04 and JetPack 6; the unit uses nothing newer
SYSTEMCTL_TIMEOUT = 10.0  # s

# NVML's errors, in words that say what to do. The texts are nvmlErrorString's.
NVML_CAUSES = {
    "Library Not Found": (
        "no NVIDIA driver on this machine (libnvidia-ml.so.1 is missing)",
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
    "GPU is lost": ("the GPU has fallen off the bus", "power the machine off and on; check cooling and power supply"),
}


class CheckState(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`text` says what was found and why; `hint` what to do about it, empty when nothing is to be done."""

    need: str
    state: CheckState
    text: str
    hint: str = ""


def ok(need: str, text: str) -> CheckResult:
    return CheckResult(need, CheckState.OK, text)


def warn(need: str, text: str, hint: str = "") -> CheckResult:
    return CheckResult(need, CheckState.WARN, text, hint)


def fail(need: str, text: str, hint: str = "") -> CheckResult:
    return CheckResult(need, CheckState.FAIL, text, hint)


def healthy(results: Sequence[CheckResult]) -> bool:
    return all(result.state is not CheckState.FAIL for result in results)


def check_compute(config: Config) -> Iterator[CheckResult]:
    # Too old a Python does not come this far: pip refuses to install the package there.
    yield ok("python", f"{'.'.join(str(part) for part in sys.version_info[:3])} at {sys.executable}")
    yield libraries()
    yield extras(config)
    torch, nvml = ask("torch"), ask("nvml")
    yield judge_torch(config.engine.device, torch, nvml)
    yield judge_gpu(config.engine.device, torch, nvml)
    yield precision(config)
    yield memory(config)


def libraries() -> CheckResult:
    if missing := [PACKAGES.get(module, module) for module in LIBRARIES if not is_installed(module)]:
        return fail("libraries", f"missing: {', '.join(missing)}", INSTALL)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pillow", "watchdog"))
    return ok("libraries", versions)


def extras(config: Config) -> CheckResult:
    """Optional libraries; a failure only where a setting needs one."""
    here = [extra for extra, (module, _) in EXTRAS.items() if is_installed(module)]
    absent = [f"{extra} ({purpose})" for extra, (_, purpose) in EXTRAS.items() if extra not in here]
    text = f"installed: {', '.join(here) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    if missing := missing_extras(config):
        return fail("extras", text, "; ".join(missing))
    return ok("extras", text)


def judge_torch(device: str, torch: Mapping[str, Any], nvml: Mapping[str, Any]) -> CheckResult:
    """Which torch this is, and whether it fits the machine: a CUDA build, or one for the CPU."""
    if "error" in torch:
        return fail("torch", f"{torch['error']}: {torch['text']}", INSTALL)
    cuda = torch["built_for_cuda"]
    text = f"{torch['version']}, built for {f'CUDA {cuda}' if cuda else 'the CPU only'}, {torch['threads']} CPU threads"
    card = torch["cuda"] or _has_card(nvml)
    if not cuda and card and device != "cpu":
        return warn("torch", f"{text}; but this machine has a GPU", CUDA_BUILD)
    if cuda and not card:
        return CheckResult("torch", CheckState.OK, f"{text}; it works, but there is no GPU here", CPU_BUILD)
    return ok("torch", f"{text}; fits this machine")


def _has_card(nvml: Mapping[str, Any]) -> bool:
    nodes = ("/proc/driver/nvidia", *(f"/dev/{node}" for node in NODES))
    return bool(nvml.get("devices")) or any(map(os.path.exists, nodes))


def judge_gpu(device: str, torch: Mapping[str, Any], nvml: Mapping[str, Any]) -> CheckResult:
    """`device` as configured: with "cuda" a GPU is needed, with "auto" welcome, with "cpu" not looked for."""
    if device == "cpu":
        return ok("gpu", 'not used: engine.device is "cpu"')
    if torch.get("cuda"):
        return _judge_devices(device, torch, nvml)
    cause, hint = _why_no_gpu(torch, nvml)
    if device.startswith("cuda"):
        return fail("gpu", f'engine.device is "{device}", but {cause}', hint)
    # On a machine with a card that cannot be used, this is a problem; on one without, the CPU is simply right.
    text = f"images are computed on the CPU: {cause}"
    return warn("gpu", text, hint) if _has_card(nvml) else ok("gpu", f"CPU: {cause}")


def missing_gpu(config: Config) -> str:
    """Why a service that insists on a GPU would not start; empty where it would. Takes a second, with a GPU."""
    insists = config.engine.device.startswith("cuda") and not config.health.require_gpu
    return not_visible(config.engine.device, visible_gpus()) if insists else ""


def _judge_devices(device: str, torch: Mapping[str, Any], nvml: Mapping[str, Any]) -> CheckResult:
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
        return f"the driver {nvml['driver']} sees no card", "check whether lspci shows one"
    name = nvml["devices"][0]["name"]
    if "error" in torch:
        return f"torch cannot be asked about {name}", "see the line about torch"
    if not torch["built_for_cuda"]:
        return f"{name} is there, but this torch is built for the CPU only", "see the line about torch"
    cuda = torch["built_for_cuda"]
    hint = f"driver {nvml['driver']} may be too old for CUDA {cuda}, or CUDA_VISIBLE_DEVICES hides the card"
    return f"{name} is there, but torch cannot use it: {torch.get('cause', 'no reason given')}", hint


def _nvml_cause(nvml: Mapping[str, Any]) -> tuple[str, str]:
    for text, cause in NVML_CAUSES.items():
        if text.lower() in str(nvml["text"]).lower():
            return cause
    return f"the NVIDIA driver cannot be asked ({nvml['error']}: {nvml['text']})", ""


def precision(config: Config) -> CheckResult:
    """What computes each model on the CPU, and in which precision: what the last start that measured it has kept."""
    if (configured := config.engine.precision_used) != "auto":
        return ok("precision", f"{configured} on the CPU, too: as configured in engine.precision")
    folder = config.service.state_directory / PRECISION_FOLDER
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("*.json"), key=os.path.getmtime):  # the newest of a model is the last
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                kept = json.loads(path.read_bytes())
                facts = {**kept["key"], "precision": kept["precision"], "precision_because": kept["because"]}
                found[str(facts["model"])] = computing(facts)
    if not found:
        return ok("precision", "not measured on the CPU yet, or float32, as the processor has no bfloat16 products")
    return ok("precision", "; ".join(f"{model} {how}" for model, how in found.items()))


def memory(config: Config) -> CheckResult:
    host = host_memory()
    need = config.pipeline.arena_bytes + OWN_NEED
    text = f"{host.available / GIBI:.1f} of {host.total / GIBI:.1f} GiB available; about {need / GIBI:.1f} GiB needed"
    if need > host.total:
        return fail("memory", text, "lower pipeline.arena_bytes together with limits.pixels")
    if need > host.available:
        return warn("memory", text, "stop other programs, or lower pipeline.arena_bytes with limits.pixels")
    return ok("memory", text)


def check_manager(config: Config, path: Path) -> Iterator[CheckResult]:
    """Of the configuration at `path`: only the machine's has to do with the machine's systemd and user."""
    yield starts(config)
    if path == DEFAULT_CONFIG:
        yield systemd()
        if os.path.isdir(SYSTEMD_RUNS):
            yield user()


def systemd() -> CheckResult:
    if not os.path.isdir(SYSTEMD_RUNS):
        return warn("systemd", "not the init system here", "start `rmbgd run` otherwise, and restart it when it ends")
    version = systemctl("--version").split()
    number = int(version[1]) if len(version) > 1 and version[1].isdigit() else 0
    if number < OLDEST_SYSTEMD:
        hint = "the unit may use settings that it does not know"
        return warn("systemd", f"version {number} is older than {OLDEST_SYSTEMD}", hint)
    properties = systemctl("show", UNIT, "-p", "LoadState,ActiveState,SubState")
    shown = dict(line.partition("=")[::2] for line in properties.splitlines())
    if shown.get("LoadState") != "loaded":
        return warn("systemd", f"version {number}; {UNIT} is not installed", "sudo rmbgd service install --now")
    return ok("systemd", f"version {number}; {UNIT} is {shown.get('ActiveState')} ({shown.get('SubState')})")


def systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(["systemctl", *arguments], capture_output=True, timeout=SYSTEMCTL_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def starts(config: Config) -> CheckResult:
    """Whether the service keeps dying, by the record that it and the exit recorder keep."""
    record = SafeMode(config, SystemClock())
    died = ", ".join(record.causes())
    if record.safe:
        text = f"the last ones died ({died}): the next is in safe mode, on the CPU with the embedded model"
        hint = "`journalctl -u rmbgd` from before service.safe_mode says why; it leaves safe mode by itself"
        return warn("starts", text, hint)
    if died:
        return warn("starts", f"died within {config.service.safe_window:g} s: {died}", "see `journalctl -u rmbgd`")
    return ok("starts", "none died lately")


def user() -> CheckResult:
    """Checks run by root prove little: root may write everywhere, the service may not."""
    try:
        wanted = pwd.getpwnam(USER).pw_uid
    except KeyError:
        return warn("user", f"there is no user '{USER}'", "`rmbgd service install --system` makes it")
    if os.geteuid() == 0 != wanted:  # of all others "rights" tells
        return warn("user", f"checked as root, the service runs as '{USER}'", f"runuser -u {USER} -- rmbgd doctor")
    return ok("user", USER)
