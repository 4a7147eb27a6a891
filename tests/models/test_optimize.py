"""`rmbgd models optimize`: what it does without a GPU, and that it sends images as the engine does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch

from rmbgd.cli import models as commands
from rmbgd.models.kernels import optimize
from rmbgd.models.kernels import runtime as cache
from rmbgd.models.load import load_model


@pytest.fixture
def run(tmp_path, capsys):
    """`rmbgd models ...` on a models directory of its own -> (exit status, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser("rmbgd models")
        commands.add_arguments(parser, models=tmp_path / "models")
        status = commands.run(parser.parse_args(words))
        return (status, *capsys.readouterr())

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_so(run, tmp_path):
    """Exit 1, one line, and nothing written."""
    status, out, err = run("optimize", "u2netp")

    assert (status, out) == (1, "")
    assert err == "rmbgd models: optimize: there is no CUDA device here; without one there is nothing to compile\n"
    assert not (tmp_path / "models").exists()


def test_a_cpu_is_not_optimised(run):
    """Only a CUDA device has kernels to compile."""
    status, _, err = run("optimize", "u2netp", "--device", "cpu")

    assert status == 1
    assert "no CUDA device" in err


def test_directory_tells_releases_and_cards_apart():
    """Another Triton, torch or card has another directory, and names of cards make legal ones."""
    here = {"triton": "3.6.0", "torch": "2.11.0+cu130", "card": "NVIDIA H100 80GB HBM3", "capability": (9, 0)}
    found = cache.directory_for(Path("/models"), **here)

    assert found == Path("/models/kernels/triton-3.6.0_torch-2.11.0+cu130_NVIDIA-H100-80GB-HBM3_9.0")
    for changed in ({"triton": "3.7.0"}, {"torch": "2.12.0"}, {"card": "NVIDIA H200"}, {"capability": (9, 1)}):
        assert cache.directory_for(Path("/models"), **here | changed) != found
    assert cache.directory_for(Path("/m"), **here | {"card": "../a/b"}).parent == Path("/m/kernels")


@pytest.mark.parametrize("there", [False, True])
def test_the_directory_is_used_where_it_is(tmp_path, monkeypatch, there):
    """Triton is pointed at the card's directory if somebody filled one, else left to its habits."""
    monkeypatch.setattr(cache, "directory_here", lambda models, _: models / "kernels" / "card")
    monkeypatch.setenv(cache.VARIABLE, "elsewhere")
    if there:
        (tmp_path / "kernels" / "card").mkdir(parents=True)
    expected = tmp_path / "kernels" / "card" if there else None

    assert cache.use_cache(tmp_path, torch.device("cuda", 0)) == expected
    assert os.environ[cache.VARIABLE] == (str(expected) if there else "elsewhere")


def test_without_a_card_there_is_no_directory(tmp_path):
    """A process that asks without a driver gets None, not an exception."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")

    assert cache.use_cache(tmp_path, torch.device("cuda", 0)) is None


def test_images_go_through_the_network_as_in_service(tmp_path, monkeypatch):
    """The run that compiles takes batches of one and two, with images that grow and that shrink."""
    loaded = load_model("u2netp", device="cpu", dtype=torch.float32, models=tmp_path)
    seen = []
    monkeypatch.setattr(loaded.module, "forward", lambda x: seen.append(tuple(x.shape)) or x[:, :1])
    optimize.run(loaded, torch.device("cpu"), torch.float32, triton=False)

    assert seen == [(1, 3, 320, 320), (2, 3, 320, 320)]


@pytest.mark.gpu
@pytest.mark.slow
def test_a_second_run_compiles_nothing(run):
    """After one run every kernel is found where it was kept: the second writes no file."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    status, _, err = run("optimize", "u2netp")
    assert status == 0, err
    kept = {path: path.stat().st_mtime_ns for path in Path(os.environ[cache.VARIABLE]).rglob("*")}
    assert any(path.suffix == ".cubin" for path in kept)
    run("optimize", "u2netp")

    assert {path: path.stat().st_mtime_ns for path in Path(os.environ[cache.VARIABLE]).rglob("*")} == kept
