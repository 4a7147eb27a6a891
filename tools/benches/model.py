"""Speed, memory and error of our BiRefNet against the plainest implementation of it, side by side.

Weights are drawn by the recipe (`birefnet/recipe.py`) of the measuring data: beside the checkout in ../shared, or where
RMBGD_SHARED says. Time and memory would be the same with any weights; the error would not. The plain implementation is
the tests' oracle: eager, unfolded, whole score and column tensors.

Each variant lives in a process of its own. They compute in turn, one at a time, so that whatever else the machine does
hurts them alike.

seconds   shortest forward of all rounds after the first, which pays for pages and caches (also with --rounds 1: two)
cpu s     processor seconds of all threads in that forward; threads wait without spinning, so a busy machine changes it
          less than the seconds
peak      highest resident size during a forward, weights included; grow: over that before the forward
error     alpha, mean absolute difference from the plain float32 answer, in steps of 1/255
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.benches.load import memory
from tools.gpubench.plan import module, recipe_folder
from tools.tables import Report, table

PLAIN = "plain float32"


def serve(pipe: Connection, variant: str, backbone: str, chosen: argparse.Namespace, answer: Path) -> None:
    """A variant's process: build, then one forward each time the parent says so, until it closes the pipe."""
    import torch

    from rmbgd.models.checkpoint import BACKBONES
    from rmbgd.models.convert import assemble
    from rmbgd.models.registry import PatchOrder

    torch.set_num_threads(chosen.threads)
    recipe = module("stress").recipe(Path(chosen.recipe))
    tensors = module("stress").recipe_tensors(recipe, backbone)
    network: Any
    if variant == PLAIN:
        network = module("oracle").build(backbone)
        network.load_state_dict({name: tensors(name) for name in network.state_dict()})
    else:
        dtype = getattr(torch, variant.rpartition(" ")[2])
        network = assemble(BACKBONES[backbone], PatchOrder.CHANNEL_FIRST, tensors, device="cpu", dtype=dtype)
    x = torch.from_numpy(recipe.image("dev-a", 1, chosen.size, chosen.size))
    pipe.send("ready")
    with torch.inference_mode():
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            before = memory()["VmRSS"]
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
            start, start_cpu = time.perf_counter(), time.process_time()
            logits = network(x).float()
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            peak = memory()["VmHWM"]
            torch.save(logits, answer)
            del logits
            pipe.send({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "grow_mb": peak - before})


def measure(
    backbone: str, variants: list[str], chosen: argparse.Namespace, scratch: Path
) -> dict[str, dict[str, float]]:
    """Each variant's best round, with its error against the plain one, and how it compares."""
    import torch

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipes[variant], far = context.Pipe()
        context.Process(target=serve, args=(far, variant, backbone, chosen, scratch / f"{variant}.pt")).start()
        far.close()
        pipes[variant].recv()  # one builds at a time
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number in range(chosen.rounds + 1):
        for variant, pipe in pipes.items():
            pipe.send(number)
            runs[variant].append(pipe.recv())
    for pipe in pipes.values():
        pipe.close()
    for child in multiprocessing.active_children():
        child.join()
    alphas = {variant: torch.load(scratch / f"{variant}.pt").sigmoid() for variant in variants}
    rows: dict[str, dict[str, float]] = {}
    for variant, each in runs.items():
        row = min(each[1:], key=lambda run: run["seconds"])
        row |= {key: max(run[key] for run in each) for key in ("peak_mb", "grow_mb")}
        plain = rows.setdefault(PLAIN, row)  # it is the first
        rows[variant] = row | {
            "alpha_error": (alphas[variant] - alphas[PLAIN]).abs().mean().item() * 255,
            "speed_up": plain["seconds"] / row["seconds"],
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
    heads = ("", "seconds", "times", "cpu s", "times", "peak MB", "share", "grow MB", "error")
    shown = []
    for backbone in chosen.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure(backbone, variants, chosen, Path(scratch))
        title = f"{backbone}, 3 x {chosen.size} x {chosen.size}, {chosen.threads} threads"
        shown.append(table(title, *heads, rows=[(name, *cells(row)) for name, row in rows.items()]))
        found[backbone] = {name: {key: round(n, 4) for key, n in row.items()} for name, row in rows.items()}
    return Report(shown, found)


def cells(row: dict[str, float]) -> list[str]:
    clocks = [f"{row[key]:.2f}" for key in ("seconds", "speed_up", "cpu_seconds", "cpu_speed_up")]
    return [
        *clocks,
        f"{row['peak_mb']:.0f}",
        f"{row['peak_share']:.0%}",
        f"{row['grow_mb']:.0f}",
        f"{row['alpha_error']:.3f}",
    ]
