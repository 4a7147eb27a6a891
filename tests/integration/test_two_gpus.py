"""Two GPUs in the running service: both compute, one goes on without the other, the CPU without both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import CampaignPart
from tests.integration.test_failover import CPU, GPU, STICKY_WORDS, drop_all
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest, assert_proved_before_use
from tests.support.images import sample_image

SECOND = ("cuda:1", "u2netp")
SETTINGS = {"engine": {"device": "cuda", "batch_timeout": 10.0}, "service": {"status_interval": 0.1}}


class TwoGpus(GpuUnderTest):
    def __init__(self, base: Path, *, gpu: dict | None = None, settings: dict | None = None, **more) -> None:
        super().__init__(base, gpu={"count": 2} | (gpu or {}), settings=SETTINGS | (settings or {}), **more)

    def wait_for_both(self) -> TwoGpus:
        self.wait_for_gpu(0)
        self.wait_for_gpu(1)
        self.wait_for_status(lambda health: health["device"] == "cuda:0, cuda:1")
        return self

    def devices(self) -> set[str]:
        return {event["device"] for event in self.named("image.done")}


def test_both_gpus_make_images_of_one_folder(tmp_path: Path) -> None:
    """While one is busy with a batch the other takes what comes; the status names both."""
    with TwoGpus(tmp_path) as service:
        service.wait_for_both()
        data = {}
        while service.devices() != {"cuda:0", "cuda:1"}:
            service.steps(["delay:0.2"], 0)
            service.steps(["delay:0.2"], 1)
            data |= drop_all(service, len(data), 8)
            service.wait_for_endings(len(data))
        status = service.wait_for_status(lambda health: health["engine"]["state"] == "ready")

    audit.assert_complete(service.roots, data)
    assert set(status["engine"]["devices"]) == {"cuda:0", "cuda:1", "cpu"}
    assert [event["device"] for event in service.named("engine.started")].count("cpu") == 1
    assert {event["device"] for event in service.named("engine.batching")} == {"cuda:0", "cuda:1"}
    assert service.named("engine.chosen")[0]["device"] == "cuda:0, cuda:1"
    assert service.named("engine.failover") == []


@pytest.mark.parametrize("step", ["kill", "cuda:illegal_address", "hang"])
def test_a_gpu_that_fails_leaves_the_work_to_the_other(tmp_path: Path, step: str) -> None:
    """No image is lost; while it is away the other makes all that comes, and the state is degraded."""
    settings = {"engine": {"device": "cuda", "batch_timeout": 1.0}, "service": {"status_interval": 0.1}}
    health = {"dwell": 1e6, "dwell_maximum": 1e6}
    with TwoGpus(tmp_path, settings=settings, health=health) as service:
        service.wait_for_both()
        service.steps([step], 0)
        data: dict[str, bytes] = {}
        while not service.named("engine.failover"):
            data |= drop_all(service, len(data), 4)
            service.wait_for_endings(len(data))
        (away,) = service.named("engine.failover")
        since = len(service.events)
        data |= drop_all(service, len(data), 12)
        service.wait_for_endings(len(data))
        status = service.wait_for_status(lambda health: health["engine"]["state"] == "degraded")

    audit.assert_complete(service.roots, data)
    assert (away["from"], away["to"], away["model"]) == ("cuda:0", "cuda:1", "u2netp")
    assert {(done["device"], done["model"]) for done in service.named("image.done", since=since)} == {SECOND}
    assert status["device"] == "cuda:1"
    assert status["engine"]["devices"]["cuda:0"]["state"] == "quarantined"


def test_the_cpu_answers_when_no_gpu_is_left_and_each_comes_back_by_itself(tmp_path: Path) -> None:
    """Heat takes one, then the other: the CPU makes images only while both are away; each returns when it is cool."""
    with TwoGpus(tmp_path) as service:
        service.wait_for_both()
        service.temperature(95.0, 0)
        first = service.wait_for("engine.failover")
        service.drop("one.png", sample_image(1))
        assert service.made_by("one.png") == SECOND
        service.temperature(95.0, 1)
        second = service.wait_for("engine.failover", count=2)
        service.drop("none.png", sample_image(2))
        assert service.made_by("none.png") == CPU
        service.temperature(60.0, 1)
        back = service.wait_for("engine.failback")
        service.drop("again.png", sample_image(3))
        assert service.made_by("again.png") == SECOND
        service.temperature(60.0, 0)
        service.wait_for("engine.failback", count=2)
        service.temperature(95.0, 1)
        service.wait_for("engine.failover", count=3)
        service.drop("other.png", sample_image(4))
        assert service.made_by("other.png") == GPU

    assert (first["from"], first["to"], first["model"]) == ("cuda:0", "cuda:1", "u2netp")
    assert (second["from"], second["to"], second["model"]) == ("cuda:1", "cpu", "lesser")
    assert (back["from"], back["to"]) == ("cpu", "cuda:1")
    assert_proved_before_use(service.events)


def test_with_require_gpu_one_of_two_is_enough(tmp_path: Path) -> None:
    """There is no stand-in: what the failing one had in hand, and all that comes, is the other's."""
    settings = {"health": {"require_gpu": True}}
    health = {"dwell": 1e6, "dwell_maximum": 1e6}
    with TwoGpus(tmp_path, settings=settings, health=health) as service:
        service.wait_for_both()
        service.steps(["kill"], 0)
        data: dict[str, bytes] = {}
        while not service.named("engine.failover"):
            data |= drop_all(service, len(data), 4)
            service.wait_for_endings(len(data))

    audit.assert_complete(service.roots, data)
    assert service.devices() <= {"cuda:0", "cuda:1"}


def test_a_gpu_that_is_not_well_at_start_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The service is ready with the other one; the first joins when it has proved itself."""
    service = TwoGpus(tmp_path)
    service.temperature(95.0, 0)
    with service:
        assert service.named("service.ready")[0]["device"] == "cuda:1"
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == SECOND
        service.temperature(50.0, 0)
        service.wait_for_both()
        service.temperature(95.0, 1)
        service.wait_for("engine.failover")
        service.drop("b.png", sample_image(2))
        assert service.made_by("b.png") == GPU

    assert "cpu" not in service.devices()


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_169_failures_of_two_gpus_lose_no_image(tmp_path: Path, campaign_part: CampaignPart) -> None:
    """Failures of every kind on either GPU or both, images always on their way: each comes out once, and right."""
    failures = campaign_part.count(169)
    dice = random.Random(campaign_part.seed(20_261_123))
    kinds = [f"cuda:{word}" for word in STICKY_WORDS] + ["kill", "exit:70", "nonsense", "wrong_image"]
    data: dict[str, bytes] = {}
    health = {"interval": 0.02, "dwell": 0.02, "dwell_maximum": 0.02, "good_checks": 1, "canary_blocks": 16}
    with TwoGpus(tmp_path, health=health | {"trial_pictures": 2}) as service:
        service.wait_for_both()
        failed = 0
        while failed < failures:
            since = len(service.events)
            sick = dice.choice([[0], [1], [0, 1]])
            for index in sick:
                if dice.random() < 0.1:
                    service.temperature(90.0, index)
                else:
                    service.steps([*["delay:0.01"] * dice.randint(0, 2), dice.choice(kinds)], index)
            while len({event["from"] for event in service.named("engine.failover", since=since)}) < len(sick):
                data |= drop_all(service, len(data), dice.randint(2, 8))
                service.wait_for_endings(len(data))
            for index in sick:
                service.temperature(60.0, index)
            for index in sick:
                service.wait_for("engine.failback", since=since, to=f"cuda:{index}")
            failed += len(sick)

    audit.assert_complete(service.roots, data)
    audit.assert_ledger_settled(service.state, done=len(data))
    done = service.named("image.done")
    assert len({event["path"] for event in done}) == len(done) == len(data)
    assert {event["device"] for event in done} == {"cuda:0", "cuda:1", "cpu"}
    assert service.named("service.stalled") == []
    assert_proved_before_use(service.events)
