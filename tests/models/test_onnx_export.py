"""The exported networks, computed by ONNX Runtime, are ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rmbgd.models.birefnet import BiRefNet
from rmbgd.models.convert import assemble
from rmbgd.models.load import load_model
from rmbgd.models.onnx_export import INPUT, OUTPUT, export_onnx, write_onnx
from rmbgd.models.registry import PatchOrder
from rmbgd.models.store import DEFAULT_MODELS
from tests.models import stress

pytestmark = pytest.mark.slow  # tracing takes seconds
onnxruntime = pytest.importorskip("onnxruntime", "1.25", reason="no onnxruntime with DeformConv")


def computed(path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def tiny() -> BiRefNet:
    weights = stress.tiny_oracle().state_dict()
    order = PatchOrder.CHANNEL_FIRST
    return assemble(stress.TINY, order, weights.__getitem__, device="cpu", dtype=torch.float32)


def test_birefnet_is_the_same_function(tmp_path):
    """Windows that do not fit, shifted ones, samples far outside, the head's border."""
    network, x = tiny(), stress.noise(2, 3, 64, 96).float()
    expected = stress.logits(network, x)
    write_onnx(network, tmp_path / "tiny.onnx", 2, (64, 96))
    torch.testing.assert_close(computed(tmp_path / "tiny.onnx", x), expected, rtol=0, atol=1e-3)
    with pytest.raises(AssertionError):  # the bound tells another input from this one
        torch.testing.assert_close(computed(tmp_path / "tiny.onnx", 1.01 * x), expected, rtol=0, atol=1e-3)


def test_a_checkpoint_at_its_published_size_equals_the_reference(tmp_path, folder):
    x, expected = stress.golden("swin_v1_t-2x256x384")
    assert export_onnx(folder, tmp_path, tmp_path / "lite.onnx", batch=2, size=(256, 384)) == (256, 384)
    torch.testing.assert_close(computed(tmp_path / "lite.onnx", x), expected, rtol=0, atol=1e-3)


def test_the_embedded_network_is_exported_at_its_own_size(tmp_path):
    assert export_onnx("u2netp", DEFAULT_MODELS, tmp_path / "u2netp.onnx") == (320, 320)
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 3, 320, 320)).astype(np.float32))
    module = load_model("u2netp", device="cpu", dtype=torch.float32).module
    torch.testing.assert_close(computed(tmp_path / "u2netp.onnx", x), stress.logits(module, x), rtol=0, atol=1e-3)
