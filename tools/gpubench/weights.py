"""Weights under the published names, and the two networks made of them: the plain one and ours.

The recipe's where its folder is at hand, else drawn by the same rule from other numbers: time and memory are the same,
errors are alike, and only the goldens cannot be compared.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.models.checkpoint import BACKBONES, is_optional, published
from rmbgd.models.convert import assemble
from rmbgd.models.registry import PatchOrder
from rmbgd.models.store import CONFIG, WEIGHTS
from tools.gpubench.plan import Plan


def module(name: str) -> Any:
    """A module of the tests: the oracle, or the reader of recipes."""
    return importlib.import_module(f"tests.models.{name}")


def drawn(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """One tensor that exercises its layer: statistics differ by channel, offsets move samples between pixels."""
    draw: NDArray[Any] = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_mean"):
        return 0.1 * draw
    if name.endswith("running_var"):
        return np.asarray(np.exp(0.2 * draw))
    if name.endswith("relative_position_bias_table"):
        return 0.5 * draw
    if len(shape) >= 2:
        gain = 2.0 if "offset_conv" in name else 1.4 if "conv" in name else 1.0
        return draw * np.float32(gain / np.sqrt(np.prod(shape[1:])))
    return 1.0 + 0.1 * draw if name.endswith(".weight") else 0.05 * draw


def write(plan: Plan, backbone: str) -> str:
    """model.safetensors and config.json of a backbone, unless they are there. Says where the weights come from."""
    from safetensors.numpy import save_file

    folder = plan.weights(backbone)
    if plan.checkpoint and backbone == plan.backbone:
        return f"checkpoint {folder}"
    if (folder / CONFIG).exists():
        return str(json.loads((folder / CONFIG).read_text())["origin"])
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: info.shape for name, info in published(backbone).items() if not is_optional(name)}
    if plan.recipe:
        recipe = module("stress").recipe(Path(plan.recipe))
        tensors = {name: np.asarray(recipe.weight(name, shape)) for name, shape in shapes.items()}
        origin = "recipe"
    else:
        random = np.random.default_rng(1)
        tensors = {name: drawn(name, shape, random) for name, shape in shapes.items()}
        origin = "drawn by rule: no recipe at hand"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = {"model_type": "birefnet", "patch_order": plan.patch_order, "input_size": [plan.side, plan.side]}
    (folder / CONFIG).write_text(json.dumps(config | {"origin": origin}))
    return origin


def tensors_of(plan: Plan, backbone: str) -> Callable[[str], Any]:
    from safetensors.torch import load_file

    state: dict[str, Any] = load_file(plan.weights(backbone) / WEIGHTS)
    return state.__getitem__


def ours(plan: Plan, backbone: str, dtype: Any, order: str = "") -> Any:
    """Folded, as the service loads it, in torch alone."""
    patch_order = PatchOrder(order or plan.patch_order)
    return assemble(BACKBONES[backbone], patch_order, tensors_of(plan, backbone), device=plan.device, dtype=dtype)


def plain(plan: Plan, backbone: str) -> tuple[Any, str]:
    """The tests' oracle in float32, on the device, and which deformable convolution it uses.

    The author's code calls torchvision's, which is much faster on a GPU than the oracle's own gathering: with
    torchvision at hand the plain way gets it too.
    """
    import torch

    oracle = module("oracle")
    network = oracle.build(backbone, plan.patch_order)
    tensors = tensors_of(plan, backbone)
    # The counters of BatchNorm are optional, and nothing reads them.
    network.load_state_dict(
        {name: tensors(name) for name in network.state_dict() if not is_optional(name)}, strict=False
    )
    network = network.to(plan.device)
    try:
        deform_conv2d = importlib.import_module("torchvision.ops").deform_conv2d
    except ImportError:
        deform_conv2d = None
    for part in network.modules():
        if isinstance(part, oracle.DeformableConv):
            part.forward = partial(_deformed, part, deform_conv2d, torch)
    return network, "torchvision" if deform_conv2d else "gathered columns"


def _deformed(part: Any, deform_conv2d: Any, torch: Any, x: Any) -> Any:
    weight = part.regular_conv.weight
    if deform_conv2d is not None:
        offset, modulation = part.offset_conv(x), 2 * part.modulator_conv(x).sigmoid()
        return deform_conv2d(x, offset, weight, padding=part.kernel // 2, mask=modulation)
    with torch.device(x.device), torch.autocast(x.device.type, enabled=False):
        x = x.to(weight.dtype)
        return (weight.flatten(1) @ part.columns(x).flatten(1, 2)).unflatten(-1, x.shape[-2:])
