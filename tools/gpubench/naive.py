"""The plain ways, one image at a time: as the author's page does it, the same under autocast, and cast to float16.

From a decoded image to an image with alpha, all on the caller's thread: Pillow resizes, torch normalises, the mask
comes back through the host and is resized by Pillow. Decoding and encoding are not part of it, as they are none of the
engine's, with whose time from arena to arena this is compared.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
from PIL import Image

from rmbgd.bench.samples import drawn, spread
from tools.gpubench.plan import Answer, Plan
from tools.gpubench.roofline import choose_device
from tools.gpubench.weights import plain

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WAYS = ("naive float32", "naive, autocast float16", "naive, cast to float16")
WARM_UP = 3


def normalised(image: Image.Image, side: int, torch: Any) -> Any:
    """float32 [1, 3, side, side]."""
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return ((tensor - mean) / deviation)[None]


def cut_out(network: Any, image: Image.Image, plan: Plan, way: str, torch: Any) -> Image.Image:
    tensor = normalised(image, plan.side, torch).to(plan.device)
    if way.endswith("cast to float16"):
        tensor = tensor.half()
    device = torch.device(plan.device).type
    # bfloat16 on the CPU: its autocast has many more operators for it, and only the GPU's figure is of interest.
    kind = torch.float16 if plan.is_gpu else torch.bfloat16
    with torch.no_grad(), torch.autocast(device, kind) if "autocast" in way else nullcontext():
        alpha = network(tensor).sigmoid().float().cpu()[0, 0]
    mask = Image.fromarray((alpha * 255).byte().numpy()).resize(image.size)
    cutout = image.copy()
    cutout.putalpha(mask)
    return cutout


def measure(plan: Plan, answer: Answer, backbone: str = "", ways: tuple[str, ...] = WAYS) -> None:
    """A row per way. TF32 as the author's page has it: on for float32 products."""
    import torch

    choose_device(plan)
    torch.set_float32_matmul_precision("high")
    images = [Image.fromarray(image.rgb) for image in drawn(4, plan.side)]
    network, deformable = plain(plan, backbone or plan.backbone)
    answer.put("deformable", deformable)
    for way in ways:
        if way.endswith("cast to float16"):
            network = network.half()
        try:
            answer.row("rows", row(network, images, plan, way, torch))
        except (RuntimeError, NotImplementedError) as error:
            answer.row("rows", {"step": way, "error": str(error).splitlines()[0]})


def row(network: Any, images: list[Image.Image], plan: Plan, way: str, torch: Any) -> dict[str, Any]:
    for number in range(WARM_UP if plan.is_gpu else 1):
        cut_out(network, images[number % len(images)], plan, way, torch)
    if plan.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for number in range(plan.naive_images):
        began = time.perf_counter()
        cut_out(network, images[number % len(images)], plan, way, torch)
        taken.append(1000 * (time.perf_counter() - began))
    found = spread(taken)
    memory = {"allocator": torch.cuda.max_memory_allocated()} if plan.is_gpu else {}
    return {
        "step": way, "type": way.rpartition(" ")[2], "batch": 1,
        "ms": found.mean, "p50": found.p50, "p99": found.p99, "count": found.count,
        "memory": memory | device_memory(plan),
    }  # fmt: skip


def device_memory(plan: Plan) -> dict[str, int]:
    """Of our own process, as the driver books it; where it keeps no such books, all that is used on the device."""
    import os

    from rmbgd.bench.engine import BenchDevice, NvmlMemory

    with NvmlMemory(BenchDevice(plan.device, "").nvml()) as memory:
        held = memory.of(os.getpid())
        return {"nvml": held or memory.base or 0} if memory.base is not None else {}
