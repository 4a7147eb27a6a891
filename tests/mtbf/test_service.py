"""From real runs of the service to the report: crashes, restarts, rotation, two machines, through the command line."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu_service import GpuUnderTest
from tests.support.images import sample_image
from tests.support.mounts import false_clock
from tests.support.pages import Tags
from tests.support.service import ServiceUnderTest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
BEAT = 1.0  # s; the shortest that may be set
DAY = 86_400.0


def machines(*logs: str | Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "rmbgd", "mtbf", *map(str, logs), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return {each["name"]: each for each in json.loads(done.stdout)["machines"]}


def record_exit(service: ServiceUnderTest) -> None:
    said = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}
    command = [sys.executable, "-m", "rmbgd.service.exit_recorder", "--config", str(service.config)]
    subprocess.run(command, cwd=ROOT, env=os.environ | said, check=True, capture_output=True)


def rotate(service: ServiceUnderTest, kept: Path, name: str, *, compress: bool = False) -> None:
    """As logrotate does: by rename, under the running service."""
    kept.mkdir(parents=True, exist_ok=True)
    target = service.log_file.rename(kept / name)
    if compress:
        (kept / f"{name}.gz").write_bytes(gzip.compress(target.read_bytes()))
        target.unlink()


def life_of_one(base: Path, kept: Path) -> None:
    """Images, a bad one, heat with images meanwhile, a recorded SIGKILL, two rotations, an orderly end."""
    service = GpuUnderTest(base, settings={"service": {"health_interval": BEAT}})
    with service:
        service.wait_for_gpu()
        for number in range(6):
            service.drop(f"{number}.png", sample_image(number))
        service.drop("bad.png", b"no image at all " * 20)
        service.wait_for_endings(7)
        rotate(service, kept, "events.jsonl.2", compress=True)
        service.temperature(91.0)
        service.wait_for("engine.failover")
        service.serve("hot.png", sample_image(7))
        service.temperature(50.0)
        service.wait_for("engine.failback")
        service.serve("cool.png", sample_image(8))
        service.wait_for("health", count=2)
        rotate(service, kept, "events.jsonl.1")
        service.kill()
        record_exit(service)
        service.start()
        service.serve("after.png", sample_image(9))
    rotate(service, kept, "events.jsonl")


def life_of_two(base: Path, kept: Path) -> None:
    """A SIGKILL that nobody recorded and that tore the last line; the second run is still at work when it is read."""
    service = ServiceUnderTest(base, settings={"service": {"health_interval": BEAT}})
    with service:
        service.serve("a.png", sample_image(1))
        service.kill()
        with open(service.log_file, "ab") as log:
            log.write(b'{"event":"health","level":"info","ti')
        service.start()
        service.serve("b.png", sample_image(2))
        kept.mkdir(parents=True)
        shutil.copy(service.log_file, kept / "events.jsonl")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = tmp_path_factory.mktemp("fleet")
    life_of_one(base / "one", base / "logs" / "one")
    life_of_two(base / "two", base / "logs" / "two")
    return [f"{name}={base / 'logs' / name}" for name in ("one", "two")]


@pytest.fixture(scope="module")
def fleet(logs: list[str]) -> dict[str, dict[str, Any]]:
    """What is reported of each machine, by its name."""
    return machines(*logs)


def test_each_crash_is_a_failure_with_its_cause(fleet: dict[str, dict[str, Any]]) -> None:
    failures = {name: failure for name, each in fleet.items() for failure in each["failures"]}
    assert {name: each["cause"] for name, each in failures.items()} == {"one": "signal KILL", "two": "vanished"}
    assert all(0 < each["down_seconds"] < 120 for each in failures.values())
    notes = " / ".join(fleet["two"]["notes"])
    assert "1 torn or unreadable line left out" in notes
    assert "1 run without a recorded end" in notes


def test_every_image_counts_once(fleet: dict[str, dict[str, Any]]) -> None:
    """Over rotated and compressed parts, crashes, and what a next start tells again."""
    counted = {name: each["pictures"] for name, each in fleet.items()}
    assert {name: (each["done"], each["refused"]) for name, each in counted.items()} == {"one": (9, 1), "two": (2, 0)}
    assert sorted(counted["one"]["by_device"]) == ["cpu", "cuda:0"]


def test_the_failover_avoided_an_outage(fleet: dict[str, dict[str, Any]]) -> None:
    (trip,) = fleet["one"]["failovers"]["list"]
    assert (trip["reason"], trip["from"], trip["to"], trip["outcome"]) == ("temperature", "cuda:0", "cpu", "avoided")


def test_the_report_stands_on_paper_and_on_the_page(logs: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rmbgd", "mtbf", *logs, "--html", str(tmp_path / "report.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"at least [\d.,]+ h at 90 % confidence", done.stdout)
    page = Tags((tmp_path / "report.html").read_text())
    assert [attrs["aria-label"] for tag, attrs in page.seen if tag == "svg"] == [
        "operating time and failures of each machine", "temperature and device in use of one",
        "images an hour", "time in each stage", "time from claim to outcome",
    ]  # fmt: skip


def test_a_wall_clock_that_jumps_changes_no_duration(tmp_path: Path) -> None:
    control = tmp_path / "clock"
    control.write_text("+0")
    service = ServiceUnderTest(tmp_path / "edge")
    service.start(environment=false_clock(control))
    with service:
        service.turn()
        control.write_text(f"+{DAY:.0f}")
        service.turn()
        assert service.stop() == 0
    (machine,) = machines(service.log_file).values()
    assert 0 < machine["operating_hours"] < 0.5
    assert machine["mtbf"]["failures"] == 0
    assert any(f"jumped by +{DAY:.0f} s" in note for note in machine["notes"])
