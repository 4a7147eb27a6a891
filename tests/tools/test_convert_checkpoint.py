from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rmbgd.models.checkpoint import published, read_header
from tools.convert_checkpoint import main

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture
def run(capsys):
    """The tool's main on arguments -> (exit status, what it wrote to stderr)."""

    def call(*arguments: object) -> tuple[int, str]:
        status = main([*map(str, arguments)])
        return status, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def tensors():
    """Every tensor of a Swin-T checkpoint: zeros that share one page each, with a mark in one of them."""
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    made = {n: torch.zeros((), dtype=dtypes[t.dtype]).expand(t.shape) for n, t in published("swin_v1_t").items()}
    made["decoder.conv_out1.0.bias"] = torch.tensor([0.1234567])
    return made


def mark(path: Path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor("decoder.conv_out1.0.bias")


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_becomes_the_same_tensors(tmp_path, tensors, new_format, run):
    """Both of torch's file formats convert to every published name and shape with the values unchanged."""
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    status, said = run(tmp_path / "a.pth", tmp_path / "out" / "model.safetensors")

    assert (status, said) == (0, "")
    assert read_header(tmp_path / "out" / "model.safetensors").tensors == published("swin_v1_t")
    assert torch.equal(mark(tmp_path / "out" / "model.safetensors"), tensors["decoder.conv_out1.0.bias"])


def test_wrappers_and_training_state_come_off(tmp_path, tensors, run):
    """Prefixes of training wrappers and what a trainer saves beside the weights do not reach the result."""
    wrapped = {f"module._orig_mod.{n}": t for n, t in tensors.items()}
    torch.save({"epoch": 244, "state_dict": wrapped, "optimizer": {"lr": 1e-4}}, tmp_path / "a.pt")
    status, said = run(tmp_path / "a.pt", tmp_path / "model.safetensors")

    assert (status, said) == (0, "")
    assert read_header(tmp_path / "model.safetensors").tensors.keys() == tensors.keys()


def test_half_precision_leaves_counters_alone(tmp_path, tensors, run):
    """--dtype float16 halves the weights and keeps integer buffers as they are."""
    torch.save(tensors, tmp_path / "a.pth")
    status, said = run(tmp_path / "a.pth", tmp_path / "model.safetensors", "--dtype", "float16")
    header = read_header(tmp_path / "model.safetensors")

    assert (status, said) == (0, "")
    assert header.precision == "F16"
    assert header.tensors["decoder.gdt_convs_4.1.num_batches_tracked"].dtype == "I64"


class Hostile:
    """A pickle that makes a file when it is loaded the careless way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, run):
    """A pickle that would run a function is refused by name, in one line, and the function has not run."""
    torch.save({"state_dict": Hostile(tmp_path / "ran")}, tmp_path / "a.pth")
    status, said = run(tmp_path / "a.pth", tmp_path / "model.safetensors")

    assert not (tmp_path / "ran").exists()
    assert status == 1
    assert "Nothing of it was run" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "model.safetensors").exists()


def test_the_hostile_pickle_is_a_real_one(tmp_path):
    """The pickle of the test above does run its function when it is loaded the careless way."""
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))

    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 torn"], ids=["empty", "junk", "torn zip"])
def test_damage_is_one_line(tmp_path, content, run):
    """A file that is no checkpoint ends in exit 1, one line and no target."""
    (tmp_path / "a.pth").write_bytes(content)
    status, said = run(tmp_path / "a.pth", tmp_path / "model.safetensors")

    assert status == 1
    assert len(said.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == ["a.pth"]


def test_another_network_is_told_so(tmp_path, run):
    """A checkpoint of another architecture is refused with what it probably is."""
    torch.save({"stage1.rebnconvin.conv_s1.weight": torch.zeros(3)}, tmp_path / "u2net.pth")
    status, said = run(tmp_path / "u2net.pth", tmp_path / "model.safetensors")

    assert status == 1
    assert "U²-Net" in said


def test_a_missing_tensor_is_named(tmp_path, tensors, run):
    """A checkpoint without one needed tensor is refused with that tensor's name."""
    lacking = {n: t for n, t in tensors.items() if n != "decoder.conv_out1.0.weight"}
    torch.save(lacking, tmp_path / "a.pth")
    status, said = run(tmp_path / "a.pth", tmp_path / "model.safetensors")

    assert status == 1
    assert "1 missing: decoder.conv_out1.0.weight" in said


def test_safetensors_with_prefixes_are_taken_too(tmp_path, run):
    """A safetensors file whose names carry a wrapper's prefix is told apart by its names, not by its suffix."""
    save_file({"module.bb.patch_embed.proj.weight": torch.zeros(128, 3, 4, 4)}, tmp_path / "a.safetensors")
    status, said = run(tmp_path / "a.safetensors", tmp_path / "model.safetensors")

    assert status == 1
    assert "Swin of 128 channels" in said


@pytest.mark.integration
def test_it_runs_from_anywhere(tmp_path):
    """Called as the loader's refusal spells it, from another folder, the tool starts and explains itself."""
    answer = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True, cwd="/")

    assert "source" in answer.stdout
