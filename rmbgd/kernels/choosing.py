"""Tells the layers of a network whether to run their kernels. Does not know which layers have one; they say so."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasKernel(Protocol):
    """A layer that can run as a Triton kernel."""

    def use_kernels(self, *, triton: bool) -> None:
        """Choose, and make once what the kernel reads besides the weights. Weights must be in place."""
        ...


def use_kernels(network: nn.Module, *, triton: bool) -> int:
    """Choose for every layer of `network`: how many have a kernel. Networks begin without.

    Call it when the weights lie on their device in their type; again after either changes. The kernels' own tensors
    are not saved with the network. With 0 the network is one for which nobody wrote a kernel.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, HasKernel)]
    for layer in layers:
        layer.use_kernels(triton=triton)
    return len(layers)
