"""GPU to CPU to GPU in the running service: whatever the GPU does, every image comes out once and is right."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Self

import pytest

from rmbgd.errors import Reason
from rmbgd.testing.engine import CUDA_ERRORS
from tests.conftest import CampaignPart
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest, assert_proved_before_use
from tests.support.images import poisoned, sample_image, samples
from tools.failover import STICKY_WORDS, campaign

GPU, SECOND, CPU = ("cuda:0", "u2netp"), ("cuda:1", "u2netp"), ("cpu", "lesser")
SETTINGS = {"engine": {"device": "cuda", "batch_timeout": 10.0}, "service": {"status_interval": 0.1}}


def test_heat_moves_work_to_the_cpu_and_a_probe_brings_it_back(tmp_path: Path) -> None:
    with GpuUnderTest(tmp_path).on_gpu() as service:
        service.temperature(85.0)
        assert service.made_by("warm.png", sample_image(1)) == GPU
        service.temperature(85.1)
        away = service.wait_for("engine.failover")
        assert service.made_by("hot.png", sample_image(2)) == CPU
        service.temperature(75.1)  # not yet cool
        service.turn(2)
        assert service.named("engine.failback") == []
        service.temperature(75.0)
        back = service.wait_for("engine.failback")
        assert service.made_by("cool.png", sample_image(3)) == GPU

    assert (away["from"], away["to"], away["reason"], away["model"]) == ("cuda:0", "cpu", "temperature", "lesser")
    assert (away["reading"], away["threshold"]) == (85.1, 85.0)
    assert (back["from"], back["to"], back["model"]) == ("cpu", "cuda:0", "u2netp")
    assert [(event["to"], event["reason"]) for event in service.named("engine.state", device="cuda:0")] == [
        ("probing", "found"), ("ok", "probe_passed"), ("cooling", "temperature"), ("probing", "cooled"),
        ("ok", "probe_passed"),
    ]  # fmt: skip
    assert_proved_before_use(service.events)


def test_each_shortage_of_memory_gets_a_fresh_process_and_the_third_in_a_row_a_rest(tmp_path: Path) -> None:
    """None is a trip: the image that met it is the CPU's, and the GPU is used again."""
    with GpuUnderTest(tmp_path).on_gpu() as service:
        for number in range(3):
            service.steps(["cuda:memory"])
            assert service.made_by(f"{number}.png", sample_image(number)) == CPU
            service.wait_for("engine.failback", count=number + 1)
        assert service.made_by("last.png", sample_image(3)) == GPU
    away = [(event["reason"], event["reading"], event["threshold"]) for event in service.named("engine.failover")]
    assert away == [("replan", 1, 3), ("replan", 2, 3), ("replan", 3, 3)]
    assert {fault["kind"] for fault in service.named("engine.fault")} == {"memory"}
    states = [event["to"] for event in service.named("engine.state", device="cuda:0")]
    assert states.count("short_of_memory") == 1
    assert {event["trips"] for event in service.named("engine.state", device="cuda:0")} == {0}
    assert_proved_before_use(service.events)


@pytest.mark.parametrize(
    ("start", "limit", "failed"),
    [("kernels cuda:illegal_address", "kernels", 2), ("graphs unclean_capture", "graphs", 0)],
)
def test_a_gpu_that_kernels_or_graphs_break_is_used_without(
    tmp_path: Path, start: str, limit: str, failed: int
) -> None:
    with GpuUnderTest(tmp_path).on_gpu() as service:
        service.order("start", start)
        service.steps(["kill"])
        assert service.made_by("a.png", sample_image(1)) == CPU
        service.wait_for("engine.failback")
        assert service.made_by("b.png", sample_image(2)) == GPU
        assert [event["what"] for event in service.named("engine.limited", device="cuda:0")] == [limit]
        assert len(service.named("engine.state", to="quarantined")) == 1 + failed


def test_systemd_waits_for_the_first_self_test_of_a_gpu(tmp_path: Path) -> None:
    """Its start, that of the CPU's reference and an image there, the tests, and 30 s: 180 + 180 + 10 + 120 + 30."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with GpuUnderTest(tmp_path).start(ready=False, environment=environment):
            said: list[str] = []
            while not said or not said[-1].startswith("READY=1"):
                said.append(systemd.recv(4096).decode())
    assert f"EXTEND_TIMEOUT_USEC={520 * 10**6}" in said


def test_a_device_that_is_gone_is_lost_and_found_again(tmp_path: Path) -> None:
    with GpuUnderTest(tmp_path).on_gpu() as service:
        service.order("start", "cuda:no_device")
        service.steps(["cuda:no_device"])
        assert service.made_by("a.png", sample_image(1)) == CPU
        service.wait_for("engine.state", to="lost", reason="no_device", count=2)  # the first probe finds nothing, too
        service.withdraw("start")
        service.wait_for("engine.failback")
        assert service.made_by("b.png", sample_image(2)) == GPU


@pytest.mark.parametrize(
    ("step", "kind"), [("hang", "lost"), ("kill", "lost"), ("nonsense", "nonsense"), ("cuda:illegal_address", "lost")]
)
def test_a_process_that_hangs_dies_or_fails_costs_no_image(tmp_path: Path, step: str, kind: str) -> None:
    """Its batch goes to the CPU, and a fresh one is probed before work returns. Sticky: `backends/test_faults.py`."""
    settings = {"engine": {"device": "cuda:0", "batch_timeout": 1.0}}
    with GpuUnderTest(tmp_path, settings=settings).on_gpu() as service:
        service.steps([step])
        data = service.serve_all(samples(range(5)))
        service.wait_for("engine.failback")
        data |= samples([99])
        assert service.made_by("99.png", data["99.png"]) == GPU
    audit.assert_settled(service, data)
    (away,) = service.named("engine.failover")
    assert away["reason"] == "sticky_fault"
    assert away["reading"].startswith(str(CUDA_ERRORS.get(step.removeprefix("cuda:"), "")).partition("\n")[0])
    fault = service.named("engine.fault")[0]
    assert (fault["device"], fault["kind"], fault["images"]) == ("cuda:0", kind, away["images"])
    assert away["images"]
    assert service.named("service.stalled") == []
    assert_proved_before_use(service.events)


@pytest.mark.parametrize(
    ("health", "order", "text", "reason", "probe"),
    [
        ({"golden_interval": 1e-6}, "zero", "", "golden_mismatch", "probe_golden"),
        ({"canary_interval": 0.0}, "canary", "1", "memory_errors", "probe_canary"),
    ],
)
def test_wrong_answers_and_bad_blocks_move_work(
    tmp_path: Path, health: dict[str, float], order: str, text: str, reason: str, probe: str
) -> None:
    """No error tells of them: the known image and the known blocks do, and the probe fails until they are gone."""
    with GpuUnderTest(tmp_path, health=health).on_gpu() as service:
        assert service.made_by("1.png", sample_image(1)) == GPU
        service.order(order, text)
        assert service.made_by("2.png", sample_image(2)) == CPU
        service.wait_for("engine.state", reason=probe)
        service.withdraw(order)
        service.wait_for("engine.failback")
    audit.assert_settled(service, samples([1, 2]))
    away = service.named("engine.failover")[0]
    assert away["reason"] == reason
    if order == "canary":
        assert away["reading"] > away["threshold"] == 0.0001


@pytest.mark.parametrize(("told", "reason"), [("hang", "sensor_timeout"), ("", "no_source")])
def test_a_sensor_that_hangs_or_vanishes_holds_up_nobody(tmp_path: Path, told: str, reason: str) -> None:
    with GpuUnderTest(tmp_path).on_gpu() as service:
        if told:
            service.tell(told)
        else:
            service.sensor.unlink()
        away = service.wait_for("engine.failover")
        service.turn()
        service.temperature(50.0)
        service.wait_for("engine.failback")
    assert away["reason"] == reason
    assert service.named("engine.degraded")[0]["reason"] == reason  # suspect first
    assert service.named("service.stalled") == []


def test_with_require_gpu_images_wait_and_nothing_fails(tmp_path: Path) -> None:
    settings = {"health": {"require_gpu": True}, "service": {"status_interval": 0.1}, "pipeline": {"queue": 1}}
    with GpuUnderTest(tmp_path, settings=settings).on_gpu() as service:
        service.temperature(90.0)
        service.wait_for("engine.degraded", reason="waiting_for_gpu")
        data = service.drop_all(samples(range(12)))
        status = service.wait_for_status(lambda health: health["engine"]["state"] == "waiting" and health["waiting"])
        assert status["device"] == "none"
        assert status["engine"]["devices"]["cuda:0"]["state"] == "cooling"
        assert service.endings() == []
        service.temperature(60.0)
        back = service.wait_for("engine.failback")
        service.wait_for_endings(12)
    assert back["from"] == "none"
    assert {event["device"] for event in service.named("image.done")} == {"cuda:0"}
    assert service.named("engine.failover") == []
    audit.assert_settled(service, data)


def test_a_gpu_that_is_not_well_at_start_is_waited_for_on_the_cpu(tmp_path: Path) -> None:
    service = GpuUnderTest(tmp_path)
    service.temperature(95.0)
    with service:
        assert service.named("service.ready")[0]["device"] == "cpu"
        assert service.named("engine.degraded", reason="gpu_not_ready")[0]["model"] == "lesser"
        assert service.made_by("a.png", sample_image(1)) == CPU
        service.temperature(50.0)
        service.wait_for("engine.failback")
        assert service.made_by("b.png", sample_image(1)) == GPU, "served with the lesser model's answer"
        assert service.serve("c.png", sample_image(1))["reused"]


def test_an_image_that_kills_the_gpu_and_the_cpu_is_poison(tmp_path: Path) -> None:
    data = {"poison.png": poisoned(1)} | samples(range(2, 6))
    with GpuUnderTest(tmp_path, gpu={"standby": {"poison": "signal:SIGSEGV"}}).on_gpu() as service:
        service.steps(["signal:SIGSEGV"])
        service.serve_all(data)
    audit.assert_settled(service, data, bad={"poison.png": Reason.POISON})


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_169_gpu_failures_lose_no_image(tmp_path: Path, campaign_part: CampaignPart) -> None:
    failures = campaign_part.count(169)
    result = campaign(tmp_path / "campaign", failures, campaign_part.seed(20_261_122))
    assert result["failovers"] == result["failbacks"] == failures
    assert result["lost"] == 0
    assert len(result["kinds"]) > 10


class TwoGpus(GpuUnderTest):
    def __init__(self, base: Path, **more) -> None:
        super().__init__(base, gpu={"count": 2}, settings=SETTINGS, **more)

    def on_gpu(self) -> Self:
        super().on_gpu().wait_for_gpu(1)
        self.wait_for_status(lambda health: health["device"] == "cuda:0, cuda:1")
        return self


def test_both_gpus_make_images_of_one_folder(tmp_path: Path) -> None:
    with TwoGpus(tmp_path).on_gpu() as service:
        data = {}
        while {event["device"] for event in service.named("image.done")} != {"cuda:0", "cuda:1"}:
            service.steps(["delay:0.2"], 0)
            service.steps(["delay:0.2"], 1)
            data |= service.serve_all(samples(range(len(data), len(data) + 8)))
        status = service.wait_for_status(lambda health: health["engine"]["state"] == "ready")
    audit.assert_complete(service.roots, data)
    assert set(status["engine"]["devices"]) == {"cuda:0", "cuda:1", "cpu"}
    assert [event["device"] for event in service.named("engine.started")].count("cpu") == 1
    assert {event["device"] for event in service.named("engine.batching")} == {"cuda:0", "cuda:1"}
    assert service.named("engine.chosen")[0]["device"] == "cuda:0, cuda:1"
    assert service.named("engine.failover") == []


def test_the_cpu_answers_when_no_gpu_is_left_and_each_comes_back_by_itself(tmp_path: Path) -> None:
    with TwoGpus(tmp_path).on_gpu() as service:
        service.temperature(95.0, 0)
        first = service.wait_for("engine.failover")
        assert service.made_by("one.png", sample_image(1)) == SECOND
        status = service.wait_for_status(lambda health: health["engine"]["state"] == "degraded")
        assert status["device"] == "cuda:1"
        assert status["engine"]["devices"]["cuda:0"]["state"] == "cooling"
        service.temperature(95.0, 1)
        second = service.wait_for("engine.failover", count=2)
        assert service.made_by("none.png", sample_image(2)) == CPU
        service.temperature(60.0, 1)
        back = service.wait_for("engine.failback")
        assert service.made_by("again.png", sample_image(3)) == SECOND
        service.temperature(60.0, 0)
        service.wait_for("engine.failback", count=2)
        service.temperature(95.0, 1)
        service.wait_for("engine.failover", count=3)
        assert service.made_by("other.png", sample_image(4)) == GPU
    assert (first["from"], first["to"], first["model"]) == ("cuda:0", "cuda:1", "u2netp")
    assert (second["from"], second["to"], second["model"]) == ("cuda:1", "cpu", "lesser")
    assert (back["from"], back["to"]) == ("cpu", "cuda:1")
    assert_proved_before_use(service.events)


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_169_failures_of_two_gpus_lose_no_image(tmp_path: Path, campaign_part: CampaignPart) -> None:
    failures = campaign_part.count(169)
    dice = random.Random(campaign_part.seed(20_261_123))
    kinds = [f"cuda:{word}" for word in STICKY_WORDS] + ["kill", "exit:70", "nonsense", "wrong_image"]
    data: dict[str, bytes] = {}
    health = {"interval": 0.02, "dwell": 0.02, "dwell_maximum": 0.02, "good_checks": 1, "canary_blocks": 16}
    with TwoGpus(tmp_path, health=health | {"trial_pictures": 2}).on_gpu() as service:
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
                data |= service.serve_all(samples(range(len(data), len(data) + dice.randint(2, 8))))
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
