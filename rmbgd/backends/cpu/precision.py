"""Number format of a network on the CPU: bfloat16 where it is quicker and as good on these weights, else float32.

Whether it is was measured on the golden images, by processor time, once for each weights, runtime, version and
processor; the verdict is kept in a file. Belongs to the thread that starts the backend.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.cpu.network import CpuNetwork
from rmbgd.engine.golden_image import golden_scenes, overlap
from rmbgd.engine.types import MatteReport, verdict_of
from rmbgd.errors import EngineFault
from rmbgd.fs import atomic_write

WIDE, NARROW = "float32", "bfloat16"
MEAN_MAXIMUM = 2 / 255  # of alpha, on each golden image
OVERLAP_MINIMUM = 0.985
TIME_MAXIMUM = 0.9  # of float32's processor time: emulated products take more, and a tenth is not worth the rounding
EMPTY_BELOW = 0.0005  # recipe.empty_below, unless a recipe has another
SCENES = (3, 4, 0, 1, 2)  # of golden_scenes, what tells most first: the hidden subject, none
MEASURE_SECONDS = 0.2  # no further scene is begun after these: the first start is to take no longer than torch's
PROCESSOR_LINES = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # of /proc/cpuinfo
PROCESSOR_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")

Alpha = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why in words."""

    precision: str
    because: str


@dataclass(frozen=True, slots=True)
class SceneResult:
    """What a network made of one golden image: alpha float32 [h, w], processor seconds."""

    alpha: Alpha
    seconds: float


def judge_precision(narrow: Sequence[SceneResult], wide: Sequence[SceneResult]) -> Choice:
    """bfloat16 or float32, from what both made of the same golden images; at least one. Pure."""
    for number, (found, exact) in enumerate(zip(narrow, wide, strict=True), 1):
        where = f"on golden image {number}"
        if not np.isfinite(found.alpha).all():
            return Choice(WIDE, f"in {NARROW} alpha is not finite {where}")
        if (mean := float(np.abs(found.alpha - exact.alpha).mean())) > MEAN_MAXIMUM:
            return Choice(WIDE, f"{NARROW} is off by {255 * mean:.2f} levels {where}")
        if (agreement := overlap(found.alpha, exact.alpha)) < OVERLAP_MINIMUM:
            return Choice(WIDE, f"{NARROW} overlaps with {WIDE} by only {agreement:.3f} {where}")
        if (verdict := _verdict(found.alpha)) != (expected := _verdict(exact.alpha)):
            return Choice(WIDE, f"in {NARROW} the verdict {where} is {verdict!r}, not {expected!r}")
    quick, slow = min(each.seconds for each in narrow), min(each.seconds for each in wide)
    times = f"{quick:.3g} s of processor time an image, {WIDE} {slow:.3g}"
    if quick > TIME_MAXIMUM * slow:
        return Choice(WIDE, f"{NARROW} is not quicker: it takes {times}")
    mean = max(float(np.abs(found.alpha - exact.alpha).mean()) for found, exact in zip(narrow, wide, strict=True))
    return Choice(
        NARROW, f"it takes {times}, and is off by {255 * mean:.2f} levels at most on {len(wide)} golden images"
    )


def _verdict(alpha: Alpha) -> str:
    report = MatteReport(0, float(alpha.mean()), float(alpha.max()), float((alpha >= 0.5).mean()), 0.0)
    return verdict_of(report, empty_below=EMPTY_BELOW)


def in_best_precision(
    make: Callable[[str], CpuNetwork], *, hardware: bool, folder: Path | None, key: dict[str, str]
) -> CpuNetwork:
    """The network that `make` gives in the precision of choice; its facts say why.

    hardware  whether the runtime says that this processor multiplies bfloat16. No proof: some name what they emulate
    folder    of kept verdicts, or None
    key       what tells verdicts apart besides the weights: model, runtime, its version
    Raises what `make` raises in float32.
    """
    if not hardware:
        return _because(make(WIDE), Choice(WIDE, f"{key['runtime']} says that this processor has no {NARROW} products"))
    key = key | {"processor": processor()}
    file = None if folder is None else folder / f"{hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()}.json"
    if (kept := _read(file, key)) is not None and (network := _as_kept(make, kept)) is not None:
        return network
    network = make(WIDE)
    sha256 = str(network.facts.get("sha256"))
    scenes = [golden_scenes()[number] for number in SCENES]
    wide = _results(network, scenes, MEASURE_SECONDS)
    try:
        del network  # before the other: a large one takes gigabytes
        network = make(NARROW)
        choice = judge_precision(_results(network, scenes[: len(wide)]), wide)
    except (EngineFault, RuntimeError) as error:  # a runtime's way to refuse a network, or memory that is short now
        return _because(make(WIDE), Choice(WIDE, f"{key['runtime']} refuses {NARROW}: {gist(error)}"))
    _write(file, key, sha256, choice)
    if choice.precision == WIDE:
        del network
        network = make(WIDE)
    return _because(network, choice)


def gist(error: Exception) -> str:
    """The first line that says what is wrong: OpenVINO names its source files before it, torch those behind it."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from ")]
    return lines[0].strip() if lines else type(error).__name__


def _because(network: CpuNetwork, choice: Choice) -> CpuNetwork:
    network.facts["precision_because"] = choice.because
    return network


def _results(
    network: CpuNetwork, scenes: Sequence[NDArray[np.uint8]], patience: float = float("inf")
) -> list[SceneResult]:
    """Of the scenes, as many as can be begun in `patience` seconds, at least the first."""
    results: list[SceneResult] = []
    end = time.monotonic() + patience
    for scene in scenes:
        if results and time.monotonic() > end:
            break
        began = time.process_time()
        alpha = network.infer([scene])[0].copy()
        results.append(SceneResult(alpha, time.process_time() - began))
    return results


@dataclass(frozen=True, slots=True)
class _Kept:
    sha256: str
    choice: Choice


def _as_kept(make: Callable[[str], CpuNetwork], kept: _Kept) -> CpuNetwork | None:
    """None when it has other weights now, or refuses what it did not refuse before."""
    try:
        network = make(kept.choice.precision)
    except (EngineFault, RuntimeError):
        if kept.choice.precision == WIDE:
            raise
        return None
    return _because(network, kept.choice) if network.facts.get("sha256") == kept.sha256 else None


def _read(file: Path | None, key: dict[str, str]) -> _Kept | None:
    """None for a file that is not there, damaged, or of something else."""
    try:
        found: Any = json.loads(file.read_bytes()) if file else None
        kept = _Kept(str(found["sha256"]), Choice(str(found["precision"]), str(found["because"])))
        return kept if found["key"] == key and kept.choice.precision in {WIDE, NARROW} else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path | None, key: dict[str, str], sha256: str, choice: Choice) -> None:
    if file is None:
        return
    kept = {"precision": choice.precision, "because": choice.because, "sha256": sha256, "key": key}
    with contextlib.suppress(OSError):  # it costs only time at the next start
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(kept, indent=1).encode())


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A digest of what this processor is and of what the environment takes from it."""
    try:
        first, _, _ = cpuinfo.read_text(errors="replace").partition("\n\n")
    except OSError:
        first = platform.machine()
    kept = [line for line in first.splitlines() if line.startswith(PROCESSOR_LINES)]
    switches = [f"{name}={os.environ.get(name, '')}" for name in PROCESSOR_SWITCHES]
    return hashlib.sha256("\n".join([*kept, *switches]).encode()).hexdigest()[:16]
