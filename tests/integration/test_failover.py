"""GPU to CPU to GPU in the running service: whatever the GPU does, every image comes out once and is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.errors import Reason
from rmbgd.testing.engine import CUDA_ERRORS, POISON_COLOUR
from tests.conftest import CampaignPart
from tests.support import audit
from tests.support.gpu_service import MEMORY_WORDS, GpuUnderTest, assert_proved_before_use
from tests.support.images import encoded, rgba_of, sample_image
from tools.failover import STICKY_WORDS, campaign

GPU, CPU = ("cuda:0", "u2netp"), ("cpu", "lesser")


def drop_all(service: GpuUnderTest, first: int, count: int) -> dict[str, bytes]:
    data = {f"{number}.png": sample_image(number) for number in range(first, first + count)}
    for name, content in data.items():
        service.drop(name, content)
    return data


def test_a_service_with_a_gpu_uses_it_once_it_has_proved_itself(tmp_path: Path) -> None:
    """The standby is loaded first, then the probe passes, then the service is ready, and the GPU makes the image."""
    with GpuUnderTest(tmp_path) as service:
        service.drop("a.png", sample_image(1))

        assert service.made_by("a.png") == GPU
        assert service.named("service.ready")[0]["device"] == "cuda:0"
        standby = service.index("engine.started", device="cpu")
        assert standby < service.index("service.ready")
        assert service.index("engine.state", to="ok") < service.index("service.ready")
        assert service.named("engine.chosen")[0]["standby"] == {"u2netp": "lesser"}
        assert service.named("engine.failover") == service.named("engine.failback") == []


def test_heat_moves_work_to_the_cpu_and_a_probe_brings_it_back(tmp_path: Path) -> None:
    """Above 85 the next image is the CPU's; below 75 for some checks, and after a passed probe, the GPU's again."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
        service.temperature(85.0)
        service.drop("warm.png", sample_image(1))
        assert service.made_by("warm.png") == GPU
        service.temperature(85.1)
        away = service.wait_for("engine.failover")
        service.drop("hot.png", sample_image(2))
        assert service.made_by("hot.png") == CPU
        service.temperature(75.1)  # not yet cool
        service.turn(2)
        assert service.named("engine.failback") == []
        service.temperature(75.0)
        back = service.wait_for("engine.failback")
        service.drop("cool.png", sample_image(3))
        assert service.made_by("cool.png") == GPU

    assert (away["from"], away["to"], away["reason"], away["model"]) == ("cuda:0", "cpu", "temperature", "lesser")
    assert (away["reading"], away["threshold"]) == (85.1, 85.0)
    assert (back["from"], back["to"], back["model"]) == ("cpu", "cuda:0", "u2netp")
    assert service.states() == [
        ("probing", "found"), ("ok", "probe_passed"), ("cooling", "temperature"), ("probing", "cooled"),
        ("ok", "probe_passed"),
    ]  # fmt: skip
    assert_proved_before_use(service.events)


def test_the_standby_was_ready_before_it_was_needed(tmp_path: Path) -> None:
    """After a failover no process has to start before the next image is done: only the CPU's own time passes."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for("service.ready")
        service.wait_for_gpu()
        service.steps(["cuda:assert"])
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU
        away, done = service.index("engine.failover"), service.index("image.done", path="a.png")

    assert service.index("engine.started", device="cpu") < away
    assert [
        event for event in service.events[away:done] if event["event"] in ("engine.started", "engine.restarted")
    ] == []


def test_a_standby_on_demand_starts_when_it_is_needed(tmp_path: Path) -> None:
    """Where memory is scarce the CPU's model is loaded after the failover; the image still comes out."""
    with GpuUnderTest(tmp_path, gpu={"warm": False}) as service:
        service.wait_for_gpu()
        service.steps(["cuda:assert"])
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU

    assert service.index("engine.failover") < service.index("engine.started", device="cpu")


@pytest.mark.parametrize("word", STICKY_WORDS)
def test_a_sticky_error_costs_one_process_and_no_image(tmp_path: Path, word: str) -> None:
    """The batch goes to the CPU, the process is never used again, a fresh one is probed before work returns."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
        service.steps([f"cuda:{word}"])
        data = drop_all(service, 0, 5)
        service.wait_for_endings(5)
        service.wait_for("engine.failback")
        after = sample_image(99)
        service.drop("after.png", after)
        assert service.made_by("after.png") == GPU

    audit.assert_settled(service, data | {"after.png": after})
    away = service.named("engine.failover")
    assert [event["reason"] for event in away] == ["sticky_fault"]
    assert away[0]["reading"].startswith(str(CUDA_ERRORS[word]).partition("\n")[0])
    fault = service.named("engine.fault")[0]
    assert (fault["device"], fault["kind"], fault["images"]) == ("cuda:0", "lost", away[0]["images"])
    assert len(away[0]["images"]) >= 1
    assert_proved_before_use(service.events)


@pytest.mark.parametrize("word", MEMORY_WORDS)
def test_shortage_of_memory_keeps_the_process(tmp_path: Path, word: str) -> None:
    """Running out of memory once is no trip: that image is made by the CPU, and the GPU stays in use."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
        service.steps([f"cuda:{word}"])
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU  # it failed alone: better tried elsewhere
        service.drop("b.png", sample_image(2))
        assert service.made_by("b.png") == GPU

    assert service.named("engine.fault")[0]["kind"] == "memory"
    assert service.named("engine.failover") == []
    assert service.named("engine.restarted") == []


def test_the_third_shortage_of_memory_moves_work(tmp_path: Path) -> None:
    """Three within the window are a trip, with the count and its limit in the event."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
        service.steps(["cuda:memory"] * 3)
        for number in range(3):
            service.drop(f"{number}.png", sample_image(number))
            service.wait_for("image.done", path=f"{number}.png")
        away = service.wait_for("engine.failover")

    assert (away["reason"], away["reading"], away["threshold"]) == ("out_of_memory", 3, 3)


@pytest.mark.parametrize("word", ["no_device", "driver_mismatch", "init"])
def test_a_device_that_is_gone_is_lost_and_found_again(tmp_path: Path, word: str) -> None:
    """The error says that there is no device: it is looked for at intervals, and used again after a probe."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
        service.order("start", f"cuda:{word}")
        service.steps([f"cuda:{word}"])
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU
        service.wait_for("engine.state", to="lost", reason="no_device", count=2)  # the first probe finds nothing, too
        service.withdraw("start")
        service.wait_for("engine.failback")
        service.drop("b.png", sample_image(2))
        assert service.made_by("b.png") == GPU


@pytest.mark.parametrize("step", ["hang", "kill", "exit:70", "nonsense", "wrong_count"])
def test_a_process_that_hangs_dies_or_talks_nonsense(tmp_path: Path, step: str) -> None:
    """It is killed where it has not died; its images are the CPU's, and a fresh process proves itself."""
    settings = {"engine": {"device": "cuda:0", "batch_timeout": 1.0}}
    with GpuUnderTest(tmp_path, settings=settings) as service:
        service.wait_for_gpu()
        service.steps([step])
        data = drop_all(service, 0, 3)
        service.wait_for_endings(3)
        service.wait_for("engine.failback")

    audit.assert_settled(service, data)
    assert [event["reason"] for event in service.named("engine.failover")] == ["sticky_fault"]
    assert service.named("service.stalled") == []
    assert_proved_before_use(service.events)


def test_a_hang_is_told_by_the_gpu_s_own_measure(tmp_path: Path) -> None:
    """A GPU that said what a batch takes is killed long before the time that a CPU may take, which here is an hour."""
    settings = {"engine": {"device": "cuda:0", "batch_timeout": 3600.0, "hang_minimum": 0.5}}
    with GpuUnderTest(tmp_path, settings=settings, gpu={"seconds": 0.01}) as service:
        service.wait_for_gpu()
        service.steps(["hang"])
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU
        fault = service.named("engine.fault")[0]

    assert "hung" in fault["detail"]
    assert service.named("engine.failover")[0]["reason"] == "sticky_fault"


def test_a_standby_that_cannot_be_loaded_does_not_end_the_start(tmp_path: Path) -> None:
    """The GPU works: the service is ready, says that nothing stands by and why, and tries until it is there."""
    orders = tmp_path / "standby"
    orders.mkdir()
    (orders / "start").write_text("model")
    with GpuUnderTest(tmp_path / "service", gpu={"standby": {"orders": str(orders)}}) as service:
        missing = service.wait_for("engine.degraded", reason="no_standby")
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == GPU
        (orders / "start").unlink()
        service.wait_for("engine.started", device="cpu")
        service.temperature(95.0)
        service.drop("b.png", sample_image(2))
        service.wait_for("engine.failover")
        service.drop("c.png", sample_image(3))
        assert service.made_by("c.png") == CPU

    assert (missing["device"], missing["reading"]) == ("cpu", "the script says that the weights are damaged")
    assert len(service.named("engine.degraded", reason="no_standby")) == 1


def test_with_neither_a_gpu_nor_a_standby_the_start_fails(tmp_path: Path) -> None:
    """Nothing can compute and only the operator can mend it: the exit status says so to systemd."""
    service = GpuUnderTest(tmp_path, gpu={"standby": {"start": "model"}})
    service.order("start", "lost")
    service.start(ready=False)

    assert service.reap() == 78
    assert "damaged" in service.named("service.failed")[0]["error"]


def test_images_that_wait_for_a_gpu_go_back_when_the_service_stops(tmp_path: Path) -> None:
    """What nothing computes is not waited for: the image is in its folder when the service has stopped."""
    settings = {"health": {"require_gpu": True}, "engine": {"device": "cuda:0"}, "service": {"stop_timeout": 3600.0}}
    health = {"dwell": 1e6, "dwell_maximum": 1e6}
    with GpuUnderTest(tmp_path, settings=settings, health=health) as service:
        service.wait_for_gpu()
        service.steps(["kill"])
        service.drop("a.png", sample_image(1))
        service.wait_for("engine.degraded", reason="waiting_for_gpu")
        assert service.stop() == 0
        assert service.named("image.postponed", path="a.png")

    assert audit.files(service.input) == ["a.png"]


def test_wrong_answers_without_an_error_are_found_by_the_known_image(tmp_path: Path) -> None:
    """A GPU that answers zeros is left at the next look, before it makes another image, until it is right."""
    with GpuUnderTest(tmp_path, health={"golden_interval": 1e-6}) as service:
        service.wait_for_gpu()
        service.drop("well.png", sample_image(1))
        assert service.made_by("well.png") == GPU
        service.order("zero", "")
        service.drop("sick.png", sample_image(2))
        assert service.made_by("sick.png") == CPU
        service.wait_for("engine.state", reason="probe_golden")
        service.withdraw("zero")
        service.wait_for("engine.failback")

    audit.assert_settled(service, {"well.png": sample_image(1), "sick.png": sample_image(2)})
    assert service.named("engine.failover")[0]["reason"] == "golden_mismatch"


def test_bad_blocks_of_device_memory_move_work(tmp_path: Path) -> None:
    """A canary with too many bad blocks is a trip that says the rate and its limit."""
    with GpuUnderTest(tmp_path, health={"canary_interval": 0.0}) as service:
        service.wait_for_gpu()
        service.order("canary", "1")
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU
        away = service.wait_for("engine.failover")
        service.wait_for("engine.state", reason="probe_canary")
        service.withdraw("canary")
        service.wait_for("engine.failback")

    assert (away["reason"], away["threshold"]) == ("memory_errors", 0.0001)
    assert away["reading"] > 0.0001


@pytest.mark.parametrize(("told", "reason"), [("hang", "sensor_timeout"), ("", "no_source")])
def test_a_sensor_that_hangs_or_vanishes_holds_up_nobody(tmp_path: Path, told: str, reason: str) -> None:
    """Images go on meanwhile; the fourth unknown reading is a trip; when the sensor is back, so is the GPU."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
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
    """While the GPU is hot nothing is computed and nothing refused; the service says so, and goes on when it can."""
    settings = {"health": {"require_gpu": True}, "service": {"status_interval": 0.1}, "pipeline": {"queue": 1}}
    settings["pipeline"] |= {"arena_bytes": 64 << 20, "free_bytes_minimum": 0}
    with GpuUnderTest(tmp_path, settings=settings | {"engine": {"device": "cuda:0"}}) as service:
        service.wait_for_gpu()
        service.temperature(90.0)
        service.wait_for("engine.degraded", reason="waiting_for_gpu")
        data = drop_all(service, 0, 12)
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


def test_a_service_that_requires_a_gpu_starts_without_one(tmp_path: Path) -> None:
    """It is ready, takes nothing it cannot do, stops in good order, and serves when the GPU turns up."""
    settings = {"health": {"require_gpu": True}, "engine": {"device": "cuda:0"}}
    service = GpuUnderTest(tmp_path, settings=settings, gpu={"count": 0})
    service.tell('{"problem": "no_device"}')
    with service:
        service.wait_for("engine.degraded", reason="waiting_for_gpu")
        service.drop("a.png", sample_image(1))
        service.stop()
    assert audit.files(service.input) == ["a.png"]
    with service.start():
        service.temperature(50.0)
        assert service.made_by("a.png") == GPU


def test_a_gpu_that_is_not_well_at_start_is_waited_for_on_the_cpu(tmp_path: Path) -> None:
    """The service starts on the CPU with one event, and the GPU takes over when it has proved itself."""
    service = GpuUnderTest(tmp_path)
    service.temperature(95.0)
    with service:
        assert service.named("service.ready")[0]["device"] == "cpu"
        assert service.named("engine.degraded", reason="gpu_not_ready")[0]["model"] == "lesser"
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU
        service.temperature(50.0)
        service.wait_for("engine.failback")
        service.drop("b.png", sample_image(1))
        assert service.made_by("b.png") == GPU, "an equal image was served with the lesser model's answer"


def test_a_lesser_model_s_answer_is_not_remembered(tmp_path: Path) -> None:
    """An equal image that comes when the GPU is back is computed by the model that was asked for, and then reused."""
    with GpuUnderTest(tmp_path) as service:
        service.wait_for_gpu()
        service.temperature(90.0)
        service.wait_for("engine.failover")
        service.drop("a.png", sample_image(1))
        assert service.made_by("a.png") == CPU
        service.temperature(50.0)
        service.wait_for("engine.failback")
        service.drop("b.png", sample_image(1))
        assert service.made_by("b.png") == GPU
        service.drop("c.png", sample_image(1))
        assert service.wait_for("image.done", path="c.png")["reused"]

    assert not service.named("image.done", path="b.png")[0]["reused"]


def test_the_status_file_shows_the_gpu_s_health(tmp_path: Path) -> None:
    """Phase, temperature, trips, what is left of the dwell, and the device in use."""
    settings = {"service": {"status_interval": 0.1}, "engine": {"device": "cuda:0"}}
    with GpuUnderTest(tmp_path, settings=settings, health={"dwell": 500.0, "dwell_maximum": 500.0}) as service:
        service.wait_for_gpu()
        before = service.wait_for_status(lambda health: health["device"] == "cuda:0")
        service.temperature(91.5)
        after = service.wait_for_status(lambda health: health["device"] == "cpu")

    assert before["engine"]["devices"]["cuda:0"] == {"state": "ok", "trips": 0, "temperature": 60.0}
    gpu = after["engine"]["devices"]["cuda:0"]
    assert (gpu["state"], gpu["trips"], gpu["temperature"]) == ("cooling", 1, 91.5)
    assert 0 < gpu["dwell"] <= 500.0
    assert after["engine"]["devices"]["cpu"]["state"] == "ready"


def test_an_image_that_kills_the_gpu_and_the_cpu_is_poison(tmp_path: Path) -> None:
    """It is refused after it brought down both, and its company is not."""
    poison = rgba_of(sample_image(1))[..., :3].copy()
    poison[0, 0] = POISON_COLOUR
    data = {f"{number}.png": sample_image(number) for number in range(2, 6)} | {"poison.png": encoded(poison)}
    with GpuUnderTest(tmp_path, gpu={"standby": {"poison": "kill"}}) as service:
        service.wait_for_gpu()
        service.steps(["kill"])
        service.drop("poison.png", data["poison.png"])
        for name in list(data)[:-1]:
            service.drop(name, data[name])
        service.wait_for_endings(5)

    audit.assert_settled(service, data, bad={"poison.png": Reason.POISON})


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_169_gpu_failures_lose_no_image(tmp_path: Path, campaign_part: CampaignPart) -> None:
    """One failure after another of every kind, with images always on their way: each comes out once, and is right."""
    failures = campaign_part.count(169)
    result = campaign(tmp_path / "campaign", failures, campaign_part.seed(20_261_122))
    assert result["failovers"] == result["failbacks"] == failures
    assert result["lost"] == 0
    assert len(result["kinds"]) > 10
