"""Processes that stand still, fight over a folder, die of an image, or have a damaged model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import rmbgd
from rmbgd.cli import main as cli
from rmbgd.config.settings import EngineSettings
from rmbgd.engine.retry import KILLS
from rmbgd.errors import Exit, Reason
from rmbgd.models.store import EMBEDDED
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest
from tests.support.images import poisoned, sample_image, samples
from tests.support.service import PATIENCE, ServiceUnderTest
from tests.support.standstill import stand_still

ORDERS = 50  # for an engine, more than a test takes
STALL_AFTER = 5.0  # s; the least that can be set
WATCHFUL = {"service": {"stall_after": STALL_AFTER, "status_interval": 0.1}}


def with_child(base: Path, *, batch_timeout: float = 10.0, **fake: object) -> GpuUnderTest:
    """A service on the CPU whose engine is a fake in the real child process; `fake` are its options."""
    settings = {"engine": {"device": "cpu", "batch_timeout": batch_timeout, "restart_delay_maximum": 1.0}}
    return GpuUnderTest(base, settings=settings, gpu={"standby": fake})


def test_second_service_on_one_state_directory_is_refused(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path) as first:
        second = ServiceUnderTest(tmp_path)
        second.start(ready=False)
        assert second.reap() == Exit.CONFIGURATION
        assert "another rmbgd uses this state directory" in b"".join(second.stderr).decode()
        first.turn()
        assert first.named("service.failed") == []


def test_folders_that_would_eat_themselves_are_refused_all_at_once(tmp_path: Path) -> None:
    """Status 78, a line for each finding with its folder, and nothing is written. What is found: `config/layout.py`."""
    service = ServiceUnderTest(tmp_path)
    inside = {role: str(service.input / role) for role in ("output", "done", "failed")}
    service.configure({}, inside)
    service.start(ready=False)
    assert service.reap() == Exit.CONFIGURATION
    said = b"".join(service.stderr).decode()
    assert all(line.startswith("rmbgd run: ") for line in said.splitlines()), said
    assert all(place in said for place in inside.values())
    assert not os.path.lexists(service.input / ".rmbgd")


def test_line_in_which_everybody_waits_is_told_as_hung(tmp_path: Path) -> None:
    """No thread is hung, no device computes, nothing is paused, and the images that wait do not move."""
    settings = {"service": {"status_interval": 0.1, "stall_after": STALL_AFTER, "stuck_after": 10.0}}
    with ServiceUnderTest(tmp_path, settings=settings, options={"left": True}) as service:
        service.drop("a.png", sample_image(1))
        stalled = service.wait_for("service.stalled")
        service.kill()
    assert stalled["threads"] == ["line"]


def test_service_that_was_stopped_for_long_does_not_think_it_hung(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, settings=WATCHFUL) as service:
        service.hold.touch()
        data = service.drop_all(samples(range(10)))
        service.wait(service.given, "an image in the engine")
        stand_still(service.pid)
        threading.Event().wait(STALL_AFTER + 1.5)  # what is tested is that this time passes
        service.signal(signal.SIGCONT)
        service.wait_for_new_status()  # a look at the threads, while the batch still runs
        service.hold.unlink()
        service.wait_for_endings(len(data))
        audit.assert_settled(service, data)
        assert service.named("service.stalled") == []
        assert {event["pid"] for event in service.events} == {service.pid}


def test_thread_that_hangs_is_shown_and_told_and_may_go_on(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, settings=WATCHFUL) as service:
        service.hold.touch()
        service.drop("a.png", sample_image(1))
        service.wait_for("service.stalled")
        service.wait(lambda: any(b"pipeline/infer.py" in line for line in service.stderr), "the stacks")
        service.hold.unlink()
        service.wait_for("service.stall_ended")
        service.wait_for("image.done", path="a.png")
    audit.assert_settled(service, {"a.png": sample_image(1)})


def test_runtime_directory_that_vanishes_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it cannot be made, status says that the service runs, and once that it is blind."""
    status = ["status", "--config", str(tmp_path / "rmbgd.toml")]
    with ServiceUnderTest(tmp_path) as service:
        shutil.rmtree(service.runtime)
        service.wait((service.runtime / "status.json").exists, "a status file")
        assert (cli.main(status), service.named("status.lost")) == (0, [])
        service.put_in_the_way_of(service.runtime)
        lost = service.wait_for("status.lost")
        assert (lost["path"], "File exists" in lost["cause"]) == (str(service.runtime / "status.json"), True)
        capsys.readouterr()
        assert cli.main(status) == 1
        assert capsys.readouterr().out.startswith("rmbgd is running, but unseen: ")
        service.turn()
        service.runtime.unlink()
        service.wait_for("status.written", path=lost["path"])
        assert cli.main(status) == 0
        assert len(service.named("status.lost")) == 1


def test_engine_process_that_stands_still_is_replaced(tmp_path: Path) -> None:
    with with_child(tmp_path, batch_timeout=1.0) as service:
        service.turn()
        (child,) = service.children()
        stand_still(child)
        audit.assert_settled(service, service.serve_all(samples(range(10))))
        (fresh,) = service.children()
        assert fresh != child


@pytest.mark.parametrize("end", ["signal:SIGSEGV", "exit:3"])
def test_image_that_kills_the_engine_is_refused_alone(tmp_path: Path, end: str) -> None:
    with with_child(tmp_path, poison=end) as service:
        data = service.serve_all(samples(range(8)) | {"marked.png": poisoned(99)})
        audit.assert_settled(service, data, bad={"marked.png": Reason.POISON})
        assert 1 <= len(service.named("engine.fault")) <= 2 * 3, "one process for each try, and its company's one more"


def test_image_that_brings_the_oom_killer_is_set_aside(tmp_path: Path) -> None:
    with with_child(tmp_path, poison="kill") as service:
        data = service.drop_all(samples(range(8)) | {"marked.png": poisoned(99)})
        while not service.endings("marked.png"):
            service.turn()  # others are computed in between
        service.wait_for_endings(len(data))
        audit.assert_settled(service, data, bad={"marked.png": Reason.EXHAUSTS_MEMORY})
        faults = service.named("engine.fault")
        assert all("killed from outside by SIGKILL" in fault["detail"] for fault in faults)
        assert KILLS <= len(faults) <= 2 * KILLS


def test_engine_that_is_killed_again_and_again_costs_no_image(tmp_path: Path) -> None:
    """By somebody else, with the same images each time, more often than an image may fail."""
    settings = {"engine": {"device": "cpu", "restart_delay_maximum": 0.1}}
    orders = {"orders": str(tmp_path / "orders")}
    with GpuUnderTest(tmp_path, settings=settings, gpu={"standby": orders}) as service:
        service.turn()
        steps, kills = service.orders / "segment", Counter()
        service.steps(["hang"] * ORDERS)
        data = service.drop_all(samples(range(2)))
        for number in range(1, ORDERS):
            left = ORDERS - number
            service.wait(
                lambda left=left: steps.read_text().count("hang") <= left or service.endings(), "an image in it"
            )
            assert service.endings() == []
            if len(kills) == len(data) and min(kills.values()) > EngineSettings().tries + 1:
                break
            (child,) = service.children()
            os.kill(child, signal.SIGKILL)
            kills.update(service.wait_for("engine.fault", count=number)["images"])
        service.withdraw("segment")
        for child in service.children():
            os.kill(child, signal.SIGKILL)
        service.wait_for_endings(1 + len(data))
    assert min(kills.values()) > EngineSettings().tries
    audit.assert_settled(service, data)


def test_damaged_model_is_the_operators_to_mend(tmp_path: Path) -> None:
    package = tmp_path / "installed" / "rmbgd"
    shutil.copytree(Path(rmbgd.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    damaged = package / EMBEDDED.relative_to(Path(rmbgd.__file__).parent)
    weights = bytearray(damaged.read_bytes())
    weights[-1000] ^= 0x40
    damaged.write_bytes(weights)
    service = ServiceUnderTest(tmp_path)
    service.drop("a.png", sample_image(1))
    ended = subprocess.run(
        [sys.executable, "-m", "rmbgd", "run", "--config", str(service.config)],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == Exit.CONFIGURATION, ended.stderr
    (failed,) = service.recorded("service.failed")
    assert str(damaged) in failed["error"]
    assert "sha256" in failed["error"]
    assert (service.input / "a.png").read_bytes() == sample_image(1)
