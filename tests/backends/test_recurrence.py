"""A tiny recurrent network of ours through the CPU's backend: it sees the frame before, under its alpha, or black."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rmbgd.backends.cpu import backend, torch_network
from rmbgd.backends.recurrence import SEQUENCES, Recurrence, under_alpha
from rmbgd.engine import types
from rmbgd.engine.types import FrameLink
from rmbgd.resampling import Filter

SIZE = (32, 32)


class Tiny(nn.Module):
    """Alpha is high where green is, and where red of the frame before is, as far as its alpha went."""

    recurrent = True

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.shape[1] == 6
        now, before = inputs[:, 1:2], inputs[:, 3:4]
        return 8 * torch.maximum(now, before)  # in the units of the normalisation: 0 is the mean


class Provenance:
    input_size = SIZE

    @staticmethod
    def facts() -> dict[str, object]:
        return {"model": "tiny", "sha256": "0" * 64, "precision": "float32", "runtime": "torch", "runtime_version": "2"}


class Loaded:
    module, provenance, filter = Tiny(), Provenance(), Filter.BOX


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(torch_network, "load_model", lambda *_a, **_k: Loaded())
    monkeypatch.setattr(backend, "check_golden", lambda *_a: 1.0)  # it has never seen the golden image
    monkeypatch.setattr(backend.openvino_network, "covers", lambda _model: False)
    monkeypatch.setattr(backend, "resolve", lambda *_a: None)
    options = types.Options({"tiny": types.ModelChoice("tiny")}, tmp_path, precision="float32", threads=1)
    made = backend.CpuBackend(np.zeros(1 << 20, np.uint8), options)
    assert made.start().models["tiny"]["recurrent"] is True
    return made


def alpha_of(engine: Any, colour: tuple[int, int, int], link: FrameLink | None) -> int:
    """Of an image of one colour."""
    region = types.Region(0, 64, 64, False, types.OutputPlane.ALPHA8)
    slot = types.view(engine._block, region)
    slot.rgb[...] = colour
    engine.segment([types.Work(1, region, "tiny", refine=False, link=link)])
    assert slot.alpha is not None
    return int(slot.alpha[32, 32])


RED, GREEN, YELLOW, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 0, 0)


def test_the_frame_before_is_seen_as_far_as_its_alpha_went(engine: Any) -> None:
    assert alpha_of(engine, BLACK, None) < 10
    assert alpha_of(engine, YELLOW, FrameLink("a", 1, 0)) > 245
    assert alpha_of(engine, BLACK, FrameLink("a", 2, 1)) > 245  # red was there, under alpha
    assert alpha_of(engine, RED, FrameLink("b", 1, 0)) < 10
    assert alpha_of(engine, BLACK, FrameLink("b", 2, 1)) < 10  # red was there, without alpha


def test_what_does_not_follow_begins_from_black(engine: Any) -> None:
    alpha_of(engine, YELLOW, FrameLink("a", 1, 0))
    assert alpha_of(engine, BLACK, FrameLink("a", 3, 2)) < 10  # 2 was computed elsewhere
    alpha_of(engine, YELLOW, FrameLink("a", 4, 3))
    assert alpha_of(engine, BLACK, FrameLink("other", 5, 4)) < 10
    assert alpha_of(engine, BLACK, None) < 10


def test_only_the_sequences_in_work_are_remembered() -> None:
    memory, image = Recurrence(), np.full((*SIZE, 3), 200, np.uint8)
    for number in range(SEQUENCES + 1):
        memory.keep(FrameLink(f"s{number}", 1, 0), under_alpha(image, np.full(SIZE, 0.5, np.float32)))
    assert memory.before(FrameLink("s0", 2, 1)) is None
    kept = memory.before(FrameLink(f"s{SEQUENCES}", 2, 1))
    assert kept is not None
    assert (kept == 100).all()
