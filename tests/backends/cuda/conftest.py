"""Engines on a device: a network that is quick and known, the host in a GPU's place, and a real GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rmbgd.backends.cpu import torch_network as torch_engine
from rmbgd.backends.cuda import network
from rmbgd.backends.cuda.backend import CudaBackend
from rmbgd.engine.arena import Arena
from rmbgd.engine.types import Options
from rmbgd.models import load as weights
from rmbgd.testing.device import HostDevice
from tests.backends.conftest import OPTIONS


class Green(nn.Module):
    """Logits are a quarter of the green input: 0.3 levels of alpha for one. What else happens is a test's.

    before  called with the input; may raise
    after   called with the logits; its answer counts
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25), requires_grad=False)
        self.before: Callable[[torch.Tensor], None] = lambda _: None
        self.after: Callable[[torch.Tensor, Green], torch.Tensor] = lambda logits, _: logits

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.before(inputs)
        return self.after(self.weight * inputs[:, 1:2].to(self.weight.dtype), self)


@pytest.fixture
def green(monkeypatch: pytest.MonkeyPatch) -> Green:
    """What every engine loads while a test runs."""
    module = Green()
    real = weights.load_model

    def load(*arguments: object, device: object, dtype: torch.dtype, **keywords: object) -> SimpleNamespace:
        loaded = real(*arguments, device="cpu", dtype=torch.float32, **keywords)
        provenance = replace(loaded.provenance, model="green", precision=str(dtype).removeprefix("torch."))
        return SimpleNamespace(
            module=module.to(device, dtype), input_size=(320, 320), filter=loaded.filter, provenance=provenance
        )

    monkeypatch.setattr(network, "load_model", load)
    monkeypatch.setattr(torch_engine, "load_model", load)
    return module


@pytest.fixture
def make(arena: Arena) -> Callable[..., CudaBackend]:
    """Engines on the host device, started."""

    def build(options: Options = OPTIONS, device: HostDevice | None = None, *, start: bool = True) -> CudaBackend:
        engine = CudaBackend(arena.block, options, lambda: device or HostDevice())
        if start:
            engine.start()
            for started in engine._networks.values():
                started.seconds = {size: 0.1 + 0.9 * size for size in started.seconds}  # measured: too quick to compare
        return engine

    return build


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The device, with float32 products that are float32 (TF32 off), and its memory given back afterwards."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    kinds = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    yield torch.device("cuda", 0)
    for kind, precision in zip(kinds, before, strict=True):
        kind.fp32_precision = precision
    torch.cuda.empty_cache()


def create(block: np.ndarray, options: Mapping[str, Any]) -> CudaBackend:
    """The engine's process calls it: a small GPU, with the host in its place."""
    return CudaBackend(block, Options.from_json(options), lambda: HostDevice((256 << 20, 8 << 30)))
