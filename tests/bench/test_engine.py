"""The engine process under measurement: which sizes, how many batches, and that it is the real way that is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from rmbgd.bench.engine import (
    BATCHES_MINIMUM,
    EngineUnderTest,
    NvmlMemory,
    engine_under_test,
    processor_seconds,
    resident,
    target,
)
from rmbgd.bench.samples import HAND_OVER, Sample, drawn
from rmbgd.config.load import Config, PipelineSettings
from rmbgd.errors import ConfigError, EngineLost, EngineMemory
from rmbgd.testing.engine import expected_alpha
from tests.bench.machines import Nvml, machine


def under_test(
    images: list[Sample], *, places: int = 4, arena_bytes: int = 1 << 22, **fake: Any
) -> AbstractContextManager[EngineUnderTest]:
    config = Config().model_copy(update={"pipeline": PipelineSettings.model_construct(arena_bytes=arena_bytes)})
    options = {"models": ["m"]} | fake
    return engine_under_test("rmbgd.testing.engine:create", options, config, model="m", images=images, places=places)


@pytest.mark.integration
def test_a_batch_makes_the_round_trip_of_the_service() -> None:
    """After measuring, every place of the arena holds the alpha that the child computed from its image."""
    images = drawn(2, 32)
    with under_test(images) as engine:
        reading = engine.measure(4, 0.0)

        for place in range(4):
            slot = engine.planes(place)
            assert np.array_equal(images[place % 2].rgb, slot.rgb)
            assert np.array_equal(expected_alpha(slot.rgb), slot.rgba[..., 3])
    assert (4, BATCHES_MINIMUM) == (reading.size, reading.spread.count)
    assert {"network", HAND_OVER} == set(reading.stages)
    assert reading.bound[1] == max(reading.stages.values()) / sum(reading.stages.values())
    assert reading.memory["rss"] > 0
    assert reading.per_second == pytest.approx(4000 / reading.spread.mean)


@pytest.mark.integration
def test_warm_up_does_not_count_and_batches_are_bounded() -> None:
    with under_test(drawn(1, 32), script=["delay:0.7", "delay:0.7"]) as engine:
        found = engine.measure(1, 3600.0, batches=7).spread
    assert found.count == 7
    assert found.longest < 700


@pytest.mark.integration
def test_sizes_that_are_not_offered_or_do_not_fit_are_left_out_with_a_reason() -> None:
    """The engine says what it takes, and gets nothing else; the service could not run the larger ones either."""
    with under_test(drawn(1, 64), places=8, arena_bytes=3 * 7 * 64 * 64, batch_sizes=(1, 2, 4)) as engine:
        assert 3 == len(engine.regions)
        few = {4: "only 3 of these images fit into pipeline.arena_bytes"}
        assert ([1], few | {8: "the engine offers 1, 2, 4"}) == engine.sizes([1, 4, 8])
        assert ([1, 2], few) == engine.sizes(None)


@pytest.mark.integration
def test_fault_while_measuring_is_told() -> None:
    with under_test(drawn(1, 32), script=["ok", "ok", "lost"]) as engine, pytest.raises(EngineLost, match="the script"):
        engine.measure(1, 1.0)


@pytest.mark.integration
def test_process_is_gone_afterwards() -> None:
    with pytest.raises(EngineMemory), under_test(drawn(1, 32), script=["memory"]) as engine:  # noqa: PT012
        pid = engine.worker.pid
        engine.measure(1, 1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- memory and processor time of a process


def test_own_process_is_resident() -> None:
    found = resident(os.getpid())
    assert 1 << 20 < found["rss"] <= found["rss_peak"]


def test_processor_time_grows_with_work() -> None:
    before = processor_seconds(os.getpid())
    while processor_seconds(os.getpid()) <= before:  # each look is work
        pass


@pytest.mark.integration
def test_process_that_is_gone_has_neither_memory_nor_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert ({}, 0.0) == (resident(process.pid), processor_seconds(process.pid))


@pytest.mark.parametrize(
    ("booked", "held"),
    [
        ({1: 50, 7: 30}, 30),  # what others hold on the device does not count
        ({}, 40),  # in containers and virtual machines the driver does not know our processes: the rise counts
        ({7: None}, 40),
    ],
)
def test_memory_is_what_the_driver_books_or_the_rise(booked: dict[int, int | None], held: int) -> None:
    nvml = Nvml(used=100, booked=booked)
    with NvmlMemory(nvml) as memory:
        nvml.used = 140
        assert held == memory.of(7)
    assert nvml.shut_down


@pytest.mark.parametrize("nvml", [None, Nvml(well=False)], ids=["no library", "no driver"])
def test_without_nvml_there_is_no_figure(nvml: Nvml | None) -> None:
    with NvmlMemory(nvml) as memory:
        assert memory.of(7) is None


# --- which device, which model


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("cpu", 2, "cpu"), ("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_device_is_the_one_that_the_service_would_take(asked: str, gpus: int, device: str) -> None:
    found = target(asked, machine(gpus))
    assert device == found.device
    assert device != "cpu" or found.nvml() is None


@pytest.mark.parametrize(("asked", "gpus"), [("cuda", 0), ("cuda:1", 1)])
def test_missing_gpu_is_told_with_what_to_do(asked: str, gpus: int) -> None:
    with pytest.raises(ConfigError, match=rf"--device {asked}: {gpus} GPUs are visible: looked.*doctor.*--device cpu"):
        target(asked, machine(gpus))
