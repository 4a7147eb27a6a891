"""Where TensorRT's engines lie, and what is said where none can be built. Building itself needs a card."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from rmbgd.errors import ConfigError, ModelError
from rmbgd.models import tensorrt_engine
from rmbgd.models.store import resolve

PLACE = {"card": "NVIDIA H200 (80 GB)", "version": "10.13.2", "batch": 8}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))


def test_an_engine_lies_in_the_cache_and_is_named_by_all_that_it_depends_on(tmp_path):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(resolve("u2netp", tmp_path).weights, weights)
    others = [{}, {"batch": 1}, {"card": "NVIDIA L4"}, {"version": "10.14.0"}]
    names = [tensorrt_engine.engine_file("u2netp", tmp_path, **PLACE | other) for other in others]
    assert tensorrt_engine.engine_file(str(weights), tmp_path, **PLACE) == names[0]  # the same, wherever they lie
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    names.append(tensorrt_engine.engine_file(str(weights), tmp_path, **PLACE))
    assert len(set(names)) == len(names)
    assert {path.parent for path in names} == {tmp_path / "cache" / "tensorrt"}
    assert all(path.name.isascii() and " " not in path.name for path in names)


def test_without_tensorrt_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ConfigError, match=r"needs tensorrt: pip install 'rmbgd\[tensorrt\]'"):
        tensorrt_engine.build("u2netp", tmp_path, card=torch.device("cpu"), batch=1)
    with pytest.raises(ConfigError, match=r"rmbgd\[tensorrt\]"):
        tensorrt_engine.load(tmp_path / "x.engine")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_engine_is_built_once_and_read(tmp_path):
    pytest.importorskip("tensorrt")
    card = torch.device("cuda", 0)
    built = tensorrt_engine.build("u2netp", tmp_path, card=card, batch=1)
    assert tensorrt_engine.build("u2netp", tmp_path, card=card, batch=1).seconds == 0
    assert tensorrt_engine.load(built.path).get_tensor_name(0) == "image"
    built.path.write_bytes(b"not an engine")
    with pytest.raises(ModelError, match="build it again"):
        tensorrt_engine.load(built.path)
