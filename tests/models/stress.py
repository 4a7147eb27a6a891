"""Weights and inputs that exercise every part of BiRefNet: drawn at any size, or the recipe's at the published ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmbgd.models.checkpoint import Backbone
from rmbgd.models.load import load_model
from tests.models import oracle
from tests.support.shared_data import shared

CPU = {"device": "cpu", "dtype": torch.float32}

# Windows of 3 and maps that are no multiples of it; stages whose sides do not halve evenly.
TINY = Backbone(embed=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=3, name="tiny")


def noise(*shape: int) -> Tensor:
    """Normal numbers in float64, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def drawn(network: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights for any module of the oracle, in its dtype, under its names.

    Untrained weights would prove little: freshly made, BatchNorm is the identity, biases are small and offsets are
    zero. Here statistics differ by channel, scores are peaky, and samples land between pixels, far away and outside.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, like in network.state_dict().items():
        draw = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        if not like.is_floating_point():
            weights[name] = like
            continue
        if name.endswith("running_var"):
            draw = (0.4 * draw).exp()
        elif "offset_conv.bias" in name:
            draw = torch.where(draw.abs() > 1.5, 40 * draw, 1.5 * draw)
        elif like.dim() >= 2:
            gain = 2 if "offset_conv" in name else 1.4
            draw *= 1 if name.endswith("relative_position_bias_table") else gain / like[0].numel() ** 0.5
        elif name.endswith("weight"):
            draw = 1 + 0.3 * draw
        else:
            draw = 0.3 * draw
        weights[name] = draw.to(like.dtype)
    return weights


@cache
def tiny_oracle(patch_order: str = "channel_first") -> oracle.BiRefNet:
    """The oracle at `TINY` in float64, with drawn weights, in eval mode."""
    network = oracle.BiRefNet(TINY, patch_order).double()
    network.load_state_dict(drawn(network))
    return network.requires_grad_(requires_grad=False).eval()


def recipe(folder: Path | None = None) -> ModuleType:
    """The module recipe.py of a folder of measuring data; by default skips the test where the data are not at hand."""
    path = (folder or shared("birefnet")) / "recipe.py"
    spec = importlib.util.spec_from_file_location("birefnet_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_tensors(module: ModuleType, backbone: str) -> Callable[[str], Tensor]:
    """Published name -> float32 tensor of the recipe's checkpoint, drawn when asked for."""
    shapes = {name: shape for name, shape, _ in module.keys(backbone)}
    return lambda name: torch.from_numpy(np.asarray(module.weight(name, shapes[name])))


def golden(name: str) -> tuple[Tensor, Tensor]:
    """The input and the reference's logits."""
    with np.load(shared("birefnet") / f"golden-{name}.npz") as stored:
        batch, _, height, width = (int(side) for side in stored["shape"])
        x = recipe().image(str(stored["image"]), batch, height, width)
        return torch.from_numpy(x), torch.from_numpy(stored["logits"])


def randomised(layer: torch.nn.Module, *, seed: int = 7) -> torch.Generator:
    """Normal numbers over the root of the fan-in for every parameter; the generator, for more."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.requires_grad_(requires_grad=False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return generator


def load(source: object, **options: Any) -> torch.nn.Module:
    loaded = load_model(source, **options)
    assert loaded.provenance
    return loaded.module


def logits(module: torch.nn.Module, image: Tensor) -> Tensor:
    """Of our network, or of its class for transformers."""
    with torch.inference_mode():
        output = module(image)
    return output if isinstance(output, Tensor) else output.logits
