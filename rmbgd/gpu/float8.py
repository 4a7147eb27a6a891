"""Products of the backbone in float8 (e4m3), for devices whose units have it: Ada and Hopper. Off unless asked for.

Weights are scaled per output channel once, activations per token as they come, sums run in float32 or as the device's
units do, the answer has the type it had before. Only wide products change: short ones gain nothing, and the decoder,
norms, attention and the head stay as they are. Does not decide whether the answers are good enough: `gates.py` does.

Formats: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rmbgd.models.pieces import Linear

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_FEATURES = 384  # on both sides: below, scaling costs as much as the product saves
MULTIPLE = 16  # that the units ask of both sides


class Float8Linear(nn.Module):
    """x [..., in] times weight [out, in] transposed, plus bias. Takes the place of an nn.Linear in half precision."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        scale = scales(linear.weight)
        self.register_buffer("weight", scaled(linear.weight, scale))
        self.register_buffer("scale", scale.view(1, -1))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = scales(rows)
        product: Tensor = torch._scaled_mm(  # noqa: SLF001 - the one way to these units that torch has
            scaled(rows, scale),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=False,
        )
        return product.to(self.dtype).view(*x.shape[:-1], self.out_features)

    def widened(self) -> nn.Linear:
        """The same product in float32."""
        out_features, in_features = self.weight.shape
        linear = Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.float() * self.scale.t(), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.float(), requires_grad=False)
        return linear


def scales(rows: Tensor) -> Tensor:
    """float32 [n, 1]: what each row of [n, k] is divided by, so that its largest number is float8's largest."""
    largest = rows.detach().abs().amax(dim=1, keepdim=True).to(torch.float32)
    return largest.clamp(min=1e-12) / LARGEST


def scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """[n, k] in float8; beyond its range cannot be, for `scale` is the row's own."""
    return (rows.detach().to(torch.float32) / scale).clamp_(-LARGEST, LARGEST).to(FLOAT8)


def suitable(module: nn.Module) -> bool:
    """Whether a layer is one of the wide products."""
    if not isinstance(module, nn.Linear):
        return False
    sides = (module.in_features, module.out_features)
    return min(sides) >= LEAST_FEATURES and all(side % MULTIPLE == 0 for side in sides)


def convert(network: nn.Module) -> dict[str, nn.Module]:
    """Put Float8Linear in the place of every suitable layer; the layers that were there, by name."""
    before = {name: module for name, module in network.named_modules() if suitable(module)}
    for name, module in before.items():
        assert isinstance(module, nn.Linear)
        _set(network, name, Float8Linear(module))
    return before


def restore(network: nn.Module, before: dict[str, nn.Module]) -> None:
    """Undo `convert`."""
    for name, module in before.items():
        _set(network, name, module)


def widened(network: nn.Module) -> nn.Module:
    """Put layers of float32 in the place of every Float8Linear, with the weights that those have; in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Float8Linear):
            _set(network, name, module.widened())
    return network


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
