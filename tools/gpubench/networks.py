"""Networks without an engine: weights, ceilings of the device, plain ways, each kernel's worth."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import timeit
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from rmbgd.bench.engine import BenchDevice, NvmlMemory
from rmbgd.bench.samples import drawn, spread
from rmbgd.models.checkpoint import BACKBONES, is_optional, published
from rmbgd.models.convert import assemble
from rmbgd.models.inference import mattes
from rmbgd.models.layers import KernelLayer
from rmbgd.models.registry import PatchOrder
from rmbgd.models.store import CONFIG, WEIGHTS
from tools.gpubench.plan import Answer, Plan, module

MATRIX, COPY_BYTES = 8192, 4 << 30  # of the products and copies on a GPU, where it has the memory
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAIVE_WAYS = ("naive float32", "naive, autocast float16", "naive, cast to float16")


def draw(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """One tensor that exercises its layer: statistics differ by channel, offsets move samples between pixels."""
    noise: NDArray[Any] = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("running_var"):
        return np.asarray(np.exp(0.2 * noise))
    if name.endswith("relative_position_bias_table"):
        return 0.5 * noise
    if len(shape) >= 2:
        gain = 2.0 if "offset_conv" in name else 1.4 if "conv" in name else 1.0
        return noise * np.float32(gain / np.sqrt(np.prod(shape[1:])))
    return 1.0 + 0.1 * noise if name.endswith(".weight") else 0.05 * noise


def write_weights(plan: Plan) -> str:
    """The recipe's where it is at hand, else drawn by the same rule: they cost the same and err alike. Says which."""
    folder = plan.weights
    if plan.checkpoint:
        return f"checkpoint {folder}"
    folder.mkdir(parents=True, exist_ok=True)
    origin = "recipe" if plan.recipe else "drawn by rule: no recipe at hand"
    weight = partial(draw, random=np.random.default_rng(1))
    if plan.recipe:
        weight = module("stress").recipe(Path(plan.recipe)).weight
    shapes = {name: info.shape for name, info in published(plan.backbone).items() if not is_optional(name)}
    save_file({name: np.ascontiguousarray(weight(name, shape)) for name, shape in shapes.items()}, folder / WEIGHTS)
    config = {"model_type": "birefnet", "patch_order": plan.patch_order, "input_size": [plan.side, plan.side]}
    (folder / CONFIG).write_text(json.dumps(config))
    return origin


def ours(plan: Plan, dtype: Any) -> Any:
    """Folded, as the service loads it, in torch alone."""
    state: dict[str, Any] = load_file(plan.weights / WEIGHTS)
    order = PatchOrder(plan.patch_order)
    return assemble(BACKBONES[plan.backbone], order, state.__getitem__, device=plan.device, dtype=dtype)


def plain(plan: Plan) -> tuple[Any, str]:
    """The tests' oracle in float32, on the device, and which deformable convolution it uses.

    The author's code calls torchvision's, which is much faster on a GPU than the oracle's own.
    """
    oracle = module("oracle")
    network = oracle.build(plan.backbone, plan.patch_order)
    state = load_file(plan.weights / WEIGHTS)
    # The counters of BatchNorm are optional, and nothing reads them.
    network.load_state_dict({name: state[name] for name in network.state_dict() if not is_optional(name)}, strict=False)
    network = network.to(plan.device)
    there = importlib.util.find_spec("torchvision") is not None
    deform_conv2d = importlib.import_module("torchvision.ops").deform_conv2d if there else None
    for part in network.modules():
        if isinstance(part, oracle.DeformableConv):
            part.forward = partial(_deformed, part, deform_conv2d)
    return network, "torchvision" if deform_conv2d else "gathered columns"


def _deformed(part: Any, deform_conv2d: Any, x: Any) -> Any:
    weight = part.regular_conv.weight
    if deform_conv2d is not None:
        offset, modulation = part.offset_conv(x), 2 * part.modulator_conv(x).sigmoid()
        return deform_conv2d(x, offset, weight, padding=part.kernel // 2, mask=modulation)
    with torch.device(x.device), torch.autocast(x.device.type, enabled=False):
        x = x.to(weight.dtype)
        return (weight.flatten(1) @ part.columns(x).flatten(1, 2)).unflatten(-1, x.shape[-2:])


def choose_device(plan: Plan) -> None:
    """For what counts on the current device, such as events. Takes memory on it."""
    if plan.is_gpu:
        torch.cuda.set_device(plan.device)


def float32_products(kind: str) -> None:
    """What computes products of float32, of matrices and in convolutions: "ieee" (TF32 off) or "tf32"."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    convolutions.fp32_precision = torch.backends.cuda.matmul.fp32_precision = kind


def timed(call: Callable[[], object], plan: Plan, *, repeats: int) -> float:
    """Median seconds of a call, after three that do not count: between events on a GPU, by the clock on a CPU."""
    for _ in range(3):
        call()
    if not plan.is_gpu:
        return statistics.median_high(timeit.repeat(call, number=1, repeat=repeats))
    event: Any = torch.cuda.Event  # as torch has typed it
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median_high(start.elapsed_time(end) / 1000 for start, end in pairs))


def flops(backbone: str, side: int) -> float:
    """Of one forward of the plain network, by shapes alone, without pointwise ones; a product with its sum is two."""
    with torch.device("meta"):
        network = module("oracle").build(backbone)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def ceilings(plan: Plan, answer: Answer) -> None:
    """TFLOP/s of a large matrix product by type, and TB/s of a copy inside the device (read and written)."""
    choose_device(plan)
    side = MATRIX if plan.is_gpu else 256
    for name in ("float16", "bfloat16", "float32"):
        left, right = (torch.randn(side, side, device=plan.device, dtype=getattr(torch, name)) for _ in range(2))
        seconds = timed(partial(torch.matmul, left, right), plan, repeats=10)
        answer.put(**{f"{name}_tflops": 2 * side**3 / seconds / 1e12})
    count = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4) // 4 if plan.is_gpu else 1 << 20
    source, target = torch.randn(count, device=plan.device), torch.empty(count, device=plan.device)
    answer.put(copy_tbs=2 * 4 * count / timed(lambda: target.copy_(source), plan, repeats=10) / 1e12)
    answer.put(flops=flops(plan.backbone, plan.side), matrix=side)


def normalised(image: Image.Image, side: int) -> Any:
    """float32 [1, 3, side, side]."""
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return ((tensor - mean) / deviation)[None]


def autocast(plan: Plan, *, enabled: bool = True) -> torch.autocast:
    """In float16; on the CPU bfloat16, for which it has many more operators: only the GPU's figure is of interest."""
    device, half = ("cuda", torch.float16) if plan.is_gpu else ("cpu", torch.bfloat16)
    return torch.autocast(device, half, enabled)


def cut_out(network: Any, image: Image.Image, plan: Plan, way: str) -> Image.Image:
    tensor = normalised(image, plan.side).to(plan.device)
    if way.endswith("cast to float16"):
        tensor = tensor.half()
    with torch.no_grad(), autocast(plan, enabled="autocast" in way):
        alpha = network(tensor).sigmoid().float().cpu()[0, 0]
    cutout = image.copy()
    cutout.putalpha(Image.fromarray((alpha * 255).byte().numpy()).resize(image.size))
    return cutout


def naive(plan: Plan, answer: Answer) -> None:
    """The plain ways, one image at a time: as the author's page does it, under autocast, and cast to float16.

    From a decoded image to an image with alpha, which is compared with the engine's time from arena to arena. TF32 as
    the author's page has it: on for float32 products.
    """
    choose_device(plan)
    torch.set_float32_matmul_precision("high")
    images = [Image.fromarray(image.rgb) for image in drawn(4, plan.side)]
    network, deformable = plain(plan)
    answer.put(deformable=deformable)
    for way in NAIVE_WAYS:
        if way.endswith("cast to float16"):
            network = network.half()
        with answer.or_error({"step": way}, RuntimeError, NotImplementedError):
            one = partial(cut_out, network, plan=plan, way=way)
            for image in images[: 3 if plan.is_gpu else 1]:  # warms up
                one(image)
            chosen = islice(cycle(images), plan.naive_images)
            times = asdict(spread([1000 * timeit.timeit(partial(one, image), number=1) for image in chosen]))
            del times["jitter"]  # of so few it says nothing
            with NvmlMemory(BenchDevice(plan.device, "").nvml()) as memory:
                # As the driver books it; where it keeps no such books, all that is used on the device.
                held = {} if memory.base is None else {"nvml": memory.of(os.getpid()) or memory.base}
            answer.row({"step": way, "batch": 1, "ms": times["mean"], "memory": held} | times)


def kernels(plan: Plan, answer: Answer) -> None:
    """What each kind of kernel is worth alone, and all together: from input to alpha, launched one by one.

    On a CPU the layers are asked for their plain ways: the rows are then alike.
    """
    choose_device(plan)
    kind = "float16" if plan.is_gpu else "float32"
    network = ours(plan, getattr(torch, kind))
    layers = [layer for layer in network.modules() if isinstance(layer, KernelLayer)]
    kinds = sorted({type(layer).__name__ for layer in layers})
    rows: dict[str, list[str]] = {"no kernels": []}
    rows |= {f"{kind} alone": [kind] for kind in kinds} | {"all kernels": kinds}
    for name, chosen in rows.items():
        for layer in layers:
            layer.use_kernels(triton=plan.is_gpu and type(layer).__name__ in chosen)
        # The kernel of the head is chosen by the caller that asks for alpha.
        ask = partial(mattes, network, triton=plan.is_gpu and type(network.head).__name__ in chosen)
        for batch in plan.small_and_large:
            # As the engine gives it.
            x = torch.randn(batch, 3, plan.side, plan.side, device=plan.device).to(memory_format=torch.channels_last)
            row = {"step": name, "type": kind, "batch": batch}
            with answer.or_error(row, RuntimeError, ValueError), torch.inference_mode():
                seconds = timed(partial(ask, x), plan, repeats=plan.repeats)
                answer.row(row | {"ms": 1000 * seconds})
