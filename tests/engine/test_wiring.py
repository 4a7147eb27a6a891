"""From settings and a machine to an engine: which device, and whose fault it is when there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rmbgd.clock import SystemClock
from rmbgd.config.load import parse
from rmbgd.engine.arena import Arena
from rmbgd.engine.device_query import Visible
from rmbgd.engine.fallback_model import StandIns
from rmbgd.engine.room import EngineParts, EngineRoom
from rmbgd.engine.sensors.base import DeadlineSensor, Reading
from rmbgd.engine.sensors.choose import Choice
from rmbgd.engine.wiring import Machine, build
from rmbgd.errors import ConfigError
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.testing.sensors import FakeSensor


class Builder(ExitStack):
    """Builds engines on a machine with `count` GPUs; closes them at the end."""

    def __init__(self, tmp_path) -> None:
        super().__init__()
        self.tmp_path = tmp_path
        self.arena = self.enter_context(Arena(1 << 16))
        self.events = RecordedEvents()
        self.stop_event = threading.Event()
        self.parts: EngineParts | None = None

    def __call__(self, device: str, count: int, **health: object):
        folder = {"name": "a", "input": "/a", "output": "/b", "failed": "/c", "done": "/d"}
        service = {"state_directory": str(self.tmp_path)}
        tables = {"engine": {"device": device}, "health": health, "folder": [folder], "service": service}
        config = parse(tables, origin="test")
        machine = Machine(
            gpus=lambda: Visible(count, "looked for by a test"),
            sensor=lambda *_: Choice(DeadlineSensor(FakeSensor([Reading("fake", temperature=50.0)]), 5.0), "a test"),
            stand_ins=lambda _: StandIns({"u2netp": "u2netp"}, True, "a test"),
            factory="rmbgd.testing.engine:create",
            options=lambda _config, device, models, _precision: {"device": device, "models": list(models)},
        )
        self.parts = EngineParts(config, self.arena, self.events, SystemClock(), NullHeartbeat(), self.stop_event)
        self.seats = build(self.parts, machine).seats
        engines = [seat.engine(NullHeartbeat()) for seat in self.seats]
        for engine in engines:
            self.callback(engine.close)
        return engines[0]


@pytest.fixture
def builder(tmp_path) -> Iterator[Builder]:
    with Builder(tmp_path) as builder:
        yield builder


@pytest.mark.parametrize(("device", "count"), [("cpu", 0), ("cpu", 2), ("auto", 0)])
def test_the_cpu_computes_what_was_asked_for(builder, device, count):
    """As configured, or because nothing else is there: one lane, no stand-in, one event that says why."""
    engine = builder(device, count)
    engine.start()

    (chosen,) = builder.events.named("engine.chosen")
    assert chosen["device"] == builder.parts.watch.routing.device == "cpu"
    assert "standby" not in chosen
    assert builder.events.named("engine.sensor") == []
    assert builder.parts.watch.routing.describe()["state"] == "ready"


@pytest.mark.parametrize(
    ("device", "count", "found"), [("auto", 1, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")]
)
def test_a_gpu_that_is_visible_computes(builder, device, count, found):
    """It proves itself first, and the CPU stands by; the processes of both are gone at the end."""
    description = builder(device, count, good_checks=1).start()

    assert description.device == found
    assert builder.events.named("engine.chosen")[0]["device"] == found
    assert [event["device"] for event in builder.events.named("engine.started")] == ["cpu", found]


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_all_gpus_that_are_visible_have_a_seat(builder, device):
    """Each has its own engine and its own sensor; one CPU stands by for all of them."""
    builder(device, 3)

    assert [seat.name for seat in builder.seats] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [event["device"] for event in builder.events.named("engine.chosen")] == ["cuda:0, cuda:1, cuda:2"]
    assert [event["device"] for event in builder.events.named("engine.sensor")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert set(builder.parts.watch.routing.describe()["devices"]) == {"cuda:0", "cuda:1", "cuda:2", "cpu"}


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_the_operator_s(builder, device, count):
    """The error says what was looked for, what was found, and what to do."""
    with pytest.raises(ConfigError, match=rf"{device}.*{count} GPUs are visible.*rmbgd doctor"):
        builder(device, count)


def test_who_requires_a_gpu_cannot_ask_for_the_cpu(builder):
    """Images would wait for ever."""
    with pytest.raises(ConfigError, match="contradict"):
        builder("cpu", 1, require_gpu=True)


def test_who_requires_a_gpu_waits_for_it(builder):
    """No error, and no stand-in."""
    builder("auto", 0, require_gpu=True)

    assert "standby" not in builder.events.named("engine.chosen")[0]


def test_processes_are_killed_also_when_they_are_still_to_come(builder, tmp_path):
    """An order to abort reaches every process, whatever thread started it, and wakes who waits."""
    events, stack = RecordedEvents(), ExitStack()
    with stack:
        config = parse({"engine": {"device": "cpu"}}, origin="test")
        room = EngineRoom(config, builder.arena, events, SystemClock(), lambda parts: parts)
        parts = room.engine(NullHeartbeat())
        room.abort()
        assert parts.stopping.is_set()

        class Spy:
            ended, aborted = False, False

            def abort(self) -> None:
                self.aborted = True

        assert parts.watch.add(Spy()).aborted
    assert room.describe() == {"state": "starting"}
