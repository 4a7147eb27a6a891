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
    return lambda *arguments: (main([*map(str, arguments)]), capsys.readouterr().err)


@pytest.fixture(scope="module")
def tensors():
    """Every tensor of a Swin-T checkpoint: zeros that share one page each, with a mark in one of them."""
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    made = {n: torch.zeros((), dtype=dtypes[t.dtype]).expand(t.shape) for n, t in published("swin_v1_t").items()}
    made["decoder.conv_out1.0.bias"] = torch.tensor([0.1234567])
    return made


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_becomes_the_same_tensors(tmp_path, tensors, new_format, run):
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    target = tmp_path / "out" / "model.safetensors"
    assert run(tmp_path / "a.pth", target) == (0, "")
    assert read_header(target).tensors == published("swin_v1_t")
    with safe_open(target, "pt") as file:
        assert torch.equal(file.get_tensor("decoder.conv_out1.0.bias"), tensors["decoder.conv_out1.0.bias"])


def test_wrappers_and_training_state_come_off_and_counters_stay(tmp_path, tensors, run):
    wrapped = {f"module._orig_mod.{n}": t for n, t in tensors.items()}
    torch.save({"epoch": 244, "state_dict": wrapped, "optimizer": {"lr": 1e-4}}, tmp_path / "a.pt")
    assert run(tmp_path / "a.pt", tmp_path / "model.safetensors", "--dtype", "float16") == (0, "")
    header = read_header(tmp_path / "model.safetensors")
    assert (header.precision, header.tensors.keys()) == ("F16", tensors.keys())
    assert header.tensors["decoder.gdt_convs_4.1.num_batches_tracked"].dtype == "I64"


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, run):
    torch.save({"state_dict": Hostile(tmp_path / "ran")}, tmp_path / "a.pth")
    status, said = run(tmp_path / "a.pth", tmp_path / "model.safetensors")
    assert (status, len(said.strip().splitlines())) == (1, 1)
    assert "Nothing of it was run" in said
    assert os.listdir(tmp_path) == ["a.pth"]
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_what_cannot_be_converted_is_told_in_one_line(tmp_path, tensors, run):
    refused = {"a.pth": "U²-Net", "b.safetensors": "128 channels", "c.pth": "1 missing: decoder.conv_out1.0.weight"}
    for name, content in (("empty.pth", b""), ("junk.pth", b"junk"), ("torn.pth", b"PK\x03\x04 torn")):
        (tmp_path / name).write_bytes(content)
        refused[name] = ""
    torch.save({"stage1.rebnconvin.conv_s1.weight": torch.zeros(3)}, tmp_path / "a.pth")
    save_file({"module.bb.patch_embed.proj.weight": torch.zeros(128, 3, 4, 4)}, tmp_path / "b.safetensors")
    torch.save({n: t for n, t in tensors.items() if n != "decoder.conv_out1.0.weight"}, tmp_path / "c.pth")
    for name, words in refused.items():
        status, said = run(tmp_path / name, tmp_path / "model.safetensors")
        assert (status, len(said.strip().splitlines())) == (1, 1)
        assert words in said
    assert set(os.listdir(tmp_path)) == refused.keys()


@pytest.mark.integration
def test_it_runs_from_anywhere(tmp_path):
    answer = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert "source" in answer.stdout
