"""Errors against float32 with TF32 off, on the same images: of the networks' logits, and of the engine's alpha.

The binding gate is relative: no worse than the plain network under autocast in float16, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rmbgd.bench.samples import drawn
from rmbgd.errors import RmbgdError
from tools.gpubench.engines import started, type_of
from tools.gpubench.networks import autocast, choose_device, float32_products, normalised, ours, plain
from tools.gpubench.plan import Answer, Plan

# logits (relative, L2); alpha in steps of 1/255: mean, 99.9th percentile; share off by more than 8; overlap at 0.5
LIMITS = {
    "float32": {"relative": 1e-3, "mean": 0.05, "p999": 1.0, "far": 1e-5, "overlap": 0.9999},
    "float16": {"relative": 1e-2, "mean": 0.3, "p999": 4.0, "far": 1e-4, "overlap": 0.9995},
    "bfloat16": {"relative": 6e-2, "mean": 1.5, "p999": 16.0, "far": 5e-3, "overlap": 0.998},
}
GATE = {"float32": 1.0, "float16": 1.0, "bfloat16": None}  # times the plain autocast's error


def measure(plan: Plan, answer: Answer) -> None:
    choose_device(plan)
    float32_products("ieee")
    images = drawn(plan.accuracy_images, plan.side)
    x = torch.cat([normalised(Image.fromarray(image.rgb), plan.side) for image in images]).to(plan.device)
    network = plain(plan)[0]
    reference = answers_of(network, x)
    with autocast(plan):
        usual = compared(answers_of(network, x), reference)
    answer.row({"step": "naive, autocast float16"} | usual)
    for kind in ("float16", "bfloat16") if plan.is_gpu else ("bfloat16",):
        row = compared(answers_of(ours(plan, getattr(torch, kind)), x), reference)
        answer.row({"step": f"our network, eager {kind}"} | judged(row, kind, usual))
    for kind in ("float16", "bfloat16") if plan.is_gpu else ("float32",):
        with answer.or_error({"step": f"engine, {kind}"}, RmbgdError):
            for step, alpha in through_the_engine(plan, kind, images):
                answer.row({"step": step} | judged(alphas(alpha, quantised(reference)), kind, usual))
    if plan.is_gpu:
        # Last, as a release of torch may refuse the way in which TF32 is switched.
        tf32 = {"step": "naive float32 with TF32 (noise floor)"}
        with answer.or_error(tf32, RuntimeError):
            float32_products("tf32")
            answer.row(tf32 | compared(answers_of(plain(plan)[0], x), reference))


def answers_of(network: Any, x: Any) -> NDArray[np.float32]:
    """Logits float32 [B, h, w], image by image: the plain network takes gigabytes for each."""
    with torch.inference_mode():
        return np.asarray(torch.cat([network(one[None]) for one in x])[:, 0].float().cpu().numpy())


def through_the_engine(plan: Plan, kind: str, images: Any) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(row's name, alpha of every image as published) for batches of one, and the largest up to eight on offer."""
    largest = plan.small_and_large[-1]
    with started(plan, images, places=largest, batches=largest, precision=kind) as engine:
        used = type_of(engine)
        for batch in sorted({1, engine.description.batch_sizes[-1]}):
            for place in range(len(engine.regions)):
                engine.planes(place).rgba.fill(77)  # what is not written now is wrong
            engine.measure(batch, 0.0)
            alpha = np.stack([engine.planes(place).rgba[..., 3] for place in range(len(images))])
            yield f"engine, {kind}, batches of {batch}" + ("" if used == kind else f" ({used} is used)"), alpha


def quantised(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.floor(255 * torch.from_numpy(logits).double().sigmoid().numpy() + 0.5), np.uint8)


def compared(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    relative = float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))
    return {"relative": relative, **alphas(quantised(logits), quantised(reference))}


def alphas(alpha: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
    off = np.abs(alpha.astype(np.int16) - reference)
    solid, theirs = alpha >= 128, reference >= 128
    overlap = (solid & theirs).sum() / (solid | theirs).sum() if solid.any() or theirs.any() else 1.0
    found = {"mean": off.mean(), "p999": np.quantile(off, 0.999), "far": (off > 8).mean(), "overlap": overlap}
    return {name: float(each) for name, each in found.items()}


def judged(row: dict[str, float], kind: str, usual: dict[str, float]) -> dict[str, Any]:
    """With `well` (the absolute limits) and `gate` (against the plain autocast's error; None where there is none)."""
    limits = {name: limit for name, limit in LIMITS[kind].items() if name in row}
    well = all(row[name] >= limit if name == "overlap" else row[name] <= limit for name, limit in limits.items())
    factor, by = GATE[kind], "relative" if "relative" in row else "mean"
    return {**row, "well": well, "gate": None if factor is None else row[by] <= factor * usual[by]}
