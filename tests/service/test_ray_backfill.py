"""A backfill on a Ray cluster: all images done whatever dies, and an image that kills its process is found alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import sample_image, samples
from tests.support.ray_cluster import RayCluster, RayUnderTest
from tests.support.service import ServiceUnderTest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'rmbgd[ray]'")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Shared by the tests that lose none of its hosts."""
    with RayCluster("127.0.0.2") as cluster:
        yield cluster


def test_it_makes_what_a_service_makes_and_nothing_twice(cluster: RayCluster, tmp_path: Path) -> None:
    images = samples(range(200))
    with ServiceUnderTest(tmp_path / "alone") as alone:
        alone.serve_all(images)
        expected = {path.name: path.read_bytes() for path in alone.output.glob("*.png")}
    fleet = RayUnderTest(cluster, tmp_path / "fleet")
    fleet.write(images | {"bad.png": b"no image", "a/\udcff.png": sample_image(1)})
    fleet.hold.touch()
    run = fleet.begin()
    fleet.wait(lambda: len(fleet.pids) == 2, "both actors")
    fleet.hold.unlink()
    found = fleet.end(run)
    assert (found["wanted"], found["done"], found["failed"], found["why"]) == (202, 201, 1, {})
    assert fleet.results() == expected | {"a/\udcff.png": expected["1.png"]}
    assert len(set(fleet.pids)) == 2
    computed = fleet.service.computed()
    found = fleet.backfill()
    assert (found["done"], found["failed"], found["missing"]) == (201, 1, 0)
    assert fleet.service.computed() == computed
    (fleet.service.input / "bad.png").write_bytes(sample_image(3))
    found = fleet.backfill(retry_failed=True)
    assert (found["done"], found["failed"]) == (202, 0)


def test_the_command_does_it_with_a_real_engine(cluster: RayCluster, tmp_path: Path) -> None:
    fleet = RayUnderTest(cluster, tmp_path)
    fleet.write({"1.png": sample_image(1), "bad.png": b"no image"})

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "rmbgd", "backfill", *words, "--config", str(fleet.config)]
        return subprocess.run(line, env=cluster.environment, capture_output=True, text=True, timeout=150, check=False)

    told = command("shop", "--ray", "1", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert (found["wanted"], found["done"], found["failed"], found["missing"], found["why"]) == (2, 1, 1, 0, {})
    assert list(fleet.results()) == ["1.png"]


def test_what_a_killed_actor_had_is_done_by_others(cluster: RayCluster, tmp_path: Path) -> None:
    images, fleet = samples(range(200)), RayUnderTest(cluster, tmp_path)
    fleet.write(images)
    fleet.hold.touch()
    run = fleet.begin()
    fleet.wait(lambda: len(fleet.pids) == 2 and fleet.service.given(), "an image in the engine")
    os.kill(fleet.pids[0], signal.SIGKILL)
    fleet.hold.unlink()
    assert fleet.end(run)["done"] == 200
    assert fleet.results().keys() == images.keys()


def test_what_a_lost_host_had_is_done_by_others(tmp_path: Path) -> None:
    images = samples(range(200))
    with RayCluster("127.0.0.2", "127.0.0.3") as cluster:
        fleet = RayUnderTest(cluster, tmp_path)
        fleet.write(images)
        fleet.hold.touch()
        run = fleet.begin()
        fleet.wait(lambda: len(fleet.pids) == 2 and fleet.service.given(), "an image in the engine")
        cluster.lose(1)
        fleet.hold.unlink()
        assert fleet.end(run)["done"] == 200
    assert fleet.results().keys() == images.keys()


def test_only_the_image_that_kills_is_missing(cluster: RayCluster, tmp_path: Path) -> None:
    images, fleet = samples(range(96)), RayUnderTest(cluster, tmp_path, deadly="50.png")
    fleet.write(images)
    found = fleet.backfill(batch=8)
    assert (found["done"], found["missing"], list(found["why"])) == (95, 1, ["50.png"])
    assert "died" in found["why"]["50.png"]
    assert fleet.results().keys() == images.keys() - {"50.png"}


def test_a_killed_driver_goes_on_when_it_is_started_again(cluster: RayCluster, tmp_path: Path) -> None:
    images, fleet = samples(range(200)), RayUnderTest(cluster, tmp_path)
    fleet.write(images)
    run = fleet.begin(batch=8)
    fleet.wait(lambda: len(fleet.results()) >= 20, "some results")
    run.kill()
    run.communicate()
    fleet.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in fleet.pids), "the end of its actors")
    before = len([name for name in fleet.results() if (fleet.service.output / f"{name}.json").exists()])
    computed = fleet.service.computed()
    found = fleet.backfill()
    assert (found["done"], found["missing"]) == (200, 0)
    assert fleet.service.computed() - computed == 200 - before


def test_an_actor_that_cannot_start_is_replaced(cluster: RayCluster, tmp_path: Path) -> None:
    images, fleet = samples(range(50)), RayUnderTest(cluster, tmp_path, broken=2)
    fleet.write(images)
    assert fleet.backfill()["done"] == 50


def test_what_could_not_be_stored_is_done_when_it_can_be(cluster: RayCluster, tmp_path: Path) -> None:
    full = tmp_path / "full"
    images, fleet = samples(range(100)), RayUnderTest(cluster, tmp_path / "fleet", full=str(full))
    fleet.write(images)
    full.touch()
    run = fleet.begin()
    fleet.wait(lambda: fleet.service.computed() >= 20, "images that were computed")
    full.unlink()  # within the time until it would end
    assert fleet.end(run)["done"] == 100
    assert len(set(fleet.pids)) == 2


def test_a_full_disk_ends_it_with_its_reason(cluster: RayCluster, tmp_path: Path) -> None:
    full = tmp_path / "full"
    fleet = RayUnderTest(cluster, tmp_path / "fleet", full=str(full))
    fleet.write(samples(range(600)))
    full.touch()
    run = fleet.begin()
    _, errors = run.communicate(timeout=150)
    assert run.returncode != 0
    assert "nothing was done for 0.0666667 minutes: held back by the disk: disk_full: no space left" in errors


def test_actors_that_cannot_start_end_it_with_their_reason(cluster: RayCluster, tmp_path: Path) -> None:
    fleet = RayUnderTest(cluster, tmp_path, broken=1000)
    fleet.write({"1.png": sample_image(1)})
    run = fleet.begin()
    _, errors = run.communicate(timeout=150)
    assert run.returncode != 0
    assert "nothing was done for 0.0666667 minutes: an actor cannot start: no engine here" in errors
