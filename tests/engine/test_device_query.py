"""Whether there is a GPU: by NVML's answer, by the driver's device files, by torch."""

from __future__ import annotations

import pytest

from rmbgd.engine.device_query import VisibleGpus, nvml_target, visible_gpus


class Asked:
    """Answers of the two questions; remembers which were asked."""

    def __init__(self, nvml: dict, torch: dict | None = None) -> None:
        self.answers = {"nvml": nvml, "torch": torch}
        self.questions: list[str] = []

    def __call__(self, question: str, *, patience: float) -> dict:
        assert patience > 0
        self.questions.append(question)
        return self.answers[question]


def error(text: str) -> dict:
    return {"error": "NVMLError", "text": text}


def test_cards_that_nvml_lists_are_there(tmp_path):
    """Their names are told, and torch is not asked: it takes seconds."""
    ask = Asked({"driver": "570.1", "devices": [{"name": "A"}, {"name": "B"}]})

    assert visible_gpus(ask, tmp_path) == VisibleGpus(2, "the driver 570.1 sees A, B")
    assert ask.questions == ["nvml"]


def test_a_driver_without_a_card(tmp_path):
    """It says so."""
    assert visible_gpus(Asked({"driver": "570.1", "devices": []}), tmp_path).count == 0


def test_a_machine_without_a_driver_is_known_at_once(tmp_path):
    """No library and no device file: torch is not asked."""
    ask = Asked(error("NVML Shared Library Not Found"))
    found = visible_gpus(ask, tmp_path)

    assert found.count == 0
    assert "NVML Shared Library Not Found" in found.why
    assert ask.questions == ["nvml"]


@pytest.mark.parametrize(
    "text", ["Driver/library version mismatch", "GPU is lost", "GPU requires reset", "no answer within 20 s: Timeout"]
)
def test_a_gpu_that_is_unwell_is_there(tmp_path, text):
    """Whether it may be used is the failover's question."""
    assert visible_gpus(Asked(error(text)), tmp_path).count == 1


@pytest.mark.parametrize(
    ("torch", "count"),
    [({"cuda": True, "devices": [{"name": "Orin"}]}, 1), ({"cuda": False, "devices": [], "cause": "too old"}, 0)],
)
def test_a_board_without_nvml_is_torch_s_to_tell(tmp_path, torch, count):
    """Where the driver's device file is, but no NVML, torch knows."""
    (tmp_path / "nvhost-gpu").touch()

    assert visible_gpus(Asked(error("NVML Shared Library Not Found"), torch), tmp_path).count == count


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
