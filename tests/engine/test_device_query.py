"""Whether there is a GPU: by NVML's answer, by the driver's device files, by torch."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import pytest

from rmbgd.engine.device_query import ask, ask_nvml, visible_gpus

A, B = ({"name": name, "uuid": f"GPU-{2 * name.lower()}", "instances": ()} for name in "AB")
TWO = (A, B)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def asked(**answers: dict):
    return lambda question, *, patience: answers[question] if patience > 0 else None


@pytest.mark.parametrize(
    ("nvml", "count", "why"),
    [
        ({"driver": "570.1", "devices": [*TWO]}, 2, "the driver 570.1 sees A, B"),
        ({"driver": "570.1", "devices": []}, 0, "the driver 570.1 sees no card"),
        ("NVML Shared Library Not Found", 0, "NVML Shared Library Not Found"),  # and no device file
        # one that is unwell is there: whether it may be used is the failover's question
        ("Driver/library version mismatch", 1, "version mismatch"),
        ("GPU is lost", 1, "GPU is lost"),
        ("GPU requires reset", 1, "requires reset"),
        ("no answer within 20 s: Timeout", 1, "Timeout"),
    ],
)
def test_what_nvml_says_is_enough(tmp_path, nvml, count, why):
    """torch is not asked: it takes seconds."""
    found = visible_gpus(asked(nvml=nvml if isinstance(nvml, dict) else {"error": "NVMLError", "text": nvml}), tmp_path)
    assert found.count == count
    assert why in found.why


@pytest.mark.integration
def test_a_python_that_may_not_be_executed_is_an_answer(tmp_path, monkeypatch):
    (tmp_path / "python").touch(0o600)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert ask("torch") == {"error": "Crash", "text": f"{tmp_path}/python: Permission denied"}


@pytest.mark.parametrize(
    ("torch", "count"),
    [({"cuda": True, "devices": [{"name": "Orin"}]}, 1), ({"cuda": False, "devices": [], "cause": "too old"}, 0)],
)
def test_a_board_without_nvml_is_torch_s_to_tell(tmp_path, torch, count):
    (tmp_path / "nvhost-gpu").touch()
    missing = {"error": "NVMLError", "text": "NVML Shared Library Not Found"}
    assert visible_gpus(asked(nvml=missing, torch=torch), tmp_path).count == count


def test_what_a_board_does_not_have_is_unknown_and_said(monkeypatch):
    nvml = MagicMock(NVMLError=RuntimeError)
    nvml.nvmlSystemGetDriverVersion.return_value, nvml.nvmlDeviceGetCount.return_value = "570.1", 1
    nvml.nvmlDeviceGetName.return_value, nvml.nvmlDeviceGetMemoryInfo.return_value.total = "A", 5
    nvml.nvmlDeviceGetUUID.return_value, nvml.nvmlDeviceGetMaxMigDeviceCount.return_value = "GPU-aa", 0
    nvml.nvmlDeviceGetTemperature.side_effect = RuntimeError("Not Supported")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (device,) = ask_nvml()["devices"]
    assert device | A == device
    assert (device["memory_bytes"], device["temperature"], device["temperature_error"]) == (5, None, "Not Supported")


@pytest.mark.parametrize(
    ("variable", "count", "why"),
    [
        ("1", 1, 'the driver 570.1 sees A, B, of which CUDA_VISIBLE_DEVICES="1" shows B'),
        ("GPU-bb", 1, "shows B"),
        ("2", 0, "shows none"),
        ("", 0, 'CUDA_VISIBLE_DEVICES="" hides every GPU'),
        ("NoDevFiles", 0, "hides every GPU"),
    ],
)
def test_a_hidden_gpu_is_not_counted(tmp_path, monkeypatch, variable, count, why):
    """CUDA would say "invalid device ordinal" for it at every probe."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    found = visible_gpus(asked(nvml={"driver": "570.1", "devices": [*TWO]}), tmp_path)
    assert (found.count, found.why.endswith(why)) == (count, True), found.why


def test_a_hidden_gpu_that_is_unwell_is_not_counted_either(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    unwell = {"error": "NVMLError", "text": "GPU is lost"}
    assert visible_gpus(asked(nvml=unwell), tmp_path).count == 0
