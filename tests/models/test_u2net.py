"""The embedded network against the public ONNX file it was converted from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rmbgd.models.store import EMBEDDED
from rmbgd.models.u2net import U2NetP, build_u2netp
from tests.support.shared_data import shared
from tools.convert_u2netp import convert

SIZE = 320
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return build_u2netp(device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def public_file() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(shared("weights") / "u2netp.onnx", options, ["CPUExecutionProvider"])


def normalised(path: Path) -> np.ndarray:
    """The authors' preprocessing: antialiased bilinear to 320x320, /255, mean and deviation; [3,320,320]."""
    with Image.open(path) as photo:
        small = np.asarray(photo.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)
    return ((small / 255 - MEAN) / STD).transpose(2, 0, 1)


@torch.inference_mode()
def alpha_of(network: torch.nn.Module, batch: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(batch)).sigmoid().numpy()


def public_alpha(session: onnxruntime.InferenceSession, batch: np.ndarray) -> np.ndarray:
    return np.concatenate([session.run(["1959"], {"input.1": image[None]})[0] for image in batch])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_random_inputs_equal_the_public_file(network, public_file, scale):
    batch = scale * np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE), dtype=np.float32)
    np.testing.assert_allclose(alpha_of(network, batch), public_alpha(public_file, batch), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_photographs_equal_the_public_file(network, public_file):
    """Where the maps saturate."""
    photos = sorted((shared("eval") / "photos").glob("*.jpg"))[::25]
    batch = np.stack([normalised(photo) for photo in photos])
    assert len(photos) >= 3
    np.testing.assert_allclose(alpha_of(network, batch), public_alpha(public_file, batch), rtol=0, atol=1e-4)


def test_package_holds_the_published_values_and_says_so():
    """Bit for bit what the conversion script makes of the public ONNX file; with licence and source."""
    expected = convert((shared("weights") / "u2netp.onnx").read_bytes())
    with safe_open(EMBEDDED, framework="numpy") as stored:
        assert set(stored.keys()) == set(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(stored.get_tensor(name), tensor)
        provenance = stored.metadata()["provenance"]
    assert "Apache-2.0" in provenance
    assert "xuebinqin/U-2-Net" in provenance
    assert "Apache License" in EMBEDDED.with_suffix(".LICENSE").read_text()


def test_conversion_refuses_another_file():
    with pytest.raises(ValueError, match="sha256"):
        convert(b"something else")


def test_names_are_strict(monkeypatch, tmp_path):
    tensors = load_file(EMBEDDED)
    del tensors["fuse.bias"]
    broken = tmp_path / "u2netp.safetensors"
    save_file(tensors, broken)
    monkeypatch.setattr("rmbgd.models.u2net.EMBEDDED", broken)
    with pytest.raises(RuntimeError, match=r"fuse\.bias"):
        build_u2netp(device="cpu", dtype=torch.float32)


def test_odd_sizes_pass_through():
    network = U2NetP().requires_grad_(requires_grad=False).eval()
    assert network(torch.zeros(1, 3, 75, 93)).shape == (1, 1, 75, 93)


@pytest.mark.slow
def test_bfloat16_stays_near(network):
    half = build_u2netp(device="cpu", dtype=torch.bfloat16)
    batch = normalised(min((shared("eval") / "photos").glob("*.jpg")))[None]
    with torch.inference_mode():
        alpha = half(torch.from_numpy(batch).bfloat16()).float().sigmoid().numpy()
    assert abs(alpha - alpha_of(network, batch)).mean() <= 1.5 / 255
