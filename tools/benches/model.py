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
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from tools.benches.load import memory
from tools.gpubench.plan import module, recipe_folder
from tools.tables import Report, table

PLAIN = "plain float32"


def built(variant: str, backbone: str, folder: Path, device: str) -> tuple[Callable[..., object], object]:
    """The network of a variant with the recipe's weights, and the recipe."""
    import torch

    from rmbgd.models.checkpoint import BACKBONES
    from rmbgd.models.convert import assemble
    from rmbgd.models.registry import PatchOrder

    oracle, stress = module("oracle"), module("stress")
    recipe = stress.recipe(folder)
    tensors = stress.recipe_tensors(recipe, backbone)
    if variant == PLAIN:
        with torch.device("meta"):
            plain = oracle.build(backbone)
        state = {name: tensors(name) for name in plain.state_dict()}
        plain.load_state_dict(state, assign=True)
        for part in plain.modules():  # derived, not in the state: made again off the meta device
            if isinstance(part, oracle.WindowAttention):
                window = (part.relative_position_bias_table.shape[0] ** 0.5 + 1) / 2
                part.relative_position_index = oracle.relative_position_index(int(window))
        return plain.requires_grad_(requires_grad=False).to(device), recipe
    dtype = getattr(torch, variant.removeprefix("rmbgd "))
    return assemble(BACKBONES[backbone], PatchOrder.CHANNEL_FIRST, tensors, device=device, dtype=dtype), recipe


def serve(pipe: Connection, variant: str, backbone: str, chosen: argparse.Namespace, answer: str) -> None:
    """A variant's process: build, then one forward each time the parent says so, until it closes the pipe."""
    import torch

    torch.set_num_threads(chosen.threads)
    network, recipe = built(variant, backbone, Path(chosen.recipe), chosen.device)
    image = recipe.image("dev-a", chosen.batch, chosen.size, chosen.size)  # type: ignore[attr-defined]
    x = torch.from_numpy(image).to(chosen.device)
    cuda = x.is_cuda
    pipe.send(memory()["VmRSS"])
    with torch.inference_mode():
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            before = memory()["VmRSS"]
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
            start, start_cpu = time.perf_counter(), time.process_time()
            logits = network(x)
            if cuda:
                torch.cuda.synchronize()
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else memory()["VmHWM"]
            torch.save(logits.float().cpu(), answer)  # type: ignore[attr-defined]
            del logits
            pipe.send({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "grow_mb": peak - before})


def measure(
    backbone: str, variants: list[str], chosen: argparse.Namespace, scratch: Path
) -> dict[str, dict[str, float]]:
    """Each variant's best round, with its error against the plain one."""
    import torch

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipes[variant], far = context.Pipe()
        context.Process(target=serve, args=(far, variant, backbone, chosen, str(scratch / f"{variant}.pt"))).start()
        far.close()
        pipes[variant].recv()  # one builds at a time
    rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number in range(chosen.rounds + 1):
        for variant, pipe in pipes.items():
            pipe.send(number)
            rounds[variant].append(pipe.recv())
    for pipe in pipes.values():
        pipe.close()
    for child in multiprocessing.active_children():
        child.join()
    alphas = {variant: torch.load(scratch / f"{variant}.pt").sigmoid() for variant in variants}
    rows = {}
    for variant, runs in rounds.items():
        best = min(runs[1:], key=lambda run: run["seconds"])
        error = (alphas[variant] - alphas[PLAIN]).abs().mean().item() * 255
        most = {key: max(run[key] for run in runs) for key in ("peak_mb", "grow_mb")}
        rows[variant] = {**best, **most, "alpha_error": error}
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbones", nargs="+", default=["swin_v1_l", "swin_v1_t"], help="default: both")
    parser.add_argument("--size", type=int, default=1024, help="side in pixels, a multiple of 32 (default: 1024)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one forward (default: 2)")
    parser.add_argument("--rounds", type=int, default=2, help="forwards that count, of each variant (default: 2)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--dtypes", nargs="+", help="of ours; default: float32, and bfloat16 where products are fast")


def run(chosen: argparse.Namespace) -> Report:
    if not (recipe := recipe_folder("")):
        raise SystemExit("no birefnet/recipe.py, by which weights are drawn, in ../shared or where RMBGD_SHARED says")
    chosen.recipe = recipe
    if chosen.quick:
        chosen.backbones, chosen.size, chosen.rounds = ["swin_v1_t"], 64, 1
    # Before OpenMP starts in the children: threads that spin would steal from each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Products in bfloat16 are the hardware's: AVX-512 BF16 or AMX on a CPU, any CUDA device of today.
    fast = chosen.device != "cpu" or re.search("avx512_bf16|amx_bf16", Path("/proc/cpuinfo").read_text())
    types = chosen.dtypes or (["float32", "bfloat16"] if fast else ["float32"])
    found: dict[str, object] = {"size": chosen.size, "batch": chosen.batch, "threads": chosen.threads}
    shown = []
    for backbone in chosen.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            variants = measure(backbone, [PLAIN, *(f"rmbgd {kind}" for kind in types)], chosen, Path(scratch))
        plain = variants[PLAIN]
        for row in variants.values():
            row["speed_up"] = plain["seconds"] / row["seconds"]
            row["cpu_speed_up"] = plain["cpu_seconds"] / row["cpu_seconds"]
            row["peak_share"] = row["peak_mb"] / plain["peak_mb"]
        title = f"{backbone}, {chosen.batch} x 3 x {chosen.size} x {chosen.size}, {chosen.threads} threads"
        shown.append(table(title, *HEADS, rows=[(name, *cells(row)) for name, row in variants.items()]))
        found[backbone] = {name: {key: round(n, 4) for key, n in row.items()} for name, row in variants.items()}
    return Report(shown, found)


HEADS = ("", "seconds", "times", "cpu s", "times", "peak MB", "share", "grow MB", "error")


def cells(row: dict[str, float]) -> list[str]:
    clocks = [f"{row[key]:.2f}" for key in ("seconds", "speed_up", "cpu_seconds", "cpu_speed_up")]
    sizes = f"{row['peak_mb']:.0f}", f"{row['peak_share']:.0%}", f"{row['grow_mb']:.0f}"
    return [*clocks, *sizes, f"{row['alpha_error']:.3f}"]
