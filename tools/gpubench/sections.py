"""Everything that is claimed about a GPU: the plain way first, then our steps, one by one.

    python -m tools.bench gpu --out FOLDER [--device cuda:0] [--only SECTION,...] [--budget 540]
    python -m tools.bench gpu --out FOLDER --device cpu --quick

Run it in the checkout's root, on a machine without other work; tools/gpu_check.sh sets up a machine that is lent.
Each section is a process of its own, so that one that fails, hangs or breaks the device's context loses only itself;
the time budget (s) bounds them all. FOLDER has what was found at every moment: bench_gpu.json, bench_gpu.txt,
bench_gpu.log, and what sections write themselves: tests.txt, profile.txt, sanitizer.txt.

Weights are drawn by the recipe where its folder is found (RMBGD_SHARED/birefnet, ../shared/birefnet, or shared/birefnet
in the checkout), else by the same rule from other numbers; --checkpoint takes a folder of your own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.gpubench.plan import QUICK, ROOT, Answer, Plan, answers, recipe_folder
from tools.gpubench.report import shown
from tools.tables import Report

PREPARE, LOG = "prepare", "bench_gpu.log"
SECTIONS: dict[
    str, tuple[str, float]
] = {  # name -> (module:function, seconds that it may take): right first, then fast
    PREPARE: ("sections:prepare", 150),
    "smoke": ("smoke:smoke", 60),
    "ceilings": ("networks:ceilings", 30),
    "right_kernels": ("checks:kernels", 90),
    "first_image": ("engines:first_images", 90),
    "accuracy": ("accuracy:measure", 120),
    "profile": ("profiled:profile", 60),
    "latency": ("engines:latency", 90),
    "naive": ("networks:naive", 45),
    "waterfall": ("engines:waterfall", 90),
    "tensorrt": ("tensorrt:measure", 90),
    "hot_folder": ("service:hot_folder", 60),
    "faults": ("faults:faults", 60),
    "sanitizer": ("checks:sanitizer", 45),
    "sources": ("service:sources", 60),
    "kernels": ("networks:kernels", 60),
    "tests": ("checks:tests", 260),
}
ESSENTIAL = (PREPARE, "smoke")  # without these no other section means anything
KERNELS_OFF = "right_kernels"  # the section that decides whether the others do without kernels
KEPT_EVERY = 1.0  # s; what has been found is then written out, so that a run that is cut short loses nothing
LEAST = 10.0  # s left of the budget, below which no section begins
LIBRARIES = ("torch", "triton", "torchvision", "numpy", "pillow", "opencv-python-headless", "transformers")


def prepare(plan: Plan, answer: Answer) -> None:
    """Weights, and on what this runs."""
    import torch

    from tools.gpubench.networks import write_weights

    answer.put(weights=write_weights(plan))  # first: every other section needs them
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    answer.put(date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), python=platform.python_version())
    answer.put(processors=len(os.sched_getaffinity(0)), processor=model[1] if model else "", device=plan.device)
    with contextlib.suppress(OSError):  # there may be no git
        command = ["git", "describe", "--always", "--dirty"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        answer.put(commit=done.stdout.strip())
    installed = {str(each.name).lower(): each.version for each in importlib.metadata.distributions()}
    answer.put(**{name: installed.get(name, "not installed") for name in LIBRARIES})
    if plan.is_gpu:
        properties = torch.cuda.get_device_properties(plan.device)
        driver = Path("/proc/driver/nvidia/version")
        said = driver.read_text().splitlines()[0] if driver.exists() else "unknown"
        answer.put(gpu=properties.name, gpu_bytes=properties.total_memory, cuda=torch.version.cuda, driver=said)


def run_section(name: str, plan: Plan, out: Path, seconds: float, keep: Callable[[], object] = lambda: None) -> str:
    """Its error in one line; empty when it came to its end. What it found before is kept in either case; `keep` is
    called every second meanwhile."""
    log = Path(plan.work, f"log-{name}.txt")
    command = [sys.executable, "-m", "tools.gpubench.sections", name, json.dumps(asdict(plan))]
    environment = {"OMP_WAIT_POLICY": "passive", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ}
    until = time.monotonic() + seconds
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            while process.poll() is None and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, KEPT_EVERY))
                keep()
        finally:
            if (code := process.poll()) is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    said = log.read_text(errors="replace").strip()
    with (out / LOG).open("a") as whole:
        whole.write(f"--- {name}\n{said}\n")
    if code is None:
        return f"did not end within {seconds:.0f} s"
    last = said.rpartition("\n")[2] or "it said nothing"
    return f"status {code}: {last} (see {LOG})" if code else ""


def run_all(plan: Plan, chosen: Sequence[str], out: Path, budget: float) -> dict[str, Any]:
    until = time.monotonic() + budget
    errors: dict[str, str] = {}

    def keep() -> dict[str, Any]:
        found = {"plan": asdict(plan), "errors": errors, "answers": answers(plan.work)}
        part = out / ".bench_gpu.json"
        part.write_text(json.dumps(found, indent=1))
        part.replace(out / "bench_gpu.json")
        return found

    for name, (_, longest) in SECTIONS.items():
        if name not in (*chosen, PREPARE):
            continue
        if (left := until - time.monotonic()) < LEAST:
            errors[name] = "not begun: the time budget was used up"
            continue
        if failed := next((each for each in ESSENTIAL if each in errors), None):
            errors[name] = f"not begun: {failed} failed"
            continue
        print(f"{name} ...", flush=True)
        if error := run_section(name, plan, out, min(left, longest), keep):
            errors[name] = error
            print(f"{name}: {error}", flush=True)
        if name == KERNELS_OFF:
            plan = replace(plan, kernels=answers(plan.work).get(name, {}).get("kernels", plan.kernels))
        (out / "bench_gpu.txt").write_text(Report(list(shown(keep())), {}).text())
    return keep()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(out=Path(os.environ.get("OUT") or "bench-gpu"))
    parser.add_argument("--device", default="cuda:0", help='"cuda:N" or "cpu" (default: cuda:0)')
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), help=f"of {', '.join(list(SECTIONS)[1:])}")
    parser.add_argument("--budget", type=float, default=540.0, metavar="S", help="for all sections (default: 540)")
    parser.add_argument("--backbone", choices=("swin_v1_l", "swin_v1_t"), help="default: swin_v1_l")
    parser.add_argument("--checkpoint", default="", metavar="FOLDER", help="with model.safetensors for --backbone")
    parser.add_argument("--patch-order", default="channel_first", choices=("channel_first", "tile_first"))


def _sections(text: str) -> list[str]:
    if unknown := sorted(set(text.split(",")) - set(SECTIONS)):
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}")
    return text.split(",")


def run(chosen: argparse.Namespace) -> Report:
    out: Path = chosen.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in (LOG, "tests.txt", "profile.txt", "sanitizer.txt"):
        (out / name).unlink(missing_ok=True)
    sizes: dict[str, Any] = (QUICK if chosen.quick else {}) | ({"backbone": chosen.backbone} if chosen.backbone else {})
    checkpoint = str(Path(chosen.checkpoint).absolute()) if chosen.checkpoint else ""
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-gpu-") as work:
        given = {"device": chosen.device, "checkpoint": checkpoint, "patch_order": chosen.patch_order}
        found = run_all(Plan(work, str(out), recipe=recipe_folder(), **given, **sizes), chosen.only, out, chosen.budget)
    return Report(list(shown(found)), found, 1 if found["errors"] else 0)


if __name__ == "__main__":  # the process of one section
    run_plan = Plan(**json.loads(sys.argv[2]))
    place, _, function = SECTIONS[sys.argv[1]][0].partition(":")
    measure: Callable[[Plan, Answer], None] = getattr(importlib.import_module(f"tools.gpubench.{place}"), function)
    measure(run_plan, Answer(Path(run_plan.work) / f"answer-{sys.argv[1]}.json"))
