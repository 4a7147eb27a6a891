"""Engines on a device: a network that is quick and known, images in an arena, the host in a GPU's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rmbgd.backends import cpu as torch_engine
from rmbgd.backends.cuda import memory_plan as plan
from rmbgd.backends.cuda import network
from rmbgd.backends.cuda.backend import CudaBackend
from rmbgd.engine.arena import Arena
from rmbgd.engine.types import ModelChoice, Options, OutputPlane, Region, Slot, Work, region_bytes, view
from rmbgd.models import load as weights
from rmbgd.testing.device import HostDevice

MEBI = 1 << 20
OPTIONS = Options({"u2netp": ModelChoice("u2netp")}, Path("/nonexistent"), threads=1, batch_maximum=4)
GENTLE = 0.25
"""Logits per unit of the normalised input: a level of the input is then 0.3 levels of alpha."""


class Green(nn.Module):
    """Logits are `GENTLE` x the green input; what else happens is for a test to say.

    before  called with the input; may raise
    after   called with the logits; its answer counts
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(GENTLE), requires_grad=False)
        self.before: Callable[[torch.Tensor], None] = lambda _: None
        self.after: Callable[[torch.Tensor, Green], torch.Tensor] = lambda logits, _: logits

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.before(inputs)
        return self.after(self.weight * inputs[:, 1:2].to(self.weight.dtype), self)


class Canvas:
    """Places images in the arena one after the other, without leases: a test has the arena for itself."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.offset = 0

    def place(
        self,
        image_id: int,
        rgb: np.ndarray,
        *,
        source_alpha: np.ndarray | None = None,
        output: OutputPlane = OutputPlane.RGBA8,
        clean: bool = True,
    ) -> Work:
        height, width = rgb.shape[:2]
        region = Region(self.offset, height, width, source_alpha is not None, output)
        self.offset += region_bytes(height, width, source_alpha=source_alpha is not None, output=output)
        slot = view(self.arena.block, region)
        slot.rgb[...] = rgb
        if source_alpha is not None:
            slot.source_alpha[...] = source_alpha
        self.plane_of(slot)[...] = 7
        return Work(image_id, region, "u2netp", clean)

    def slot(self, work: Work) -> Slot:
        return view(self.arena.block, work.region)

    def plane(self, work: Work) -> np.ndarray:
        """A copy of the output plane."""
        return self.plane_of(self.slot(work)).copy()

    @staticmethod
    def plane_of(slot: Slot) -> np.ndarray:
        plane = slot.alpha if slot.rgba is None else slot.rgba
        assert plane is not None
        return plane


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena(64 * MEBI) as arena:
        yield arena


@pytest.fixture
def canvas(arena: Arena) -> Canvas:
    return Canvas(arena)


@pytest.fixture
def green(monkeypatch: pytest.MonkeyPatch) -> Green:
    """What every engine loads while a test runs."""
    module = Green()
    real = weights.load_model

    def load(*arguments: object, device: object, dtype: torch.dtype, **keywords: object) -> SimpleNamespace:
        loaded = real(*arguments, device="cpu", dtype=torch.float32, **keywords)
        provenance = replace(loaded.provenance, model="green", precision=str(dtype).removeprefix("torch."))
        return SimpleNamespace(module=module.to(device, dtype), input_size=(320, 320), provenance=provenance)

    monkeypatch.setattr(network, "load_model", load)
    monkeypatch.setattr(torch_engine, "load_model", load)
    return module


@pytest.fixture
def small_staging(monkeypatch: pytest.MonkeyPatch) -> Options:
    """Options with 1 MiB of staging: three quarters for what goes up, 256 KiB for what comes down."""
    monkeypatch.setattr(plan, "STAGING_LEAST", MEBI)
    return replace(OPTIONS, staging_bytes=MEBI)


@pytest.fixture
def make(arena: Arena) -> Iterator[Callable[..., CudaBackend]]:
    """Engines on the host device, started, closed at the end."""
    engines = []

    def build(options: Options = OPTIONS, device: HostDevice | None = None, *, start: bool = True) -> CudaBackend:
        engine = CudaBackend(arena.block, options, lambda: device or HostDevice())
        engines.append(engine)
        if start:
            engine.start()
            for started in engine._networks.values():
                started.seconds = {size: 0.1 + 0.9 * size for size in started.seconds}  # measured: too quick to compare
        return engine

    yield build
    for engine in engines:
        engine.close()
