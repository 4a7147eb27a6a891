"""When the Triton kernels are used, why not, and what `rmbgd models optimize` compiles ahead."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch

from rmbgd.cli import models as commands
from rmbgd.models.kernels import runtime
from rmbgd.models.load import load_model

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("name", "wanted", "usable", "why"),
    [
        ("cuda", "off", False, "switched off"),
        ("meta", "auto", False, "no Triton kernels for meta"),
        ("cpu", "auto", False, "a CPU"),
        pytest.param("cpu", "on", True, "interpreter", marks=NO_CUDA),
        pytest.param("cuda:0", "auto", False, "no usable CUDA device", marks=NO_CUDA),
    ],
)
def test_whether_kernels_are_used_has_a_reason(device, name, wanted, usable, why):
    """On a CPU the interpreter, slow as it is, is used only where it is asked for."""
    found = runtime.triton_for(name, wanted)
    assert found.usable is usable
    assert why in found.why


def test_a_missing_triton_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    found = runtime.triton_for("cuda", "auto")
    assert not found.usable
    assert "not installed" in found.why


@pytest.mark.parametrize(
    ("capability", "refusal", "usable"),
    [((7, 5), "", False), ((8, 0), "", True), ((9, 0), "", True), ((9, 0), "a card does not compute", False)],
)
def test_old_cards_and_failed_trials_are_left_to_plain_torch(device, monkeypatch, capability, refusal, usable):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(runtime, "_trial", lambda _: refusal)
    found = runtime.triton_for("cuda", "auto")
    assert found.usable is usable
    assert "a card" in found.why


def test_a_kernel_that_does_not_compile_is_a_reason(device, monkeypatch):

    def broken(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nmore")

    from rmbgd.models.kernels import norm

    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    assert runtime._trial(device) == ""
    monkeypatch.setattr(norm, "layer_norm", lambda x, *_: x)
    assert runtime._trial(device) == "a kernel computes nonsense"
    monkeypatch.setattr(norm, "layer_norm", broken)
    said = "a kernel does not compile or run: RuntimeError: Failed to find C compiler. Please specify via CC"
    assert runtime._trial(device) == f"{said}; see rmbgd models optimize"


def optimize(models: Path, *words: str) -> int:
    """The exit status of `rmbgd models optimize u2netp`."""
    parser = argparse.ArgumentParser("rmbgd models")
    commands.add_arguments(parser, models=models)
    return commands.run(parser.parse_args(("optimize", "u2netp", *words)))


@pytest.fixture(autouse=True)
def this_user(monkeypatch):
    """Tests by root go on as root, wherever the service is installed."""
    monkeypatch.setattr(commands, "_become_service", lambda: None)


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_a_gpu_one_line_says_so(capsys, tmp_path, device):
    assert optimize(tmp_path / "models", "--device", device) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "rmbgd models: optimize: there is no CUDA device here; without one there is nothing to compile\n"
    assert not (tmp_path / "models").exists()


def test_images_go_through_the_network_as_in_service(tmp_path, monkeypatch):
    """The run that compiles takes batches of one and two, with images that grow and that shrink."""
    loaded = load_model("u2netp", device="cpu", dtype=torch.float32, models=tmp_path)
    seen = []
    monkeypatch.setattr(loaded.module, "forward", lambda x: seen.append(tuple(x.shape)) or x[:, :1])
    runtime.run(loaded, torch.device("cpu"), torch.float32, triton=False)
    assert seen == [(1, 3, 320, 320), (2, 3, 320, 320)]


@pytest.mark.gpu
@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert optimize(tmp_path) == 0
    kept = {path: path.stat().st_mtime_ns for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*")}
    assert any(path.suffix == ".cubin" for path in kept)
    optimize(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*")} == kept
