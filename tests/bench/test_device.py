"""What is measured is there, or the error says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.bench.engine import require_model, target
from rmbgd.config.load import Config, Recipe, ServiceSettings
from rmbgd.errors import ConfigError, ModelError
from tests.bench.machines import machine


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("cpu", 2, "cpu"), ("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_device_is_the_one_that_the_service_would_take(
    asked: str, gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first GPU where any will do."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = target(asked, machine(gpus))

    assert (device, device != "cpu") == (found.device, found.is_gpu)


def test_gpu_is_looked_up_as_nvml_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES reorders for CUDA alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")

    assert 1 == target("cuda:1", machine(2)).nvml_index


@pytest.mark.parametrize(("asked", "gpus"), [("cuda", 0), ("cuda:1", 1)])
def test_missing_gpu_is_told_with_what_to_do(asked: str, gpus: int) -> None:
    """How many there are, who says so, and the two ways on."""
    with pytest.raises(ConfigError, match=rf"--device {asked}: {gpus} GPUs are visible: looked.*doctor.*--device cpu"):
        target(asked, machine(gpus))


def test_cpu_has_no_nvml() -> None:
    """Memory on a device is a GPU's."""
    assert target("cpu", machine()).nvml() is None


def test_missing_model_is_told_with_what_to_do(tmp_path: Path) -> None:
    """Before any process is started."""
    config = Config(service=ServiceSettings(models_directory=tmp_path))
    with pytest.raises(ModelError, match="rmbgd models fetch birefnet"):
        require_model(Recipe(model="birefnet"), config)

    require_model(Recipe(model="u2netp"), config)
