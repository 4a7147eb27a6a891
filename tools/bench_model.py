"""Speed, memory and error of our BiRefNet against the plainest implementation of it, side by side.

    python tools/bench_model.py [--backbones swin_v1_l swin_v1_t] [--size 1024] [--threads 2] [--rounds 2] [--batch 1]

Weights are drawn by the recipe (`birefnet/recipe.py`) of the measuring data: beside the checkout in ../shared, or where
RMBGD_SHARED says. Time and memory would be the same with any weights; the error would not. The plain implementation is
the tests' oracle: eager, unfolded, whole score and column tensors. Prints a table, then one JSON line.

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
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the oracle lives among the tests
PLAIN = "plain float32"
WIDTHS = (9, 7, 8, 7, 9, 7, 8, 8)


def measuring_data() -> Path:
    """The folder of recipe.py. Exits with a clear line when it is not there."""
    folder = Path(os.environ.get("RMBGD_SHARED", ROOT.parent / "shared")) / "birefnet"
    if not (folder / "recipe.py").exists():
        raise SystemExit(
            f"no recipe.py in {folder}: the weights are drawn by it. Put the measuring data beside the checkout as "
            "../shared, or set RMBGD_SHARED to where they are"
        )
    return folder


def built(variant: str, backbone: str, folder: Path, device: str) -> tuple[Callable[..., object], object]:
    """The network of a variant with the recipe's weights, and the recipe."""
    import torch

    from rmbgd.models.checkpoint import BACKBONES
    from rmbgd.models.convert import assemble
    from rmbgd.models.registry import PatchOrder

    oracle, stress = (importlib.import_module(f"tests.models.{name}") for name in ("oracle", "stress"))
    recipe = stress.recipe(folder)
    tensors = stress.recipe_tensors(recipe, backbone)
    if variant == PLAIN:
        with torch.device("meta"):
            plain = oracle.build(backbone)
        state = {name: tensors(name) for name in plain.state_dict()}
        plain.load_state_dict(state, assign=True)
        for module in plain.modules():  # derived, not in the state: made again off the meta device
            if isinstance(module, oracle.WindowAttention):
                window = (module.relative_position_bias_table.shape[0] ** 0.5 + 1) / 2
                module.relative_position_index = oracle.relative_position_index(int(window))
        return plain.requires_grad_(requires_grad=False).to(device), recipe
    dtype = getattr(torch, variant.removeprefix("rmbgd "))
    return assemble(BACKBONES[backbone], PatchOrder.CHANNEL_FIRST, tensors, device=device, dtype=dtype), recipe


def status() -> dict[str, float]:
    """/proc/self/status, MB (10⁶ bytes)."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 / 1e6 for row in rows if row[-1] == "kB"}


def serve(pipe: Connection, variant: str, backbone: str, chosen: argparse.Namespace, answer: str) -> None:
    """A variant's process: build, then one forward each time the parent says so, until it closes the pipe."""
    import torch

    torch.set_num_threads(chosen.threads)
    network, recipe = built(variant, backbone, measuring_data(), chosen.device)
    image = recipe.image("dev-a", chosen.batch, chosen.size, chosen.size)  # type: ignore[attr-defined]
    x = torch.from_numpy(image).to(chosen.device)
    cuda = x.is_cuda
    pipe.send(status()["VmRSS"])
    with torch.inference_mode():
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            before = status()["VmRSS"]
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
            start, start_cpu = time.perf_counter(), time.process_time()
            logits = network(x)
            if cuda:
                torch.cuda.synchronize()
            seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else status()["VmHWM"]
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
    children = []
    for variant in variants:
        near, far = context.Pipe()
        child = context.Process(target=serve, args=(far, variant, backbone, chosen, str(scratch / f"{variant}.pt")))
        child.start()
        far.close()
        near.recv()  # one builds at a time
        pipes[variant] = near
        children.append(child)
    rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number in range(chosen.rounds + 1):
        for variant, pipe in pipes.items():
            pipe.send(number)
            rounds[variant].append(pipe.recv())
    for pipe in pipes.values():
        pipe.close()
    for child in children:
        child.join()
    reference = torch.load(scratch / f"{PLAIN}.pt").sigmoid()
    table = {}
    for variant, runs in rounds.items():
        best = min(runs[1:], key=lambda run: run["seconds"])
        alpha = torch.load(scratch / f"{variant}.pt").sigmoid()
        error = (alpha - reference).abs().mean().item() * 255
        peak, grow = (max(run[k] for run in runs) for k in ("peak_mb", "grow_mb"))
        table[variant] = {**best, "peak_mb": peak, "grow_mb": grow, "alpha_error": error}
    return table


def has_fast_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are the hardware's: AVX-512 BF16 or AMX on a CPU, any CUDA device of today."""
    if device != "cpu":
        return True
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["swin_v1_l", "swin_v1_t"], help="default: both")
    parser.add_argument("--size", type=int, default=1024, help="side in pixels, a multiple of 32 (default: 1024)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="threads of one forward (default: 2)")
    parser.add_argument("--rounds", type=int, default=2, help="forwards that count, of each variant (default: 2)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--dtypes", nargs="+", help="default: float32, and bfloat16 where the hardware has it")
    chosen = parser.parse_args()
    measuring_data()
    # Before OpenMP starts in the children: threads that spin would steal from each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    types = chosen.dtypes or ["float32", *["bfloat16"] * has_fast_bfloat16(chosen.device)]
    result: dict[str, object] = {"size": chosen.size, "batch": chosen.batch, "threads": chosen.threads}
    for backbone in chosen.backbones:
        with tempfile.TemporaryDirectory() as scratch:
            table = measure(backbone, [PLAIN, *(f"rmbgd {t}" for t in types)], chosen, Path(scratch))
        plain = table[PLAIN]
        print(f"\n{backbone}, {chosen.batch} x 3 x {chosen.size} x {chosen.size}, {chosen.threads} threads")
        columns = zip(("seconds", "", "cpu s", "", "peak MB", "share", "grow", "error"), WIDTHS, strict=True)
        print(" " * 16 + "".join(f"{title:>{width}}" for title, width in columns))
        for variant, row in table.items():
            row["speed_up"] = plain["seconds"] / row["seconds"]
            row["cpu_speed_up"] = plain["cpu_seconds"] / row["cpu_seconds"]
            row["peak_share"] = row["peak_mb"] / plain["peak_mb"]
            clocks = f"{row['seconds']:9.2f}{row['speed_up']:6.2f}x{row['cpu_seconds']:8.2f}{row['cpu_speed_up']:6.2f}x"
            memory = f"{row['peak_mb']:9.0f}{row['peak_share']:7.0%}{row['grow_mb']:8.0f}"
            print(f"{variant:16}{clocks}{memory}{row['alpha_error']:8.3f}", flush=True)
        result[backbone] = {v: {k: round(n, 4) for k, n in row.items()} for v, row in table.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
