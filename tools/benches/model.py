"""Speed, memory and error of our BiRefNet against the plainest implementation of it, side by side.

Weights are drawn by the recipe (`birefnet/recipe.py`) of the measuring data: beside the checkout in ../shared, or where
RMBGD_SHARED says. Time and memory would be the same with any weights; the error would not. The plain implementation is
the tests' oracle: eager, unfolded, whole score and column tensors.

Each variant lives in a process of its own; they compute in turn, so that a busy machine hurts them alike.

seconds   shortest forward of all rounds after the first, which pays for pages and caches
cpu s     processor seconds of all threads in that forward: a busy machine changes it less than the seconds
peak      highest resident size during a forward, weights included
error     alpha, mean absolute difference from the plain float32 answer, in steps of 1/255
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from tools.benches.load import memory
from tools.gpubench.plan import module, recipe_folder
from tools.tables import Report, table

PLAIN = "plain float32"
Rows = dict[str, dict[str, float]]  # variant -> figures


@cache
def built(variant: str, backbone: str, recipe_at: str, size: int, threads: int) -> Any:
    """(network, input) of a variant's process."""
    import torch

    from rmbgd.models.checkpoint import BACKBONES
    from rmbgd.models.convert import assemble
    from rmbgd.models.registry import PatchOrder

    torch.set_num_threads(threads)
    recipe = module("stress").recipe(Path(recipe_at))
    tensors = module("stress").recipe_tensors(recipe, backbone)
    network: Any
    if variant == PLAIN:
        network = module("oracle").build(backbone)
        network.load_state_dict({name: tensors(name) for name in network.state_dict()})
    else:
        dtype = getattr(torch, variant.rpartition(" ")[2])
        network = assemble(BACKBONES[backbone], PatchOrder.CHANNEL_FIRST, tensors, device="cpu", dtype=dtype)
    return network, torch.from_numpy(recipe.image("dev-a", 1, size, size))


def forward(answer: Path, *which: Any) -> dict[str, float]:
    import torch

    network, x = built(*which)
    with torch.inference_mode():
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
        start, start_cpu = time.perf_counter(), time.process_time()
        logits = network(x).float()
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        peak = memory()["VmHWM"]
        torch.save(logits, answer)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}


def measure(backbone: str, variants: list[str], chosen: argparse.Namespace, scratch: Path) -> Rows:
    """Each variant's best round, with its error against the plain one, and how it compares."""
    import torch

    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    with ExitStack() as stack:
        pools = {variant: stack.enter_context(ProcessPoolExecutor(1, context)) for variant in variants}
        for _ in range(chosen.rounds + 1):
            for variant, pool in pools.items():
                which = (variant, backbone, chosen.recipe, chosen.size, chosen.threads)
                runs[variant].append(pool.submit(forward, scratch / f"{variant}.pt", *which).result())
    alphas = {variant: torch.load(scratch / f"{variant}.pt").sigmoid() for variant in variants}
    rows: Rows = {}
    for variant, each in runs.items():
        row = min(each[1:], key=lambda run: run["seconds"])
        row |= {"peak_mb": max(run["peak_mb"] for run in each)}
        plain = rows.setdefault(PLAIN, row)  # it is the first
        rows[variant] = row | {
            "alpha_error": (alphas[variant] - alphas[PLAIN]).abs().mean().item() * 255,
            "cpu_speed_up": plain["cpu_seconds"] / row["cpu_seconds"],
            "peak_share": row["peak_mb"] / plain["peak_mb"],
        }
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbones", nargs="+", default=["swin_v1_l", "swin_v1_t"], help="default: both")
    parser.add_argument("--size", type=int, default=1024, help="side in pixels, a multiple of 32 (default: 1024)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one forward (default: 2)")
    parser.add_argument("--rounds", type=int, default=2, help="forwards that count, of each variant (default: 2)")


def run(chosen: argparse.Namespace) -> Report:
    chosen.recipe = recipe_folder()
    if not chosen.recipe:
        raise SystemExit("no birefnet/recipe.py, by which weights are drawn, in ../shared or where RMBGD_SHARED says")
    if chosen.quick:
        chosen.backbones, chosen.size, chosen.rounds = ["swin_v1_t"], 64, 1
    # Before OpenMP starts in the children: threads that spin would steal from each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Products in bfloat16 are the hardware's: AVX-512 BF16 or AMX.
    fast = re.search("avx512_bf16|amx_bf16", Path("/proc/cpuinfo").read_text())
    variants = [PLAIN, "rmbgd float32", *(["rmbgd bfloat16"] if fast else [])]
    found: dict[str, object] = {"size": chosen.size, "threads": chosen.threads}
    heads = ("", "seconds", "cpu s", "times", "peak MB", "share", "error")
    forms = {"seconds": ".2f", "cpu_seconds": ".2f", "cpu_speed_up": ".2f", "peak_mb": ".0f", "peak_share": ".0%"}
    forms["alpha_error"] = ".3f"
    shown = []
    for backbone in chosen.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure(backbone, variants, chosen, Path(scratch))
        title = f"{backbone}, 3 x {chosen.size} x {chosen.size}, {chosen.threads} threads"
        cells = [(name, *(format(row[key], form) for key, form in forms.items())) for name, row in rows.items()]
        shown.append(table(title, *heads, rows=cells))
        found[backbone] = {name: {key: round(n, 4) for key, n in row.items()} for name, row in rows.items()}
    return Report(shown, found)
