"""Networks alone, without an engine: the reference's goldens, forwards by type and batch, and each kernel's worth."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmbgd.models.inference import mattes
from rmbgd.models.layers import KernelLayer
from tools.gpubench.plan import Answer, Plan
from tools.gpubench.roofline import choose_device, timed
from tools.gpubench.weights import module, ours, write

GOLDENS = (
    ("swin_v1_t-2x256x384", "swin_v1_t", "channel_first"),
    ("swin_v1_t-512x512", "swin_v1_t", "channel_first"),
    ("swin_v1_l-512x512", "swin_v1_l", "channel_first"),
    ("rmbg2-512x512", "swin_v1_l", "tile_first"),
)
FLOAT32_LIMIT = 1e-3  # of any logit
RELATIVE_LIMITS = {"float16": 1e-2, "bfloat16": 6e-2}  # of all logits, L2


def float32_products(kind: str) -> None:
    """What computes products of float32, of matrices and in convolutions: "ieee" (TF32 off) or "tf32"."""
    import torch

    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    convolutions.fp32_precision = torch.backends.cuda.matmul.fp32_precision = kind


def goldens(plan: Plan, answer: Answer) -> None:
    """Logits against the reference's in float32, and how far the half types are off. Skips without the recipe."""
    import torch

    if not plan.recipe or plan.checkpoint:
        answer.put("skipped", "needs the recipe's folder, which holds the goldens (--recipe FOLDER), and its weights")
        return
    choose_device(plan)
    float32_products("ieee")
    for name, backbone, order in GOLDENS if plan.is_gpu else GOLDENS[:1]:  # on a CPU tests/models compares them all
        write(plan, backbone)
        with np.load(Path(plan.recipe) / f"golden-{name}.npz") as stored:
            batch, _, height, width = (int(side) for side in stored["shape"])
            image, expected = str(stored["image"]), torch.from_numpy(stored["logits"])
        drawing = module("stress").recipe(Path(plan.recipe)).image(image, batch, height, width)
        x = torch.from_numpy(drawing).to(plan.device)
        for kind in ("float32", "float16", "bfloat16") if plan.is_gpu else ("float32",):
            network = ours(plan, backbone, getattr(torch, kind), order)
            with torch.inference_mode():
                logits = network(x).float().cpu()
            del network
            answer.row("rows", golden_row(name, kind, logits, expected))


def golden_row(name: str, kind: str, logits: Any, expected: Any) -> dict[str, Any]:
    largest = float((logits - expected).abs().max())
    relative = float((logits - expected).norm() / expected.norm())
    steps = float((logits.sigmoid() - expected.sigmoid()).abs().mean() * 255)
    # Asked this way round, a figure that is no number fails, too.
    well = largest <= FLOAT32_LIMIT if kind == "float32" else relative <= RELATIVE_LIMITS[kind]
    return {
        "golden": name, "precision": kind, "largest": largest, "relative": relative, "alpha_steps": steps, "well": well,
    }  # fmt: skip


def forwards(plan: Plan, answer: Answer) -> None:
    """Milliseconds and peak memory of a forward of our network in eager torch, without images around it."""
    import torch

    choose_device(plan)
    float32_products("ieee")
    for kind in ("float32", "float16", "bfloat16") if plan.is_gpu else ("float32",):
        network = ours(plan, plan.backbone, getattr(torch, kind))
        for batch in plan.eager_batches:
            x = torch.randn(batch, 3, plan.side, plan.side, device=plan.device)  # float32, as the engine gives it
            x = x.to(memory_format=torch.channels_last)
            if plan.is_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                with torch.inference_mode():
                    seconds = timed(partial(network, x), plan.device, repeats=plan.repeats, warm_up=2)
            except torch.OutOfMemoryError as error:
                answer.row("rows", {"step": f"eager {kind}", "batch": batch, "error": str(error).splitlines()[0]})
                continue
            memory = {"allocator": torch.cuda.max_memory_allocated()} if plan.is_gpu else {}
            answer.row("rows", {"step": f"eager {kind}", "batch": batch, "ms": 1000 * seconds, "memory": memory})
        del network


def kernels(plan: Plan, answer: Answer) -> None:
    """What each kind of kernel is worth alone, and all together: from input to alpha, launched one by one.

    On a CPU the layers are asked for their plain ways: the rows are then alike.
    """
    import torch

    choose_device(plan)
    network = ours(plan, plan.backbone, torch.float16 if plan.is_gpu else torch.float32)
    layers = [layer for layer in network.modules() if isinstance(layer, KernelLayer)]
    kinds = sorted({type(layer).__name__ for layer in layers})
    rows: dict[str, list[str]] = {"no kernels": []}
    rows |= {f"{kind} alone": [kind] for kind in kinds} | {"all kernels": kinds}
    for name, chosen in rows.items():
        for layer in layers:
            layer.use_kernels(triton=plan.is_gpu and type(layer).__name__ in chosen)
        # The kernel of the head is chosen by the caller that asks for alpha.
        ask = partial(mattes, network, triton=plan.is_gpu and type(network.head).__name__ in chosen)
        for batch in sorted({1, min(8, max(plan.eager_batches))}):
            x = torch.randn(batch, 3, plan.side, plan.side, device=plan.device)
            x = x.to(memory_format=torch.channels_last)
            if plan.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            row: dict[str, Any] = {"step": name, "type": "float16" if plan.is_gpu else "float32", "batch": batch}
            try:
                with torch.inference_mode():
                    seconds = timed(partial(ask, x), plan.device, repeats=plan.repeats, warm_up=2)
            except (RuntimeError, ValueError) as error:
                answer.row("rows", row | {"error": str(error).splitlines()[0]})
                continue
            memory = {"allocator": torch.cuda.max_memory_allocated()} if plan.is_gpu else {}
            answer.row("rows", row | {"ms": 1000 * seconds, "memory": memory})
