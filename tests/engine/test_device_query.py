"""Whether there is a GPU: by NVML's answer, by the driver's device files, by torch."""

from __future__ import annotations

import pytest

from rmbgd.engine.device_query import nvml_target, visible_gpus


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


NO_LIBRARY = error("NVML Shared Library Not Found")


@pytest.mark.parametrize(
    ("nvml", "count", "why"),
    [
        ({"driver": "570.1", "devices": [{"name": "A"}, {"name": "B"}]}, 2, "the driver 570.1 sees A, B"),
        ({"driver": "570.1", "devices": []}, 0, "the driver 570.1 sees no card"),
        (NO_LIBRARY, 0, "NVML Shared Library Not Found"),  # and no device file
        # one that is unwell is there: whether it may be used is the failover's question
        (error("Driver/library version mismatch"), 1, "version mismatch"),
        (error("GPU is lost"), 1, "GPU is lost"),
        (error("GPU requires reset"), 1, "requires reset"),
        (error("no answer within 20 s: Timeout"), 1, "Timeout"),
    ],
)
def test_what_nvml_says_is_enough(tmp_path, nvml, count, why):
    """torch is not asked: it takes seconds."""
    ask = Asked(nvml)
    found = visible_gpus(ask, tmp_path)
    assert found.count == count
    assert why in found.why
    assert ask.questions == ["nvml"]


@pytest.mark.parametrize(
    ("torch", "count"),
    [({"cuda": True, "devices": [{"name": "Orin"}]}, 1), ({"cuda": False, "devices": [], "cause": "too old"}, 0)],
)
def test_a_board_without_nvml_is_torch_s_to_tell(tmp_path, torch, count):
    """Where the driver's device file is, but no NVML, torch knows."""
    (tmp_path / "nvhost-gpu").touch()
    assert visible_gpus(Asked(NO_LIBRARY, torch), tmp_path).count == count


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
