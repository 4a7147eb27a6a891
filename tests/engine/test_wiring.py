"""From settings and a machine to devices: which ones, and whose fault it is when there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import Mock

import pytest

from rmbgd.clock import SystemClock
from rmbgd.config.load import parse
from rmbgd.engine.arena import Arena
from rmbgd.engine.device_query import VisibleGpus
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.fallback_model import FallbackModels
from rmbgd.engine.sensors.base import DeadlineSensor, Reading
from rmbgd.engine.wiring import Machine, build
from rmbgd.errors import ConfigError
from rmbgd.events import RecordedEvents
from rmbgd.service.threads import ThreadFailure, ThreadGroup
from rmbgd.testing.sensors import FakeSensor


class Builder(ExitStack):
    """Builds and starts the devices of a machine with `count` GPUs; closes them at the end."""

    def __init__(self, tmp_path) -> None:
        super().__init__()
        self.arena = self.enter_context(Arena(1 << 16))
        self.events, self.state = RecordedEvents(), str(tmp_path)
        self.failures: list[ThreadFailure] = []

    def __call__(self, device: str, count: int, *, start: bool = True, tries: int = 3, **health: object) -> Devices:
        folder = {"name": "a", "input": "/a", "output": "/b", "failed": "/c", "done": "/d"}
        service = {"state_directory": self.state}
        tables = {
            "engine": {"device": device, "tries": tries},
            "health": health,
            "folder": [folder],
            "service": service,
        }
        machine = Machine(
            gpus=lambda: VisibleGpus(count, "looked for by a test"),
            sensor=lambda *_: (DeadlineSensor(FakeSensor([Reading("fake", temperature=50.0)]), 5.0), "test"),
            fallback=lambda _: FallbackModels({"u2netp": "u2netp"}, True, "a test"),
            factory="rmbgd.testing.engine:create",
            options=lambda _config, device, models, _precision: {"device": device, "models": list(models)},
        )
        context = EngineContext(parse(tables, origin="test"), self.arena, self.events, SystemClock())
        devices = build(context, machine)
        for supervisor in devices.supervisors:
            self.callback(supervisor.close)
        self.callback(context.stop_waiting)
        if start:
            devices.start(ThreadGroup(self.failures.append).start)
        return devices


@pytest.fixture
def builder(tmp_path) -> Iterator[Builder]:
    with Builder(tmp_path) as builder:
        yield builder


@pytest.mark.parametrize(
    ("device", "count", "gpus"),
    [
        ("cpu", 2, []),
        ("auto", 0, []),
        ("auto", 1, ["cuda:0"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]),
    ],
)
def test_every_gpu_asked_for_has_a_supervisor_and_one_cpu_is_behind_all(builder, device, count, gpus):
    """Each GPU has its own sensor; where there is none the CPU is the one device, and no fallback."""
    devices = builder(device, count, start=False)
    (chosen,) = builder.events.named("engine.chosen")
    assert [each.device for each in devices.supervisors] == [*gpus, "cpu"]
    assert [each.is_fallback for each in devices.supervisors] == [*[False] * len(gpus), bool(gpus)]
    sensors = [{"device": gpu, "source": "fake", "why": "test"} for gpu in gpus]
    assert builder.events.named("engine.sensor") == sensors
    assert (chosen["device"], "standby" in chosen) == (", ".join(gpus) or "cpu", bool(gpus))
    assert set(devices.describe().get("devices", ())) == ({*gpus, "cpu"} if gpus else set())


@pytest.mark.integration
def test_the_cpu_computes_what_was_asked_for(builder):
    devices = builder("auto", 0)
    assert devices.description().device == "cpu"
    assert devices.describe() == {"state": "ready", "device": "cpu", "restarts": 0, "failures": 0}


@pytest.mark.integration
def test_a_gpu_that_is_visible_computes(builder):
    """It passes its self-test first, and the CPU is loaded behind it."""
    assert builder("cuda:1", 2, good_checks=1).description().device == "cuda:1"
    assert {event["device"] for event in builder.events.named("engine.started")} == {"cuda:1", "cpu"}


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_the_operator_s(builder, device, count):
    """The error says what was looked for, what was found, and what to do."""
    with pytest.raises(ConfigError, match=rf"{device}.*{count} GPUs are visible.*rmbgd doctor"):
        builder(device, count)


def test_one_try_is_read_as_two_and_that_is_an_event(builder):
    builder("cpu", 0, start=False)
    assert builder.events.named("config.adjusted") == []
    builder("cpu", 0, start=False, tries=1)
    (adjusted,) = builder.events.named("config.adjusted")
    assert (adjusted["setting"], adjusted["configured"], adjusted["used"]) == ("engine.tries", 1, 2)


def test_one_file_of_weights_has_one_order(builder):
    folders = [
        {"name": name, "recipe": name} | {each: f"/{name}/{each}" for each in ("input", "output", "failed", "done")}
        for name in ("x", "y")
    ]
    recipes = {"x": {"patch_order": "tile_first"}, "y": {"patch_order": "auto"}}
    config = parse({"folder": folders, "recipe": recipes}, origin="test")
    with pytest.raises(ConfigError, match="disagree about the patch_order"):
        build(EngineContext(config, builder.arena, builder.events, SystemClock()), None)


def test_who_requires_a_gpu_waits_for_it_and_cannot_ask_for_the_cpu(builder):
    """No GPU is no error then, and there is no fallback; on the CPU images would wait for ever."""
    builder("auto", 0, require_gpu=True, start=False)
    assert "standby" not in builder.events.named("engine.chosen")[0]
    with pytest.raises(ConfigError, match="contradict"):
        builder("cpu", 1, require_gpu=True)


def test_processes_are_killed_also_when_they_are_still_to_come(builder):
    """An order to abort reaches every process, whatever thread started it; who waits for a device learns it."""
    context = EngineContext(parse({}, origin="test"), builder.arena, builder.events, SystemClock())
    before, after = Mock(ended=False, asking=False), Mock(ended=False)
    assert (context.describe(), context.device) == ({"state": "starting"}, None)
    context.add(before)
    assert not context.busy
    before.asking = True
    assert context.busy
    context.abort()
    assert context.stopping.is_set()
    assert context.add(after) is after
    assert before.abort.called
    assert after.abort.called


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_a_supervisor_s_thread_raises_reaches_the_service(builder, device):
    """A defect there is no fault of a device: nothing would ever come up, and nothing would say why."""
    devices = builder(device, 1, start=False)
    devices.supervisors[0].tick = Mock(side_effect=MemoryError("no memory for a thread"))
    threads = ThreadGroup(builder.failures.append)
    devices.supervisors[0].start(threads.start)
    assert threads.join(30) == []
    assert [(each.stage, type(each.error)) for each in builder.failures] == [(f"health-{device}", MemoryError)]
