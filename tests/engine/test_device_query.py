"""Whether there is a GPU: by NVML's answer, by the driver's device files, by torch."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import pytest

from rmbgd.engine.device_query import ask, ask_nvml, nvml_target, visible_gpus


def asked(**answers: dict):
    return lambda question, *, patience: answers[question] if patience > 0 else None


@pytest.mark.parametrize(
    ("nvml", "count", "why"),
    [
        ({"driver": "570.1", "devices": [{"name": "A"}, {"name": "B"}]}, 2, "the driver 570.1 sees A, B"),
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
    nvml.nvmlDeviceGetTemperature.side_effect = RuntimeError("Not Supported")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    device = {"name": "A", "memory_bytes": 5, "temperature": None, "temperature_error": "Not Supported"}
    assert ask_nvml() == {"driver": "570.1", "devices": [device]}


@pytest.mark.parametrize(
    ("index", "order", "target"),
    [
        (0, None, (0, None)),
        (1, "", (1, None)),
        (0, "2", (2, None)),
        (1, "2, 0", (0, None)),
        (0, "GPU-8932f937", (0, "GPU-8932f937")),
    ],
)
def test_the_sensor_reads_the_device_that_computes(index, order, target):
    """CUDA_VISIBLE_DEVICES renumbers for CUDA alone."""
    assert nvml_target(index, order) == target
