"""Memory of an engine process: from the kernel, and from NVML where there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rmbgd.bench.engine import NvmlMemory, processor_seconds, resident
from tests.bench.machines import Nvml


def test_own_process_is_resident() -> None:
    """A Python process has some megabytes, and its peak is no smaller."""
    found = resident(os.getpid())

    assert 1 << 20 < found["rss"] <= found["rss_peak"]


@pytest.mark.integration
def test_process_that_is_gone_has_no_memory() -> None:
    """It is no error: the figure is missing."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    assert {} == resident(process.pid)


@pytest.mark.integration
def test_processor_time_grows_with_work() -> None:
    """And is nothing for a process that is gone."""
    before = processor_seconds(os.getpid())
    while processor_seconds(os.getpid()) <= before:  # each look is work
        pass
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    assert 0.0 == processor_seconds(process.pid)


def test_driver_books_by_process() -> None:
    """What others hold on the device does not count."""
    nvml = Nvml(used=100, booked={1: 50, 7: 30})
    with NvmlMemory(nvml) as memory:
        nvml.used = 130
        assert 30 == memory.of(7)
    assert nvml.shut_down


@pytest.mark.parametrize("booked", [{}, {7: None}])
def test_without_books_the_rise_counts(booked: dict[int, int | None]) -> None:
    """In containers and virtual machines the driver does not know our processes."""
    nvml = Nvml(used=100, booked=booked)
    with NvmlMemory(nvml) as memory:
        nvml.used = 140
        assert 40 == memory.of(7)


def test_device_is_found_by_uuid_where_one_is_known() -> None:
    """CUDA_VISIBLE_DEVICES may name it; an index would be another device's."""
    nvml = Nvml()
    with NvmlMemory(nvml, index=0, uuid="GPU-1"):
        assert "GPU-1" == nvml.asked_for


@pytest.mark.parametrize("nvml", [None, Nvml(well=False)], ids=["no library", "no driver"])
def test_without_nvml_there_is_no_figure(nvml: Nvml | None) -> None:
    """And no error."""
    with NvmlMemory(nvml) as memory:
        assert memory.of(7) is None
