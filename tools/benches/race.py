"""Races torch, ONNX Runtime and OpenVINO on the CPU: the same networks and weights, in the precisions that each has.

Every row is a process of its own, with its own environment; they compute in turn, so that a busy machine hurts them
alike. u2netp has its own weights; BiRefNet's are drawn by the recipe of the measuring data, in ../shared or where
RMBGD_SHARED says. Time and memory would be the same with any weights; the error would not.

--isa avx2 adds rows with the wider instructions switched off by environment: ATEN_CPU_CAPABILITY and
ONEDNN_MAX_CPU_ISA, which torch and OpenVINO read. ONNX Runtime has no such switch.

cpu s     processor seconds of all threads in the quickest forward after the first, which pays for pages and caches
wall s    of the same forward
cores     cpu s / wall s
peak      highest resident size during a forward, weights included
start     seconds from the file to a network that can compute, imports included
error     alpha, mean absolute difference from torch in float32, in steps of 1/255
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.golden_image import golden_image
from tools.benches.load import memory
from tools.gpubench.plan import module, recipe_folder
from tools.tables import Report, table

Array = NDArray[np.float32]
BACKBONES = {"birefnet-lite": "swin_v1_t", "birefnet": "swin_v1_l"}
SIDES = {"u2netp": 320}  # pixels; the others take --size
RUNTIMES = {
    "torch": ("float32", "bfloat16"),
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16"),
}
SWITCHES = {"": {}, "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}
SWITCHES["avx512"] = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}  # without BF16, AMX


@dataclass(frozen=True)
class Row:
    """One contender."""

    runtime: str
    precision: str
    isa: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} {self.isa}".strip()


def network(model: str, precision: str) -> Any:
    """From the package or the recipe."""
    import torch

    dtype = getattr(torch, precision)
    if model == "u2netp":
        from rmbgd.models.u2net import build_u2netp

        return build_u2netp(device="cpu", dtype=dtype)
    from rmbgd.models.checkpoint import BACKBONES as SHAPES
    from rmbgd.models.convert import assemble
    from rmbgd.models.registry import PatchOrder

    tensors = module("stress").recipe_tensors(module("stress").recipe(Path(recipe_folder())), BACKBONES[model])
    return assemble(SHAPES[BACKBONES[model]], PatchOrder.CHANNEL_FIRST, tensors, device="cpu", dtype=dtype)


def prepare(model: str, side: int, place: Path) -> None:
    """What the rows read: the network for torch and as ONNX, and an input."""
    import torch

    from rmbgd.models.onnx_export import write_onnx

    for precision in RUNTIMES["torch"]:
        torch.save(network(model, precision), place / f"{precision}.pt")
    write_onnx(network(model, "float32"), place / "network.onnx", 1, (side, side))
    if model in BACKBONES:
        x = module("stress").recipe(Path(recipe_folder())).image("dev-a", 1, side, side)
    else:
        pixels = cv2.resize(golden_image()[0], (side, side), interpolation=cv2.INTER_AREA)
        x = (pixels * np.asarray(SCALE, np.float32) + np.asarray(SHIFT, np.float32)).transpose(2, 0, 1)[None]
    np.save(place / "image.npy", x)


def start_torch(place: Path, precision: str, threads: int) -> Callable[[Array], Array]:
    import torch

    torch.set_num_threads(threads)
    made = torch.load(place / f"{precision}.pt", weights_only=False)
    dtype = next(made.parameters()).dtype

    def forward(x: Array) -> Array:
        with torch.inference_mode():
            image = torch.from_numpy(x).to(dtype, memory_format=torch.channels_last)
            return cast("Array", made(image).float().numpy())

    return forward


def start_onnxruntime(place: Path, _precision: str, threads: int) -> Callable[[Array], Array]:
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(place / "network.onnx", options, providers=["CPUExecutionProvider"])
    return lambda x: cast("Array", session.run(None, {"image": x})[0])


def start_openvino(place: Path, precision: str, threads: int) -> Callable[[Array], Array]:
    """Its reader of ONNX refuses DeformConv, but lets us say what that is; the operator itself it has."""
    openvino: Any = importlib.import_module("openvino")
    extension: Any = importlib.import_module("openvino.frontend.onnx").ConversionExtension
    core = openvino.Core()
    core.add_extension(extension("DeformConv", _deformable_convolution))
    options = {"INFERENCE_PRECISION_HINT": precision.replace("float32", "f32").replace("bfloat16", "bf16")}
    options |= {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
    request = core.compile_model(core.read_model(place / "network.onnx"), "CPU", options).create_infer_request()
    return lambda x: cast("Array", request.infer({0: x})[0])


def _deformable_convolution(node: Any) -> Any:
    operators: Any = importlib.import_module("openvino.opset15")
    x, weight, offset, bias, mask = (node.get_input(i) for i in range(5))
    pads = list(node.get_attribute("pads"))
    arguments = (x, offset, weight, [1, 1], pads[:2], pads[2:], [1, 1])
    product = operators.deformable_convolution(*arguments, mask=mask, bilinear_interpolation_pad=True)
    return operators.add(product, operators.reshape(bias, np.array([1, -1, 1, 1]), special_zero=False)).outputs()


STARTS = {"torch": start_torch, "onnxruntime": start_onnxruntime, "openvino": start_openvino}


@cache
def started(row: Row, place: Path, threads: int) -> tuple[Callable[[Array], Array], float]:
    """The row's network in its own process, and the seconds that it took to start."""
    began = time.perf_counter()
    return STARTS[row.runtime](place, row.precision, threads), time.perf_counter() - began


def forward(row: Row, place: Path, threads: int) -> tuple[dict[str, float], Array]:
    compute, start = started(row, place, threads)
    x = np.load(place / "image.npy")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    wall, cpu = time.perf_counter(), time.process_time()
    logits = compute(x)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"cpu": cpu, "wall": wall, "cores": cpu / wall, "peak_mb": memory()["VmHWM"], "start": start}, logits


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """For processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def race(model: str, rows: list[Row], chosen: argparse.Namespace) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Figures by row; and of a row that cannot run, why."""
    side = SIDES.get(model, chosen.size)
    runs: dict[Row, list[dict[str, float]]] = {row: [] for row in rows}
    answers: dict[Row, Array] = {}
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        place = Path(scratch)
        with ProcessPoolExecutor(1, context) as pool:  # that rows start without what this leaves behind
            pool.submit(prepare, model, side, place).result()
        pools = {row: stack.enter_context(ProcessPoolExecutor(1, context)) for row in rows}
        for _ in range(chosen.rounds + 1):
            for row, pool in pools.items():
                if str(row) in failed:
                    continue
                try:
                    with environment(SWITCHES[row.isa]):
                        figures, answers[row] = pool.submit(forward, row, place, chosen.threads).result()
                except Exception as error:  # noqa: BLE001 - each runtime has its own
                    failed[str(row)] = " ".join(str(error).split())[-200:]
                else:
                    runs[row].append(figures)
    exact = 1 / (1 + np.exp(-answers[rows[0]]))
    found = {}
    for row, each in runs.items():
        if str(row) in failed:
            continue
        best = min(each[1:], key=lambda run: run["cpu"]) | {"peak_mb": max(run["peak_mb"] for run in each)}
        best["share"] = best["cpu"] / min(run["cpu"] for run in runs[rows[0]][1:])
        found[str(row)] = best | {"error": float(np.abs(1 / (1 + np.exp(-answers[row])) - exact).mean() * 255)}
    return found, failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["u2netp", "birefnet-lite"], choices=["u2netp", *BACKBONES])
    parser.add_argument("--isa", nargs="+", default=[], choices=[isa for isa in SWITCHES if isa], help="in addition")
    parser.add_argument("--size", type=int, default=1024, help="side for BiRefNet, a multiple of 32 (default: 1024)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: one for each core)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="forwards that count, of each row (default: 3)")


def run(chosen: argparse.Namespace) -> Report:
    if chosen.quick:
        chosen.size, chosen.rounds, chosen.models = 64, 1, ["u2netp"]
    if set(chosen.models) - SIDES.keys() and not recipe_folder():
        raise SystemExit("no birefnet/recipe.py, by which weights are drawn, in ../shared or where RMBGD_SHARED says")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin steal from each other on a busy machine
    here = [runtime for runtime in RUNTIMES if importlib.util.find_spec(runtime)]
    missing = [f"{runtime} is not installed here" for runtime in RUNTIMES if runtime not in here]
    rows = [Row(runtime, kind, isa) for isa in ("", *chosen.isa) for runtime in here for kind in RUNTIMES[runtime]]
    found: dict[str, object] = {"threads": chosen.threads, "missing": missing}
    shown: list[Any] = []
    forms = {
        "cpu": ".3f",
        "share": ".2f",
        "wall": ".3f",
        "cores": ".2f",
        "peak_mb": ".0f",
        "start": ".2f",
        "error": ".4f",
    }
    heads = ("", "cpu s", "share", "wall s", "cores", "peak MB", "start s", "error")
    for model in chosen.models:
        figures, failed = race(model, rows, chosen)
        side = SIDES.get(model, chosen.size)
        cells = [(name, *(format(row[key], form) for key, form in forms.items())) for name, row in figures.items()]
        shown.append(table(f"{model}, {side} x {side}, {chosen.threads} threads", *heads, rows=cells))
        shown += [f"{name} cannot run: {why}" for name, why in failed.items()]
        found[model] = {name: {key: round(n, 5) for key, n in row.items()} for name, row in figures.items()}
        found[f"{model} failed"] = failed
    return Report([*shown, *missing], found)
