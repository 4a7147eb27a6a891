"""More at once than the kernel's queue holds, and whole trees of folders (T15, T17)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CampaignPart
from tests.support import audit
from tests.support.burst import bitmap
from tests.support.images import assert_cutout_of, sample_image
from tests.support.mounts import kernel_setting, memory_folder
from tests.support.service import ServiceUnderTest
from tests.support.standstill import stand_still

BURST, WRITERS = 40_000, 4
LOOKED_AT = 97  # every so many images of the burst is compared pixel by pixel
MEMORY = 600 << 20  # bytes that the service may take, however many files wait
OVERFLOWING = 300  # files; two events each, where the kernel keeps 64
EVENTS_ONLY = {"intake": {"reconcile": 3600.0}}


def write_burst(folder: Path, count: int, writers: int = WRITERS) -> None:
    """From several processes at once; returns when all of it is written."""
    share = count // writers
    script = Path(__file__).parents[1] / "support" / "burst.py"
    commands = [[sys.executable, str(script), str(folder), str(n * share), str(share)] for n in range(writers)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in processes] == [0] * writers


def assert_burst_is_through(service: ServiceUnderTest, count: int) -> None:
    names = [f"{number:05}" for number in range(count)]
    assert audit.files(service.output) == [f"{name}.png" for name in names]
    assert audit.files(service.done) == [f"{name}.bmp" for name in names]
    assert audit.files(service.input) == audit.claimed(service.input) == audit.files(service.failed) == []
    for number in range(0, count, LOOKED_AT):
        assert_cutout_of(bitmap(number), service.output / f"{names[number]}.png")


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_burst_of_40000_files_loses_none(tmp_path: Path, campaign_part: CampaignPart) -> None:
    """40,000 small files written as fast as four processes can: each comes out once, and memory stays bounded.

    In a part of it still as many as have more events than the kernel keeps by default, 16,384.
    """
    count = campaign_part.count(BURST, least=10_000)
    settings = {"service": {"health_interval": 1.0}, "intake": {"reconcile": 30.0}}
    with memory_folder(tmp_path) as base, ServiceUnderTest(base, settings=settings) as service:
        write_burst(service.input, count)
        service.wait_for_endings(count, timeout=900.0)
        service.wait_for("health", since=len(service.events))
        assert_burst_is_through(service, count)
        assert len({event["path"] for event in service.endings()}) == len(service.endings()) == count
        assert max(event["rss_bytes"] for event in service.named("health")) < MEMORY
        assert service.stop() == 0
        audit.assert_ledger_settled(service.state, done=count)


def test_overflow_of_the_kernels_queue_is_noticed_and_made_good(tmp_path: Path) -> None:
    """Events that the kernel dropped are told as watch.overflow, and their files found at once, not an hour later."""
    service = ServiceUnderTest(tmp_path, settings=EVENTS_ONLY)
    with kernel_setting("fs/inotify/max_queued_events", 64):
        service.start()  # the limit is read when the watch is made
    with service:
        stand_still(service.pid)
        write_burst(service.input, OVERFLOWING)
        service.signal(signal.SIGCONT)
        service.wait_for_endings(OVERFLOWING)
        assert_burst_is_through(service, OVERFLOWING)
        assert service.named("watch.overflow")


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_tree_of_folders(tmp_path: Path, way: str) -> None:
    folders = 120
    data = {f"tree/{n % 10}/{n % 100}/{n}/{n}.png": sample_image(n) for n in range(folders)}
    tree = tmp_path / "tree"
    for name, content in data.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    with ServiceUnderTest(tmp_path / "service", settings=EVENTS_ONLY) as service:
        (os.rename if way == "moved" else shutil.copytree)(tree, service.input / "tree")
        service.wait_for_endings(folders)
        later = {f"{os.path.dirname(name)}/later.png": sample_image(10_000 + n) for n, name in enumerate(data)}
        for name, content in later.items():
            (service.input / name).write_bytes(content)
        service.wait_for_endings(2 * folders)
    audit.assert_complete(service.roots, data | later)


def test_storm_of_folders(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, settings=EVENTS_ONLY) as service:
        for number in range(2000):
            os.makedirs(service.input / "storm" / str(number % 50) / "deep", exist_ok=True)
            if number % 2:
                shutil.rmtree(service.input / "storm" / str(number % 50))
        data = service.serve_all({"storm/here.png": sample_image(1), "storm/48/deep/there.png": sample_image(2)})
        data |= service.serve_all({"storm/48/deep/later.png": sample_image(3)})
    audit.assert_complete(service.roots, data)
