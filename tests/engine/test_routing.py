"""GPU and CPU lanes under the failover policy, in one process: fake engines, a clock that is moved by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.config.load import HealthSettings
from rmbgd.engine.arena import Arena
from rmbgd.engine.attendant import Attendant
from rmbgd.engine.devices import Devices
from rmbgd.engine.examine import Golden
from rmbgd.engine.health_types import Phase
from rmbgd.engine.keeper import Standby
from rmbgd.engine.lane import Lane
from rmbgd.engine.resilient import ResilientEngine
from rmbgd.engine.routing import FailoverRouting
from rmbgd.engine.sensors.base import Problem, Reading
from rmbgd.engine.standby import SubstituteEngine
from rmbgd.engine.station import Station
from rmbgd.engine.telling import Moves
from rmbgd.engine.types import Answer, EngineDescription, MemoryTestPass, Work
from rmbgd.errors import EngineLost, ModelError
from rmbgd.events import RecordedEvents
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import POISON_COLOUR, FakeBackend, expected_alpha
from tests.engine.image_store import ImageStore

WELL = Reading("fake", temperature=60.0, throttle=frozenset())
HEALTH = HealthSettings(canary_blocks=256, probe_passes=1, canary_interval=86_400, golden_interval=86_400)
MODEL, LESSER = "big", "lesser"
GREEN = FakeBackend(np.empty(0, np.uint8)).golden(MODEL).alpha


class Stopping:
    """Never, until told."""

    def __init__(self) -> None:
        self.told = False

    def is_set(self) -> bool:
        return self.told

    def wait(self, timeout: float | None = None) -> bool:
        return self.told


class InProcess(FakeBackend):
    """A fake engine with what a worker has besides; `sick` holds what every one of them does wrong."""

    def __init__(self, workspace: Workspace, **options: object) -> None:
        super().__init__(workspace.images.arena.block, device="cuda:0", models=(MODEL,), **options)
        self.workspace = workspace
        self.alive, self.ended, self.abandoned, self.aborted = True, False, False, False

    lingers = False

    def belongs_to(self, heartbeat: object, *, patience: float | None = None) -> None:
        """Nobody judges here, nor waits."""

    def abort(self) -> None:
        self.alive, self.aborted = False, True

    def close(self) -> None:
        super().close()
        self.alive, self.ended = False, True

    def start(self) -> EngineDescription:
        if self.workspace.sick == "start":
            raise EngineLost("sick")
        if self.workspace.sick == "no_device":
            raise EngineLost("gone", cause="no_device")
        if self.workspace.sick == "model":
            raise ModelError("no weights")
        return super().start()

    def segment(self, batch):
        if self.aborted:
            raise EngineLost("killed")
        return super().segment(batch)

    def golden(self, model: str) -> Golden:
        found = super().golden(model)
        return Golden(found.alpha * 0, 0.001) if self.workspace.sick == "golden" else found

    def canary(self, blocks: int) -> MemoryTestPass:
        return MemoryTestPass(blocks, 5 if self.workspace.sick == "canary" else 0)


class Stored:
    """References that are there."""

    def of(self, description: EngineDescription):
        return dict.fromkeys(description.models, GREEN)

    def abort(self) -> None:
        """Nothing is computed."""


class Sensor:
    def __init__(self) -> None:
        self.reading = WELL
        self.closed = False

    def read(self) -> Reading:
        return self.reading

    def close(self) -> None:
        self.closed = True


class Workspace:
    """The routing under test; `plan` are arguments for each GPU engine to come."""

    def __init__(self, images: ImageStore, health: HealthSettings = HEALTH, *, warm: bool = True) -> None:
        self.images, self.health = images, health
        self.clock, self.events, self.stop, self.sensor = FakeClock(), RecordedEvents(), Stopping(), Sensor()
        self.made: list[InProcess] = []
        self.standbys: list[FakeBackend] = []
        self.plan: dict[str, object] = {}
        self.standby_plan: dict[str, object] = {}
        self.sick = ""
        with_standby = not health.require_gpu
        changed = threading.Condition(threading.RLock())
        self.attendant = Attendant(
            "cuda:0",
            health=health,
            sensor=self.sensor,
            make=self.make,
            references=Stored(),
            moves=Moves("cpu" if with_standby else "", LESSER if with_standby else "", MODEL),
            emit=self.events,
            clock=self.clock,
            changed=changed,
        )
        self.gpu = Lane(
            "cuda:0", self.never, emit=self.events, clock=self.clock, delay_maximum=8.0, keep_when_short=with_standby
        )
        station = Station(self.gpu, self.attendant, health=health, clock=self.clock)
        self.standby, self.keeper = None, None
        if with_standby:
            self.standby = Lane(
                "cpu", self.stand_in, emit=self.events, clock=self.clock, delay_maximum=8.0, forgiving=True
            )
            self.keeper = Standby(self.standby, warm=warm, interval=5.0, emit=self.events, clock=self.clock)
        self.fleet = Devices([station], self.keeper, changed=changed, is_stopping=self.stop.is_set)
        self.routing = FailoverRouting(self.fleet, models=[MODEL])
        self.engine = ResilientEngine(self.routing, tries=3, stop=self.stop, clock=self.clock)
        self.count = 0

    def never(self):
        raise AssertionError("a GPU's lane makes no engine")

    def make(self) -> InProcess:
        self.made.append(InProcess(self, **self.plan))
        return self.made[-1]

    def stand_in(self):
        engine = FakeBackend(self.images.arena.block, device="cpu", models=(LESSER,), **self.standby_plan)
        self.standbys.append(engine)
        return SubstituteEngine(engine, {MODEL: LESSER})

    @property
    def phase(self) -> Phase:
        return self.attendant.state.phase

    def check(self, times: int = 1) -> None:
        """Health checks, an interval apart; a probe that they start is waited for."""
        for _ in range(times):
            self.clock.advance(self.health.interval)
            self.attendant.tick()
            self.attendant.wait(lambda: self.phase is not Phase.PROBING or self.attendant.state.proved)

    def until(self, phase: Phase, limit: int = 3000) -> None:
        for _ in range(limit):
            if self.phase is phase:
                return
            self.check()
        raise AssertionError(f"{self.phase}, not {phase}")

    def well(self) -> Workspace:
        self.until(Phase.OK)
        return self

    def put(self, **options: object) -> Work:
        self.count += 1
        return self.images.put(self.count, model=MODEL, **options)

    def segment(self, count: int = 1) -> list[Answer]:
        """The answers to so many images; each of them is right."""
        works = [self.put() for _ in range(count)]
        answers = self.engine.segment(works).answers
        assert [answer.image_id for answer in answers] == [work.image_id for work in works]
        for work in works:
            slot = self.images.slot(work)
            assert np.array_equal(slot.rgba[..., 3], expected_alpha(slot.rgb))
            self.images.leases.pop(work.image_id).release()
        return answers

    def devices(self, count: int = 1) -> list[tuple[str, str]]:
        return [(answer.device, answer.model) for answer in self.segment(count)]


ON_GPU, ON_CPU = ("cuda:0", MODEL), ("cpu", LESSER)


@pytest.fixture
def workspace(images: ImageStore) -> Iterator[Workspace]:
    workspace = Workspace(images)
    yield workspace
    workspace.engine.close()


def houses(images: ImageStore, health: HealthSettings, **options: object) -> Workspace:
    workspace = Workspace(images, health, **options)
    images.callback(workspace.engine.close)
    return workspace


def test_the_process_that_passed_the_probe_is_the_one_that_computes(workspace: Workspace):
    """No second process is started, and the answer names the device and the model that was asked for."""
    workspace.well()

    assert workspace.devices(3) == [ON_GPU] * 3
    assert len(workspace.made) == 1
    assert workspace.made[0].batches == [[1, 2, 3]]


def test_a_trip_in_the_middle_of_a_batch_moves_the_rest(workspace: Workspace):
    """The GPU dies with a batch: the same images are computed by the CPU, and the event names them."""
    workspace.plan = {"script": ["lost"]}
    workspace.well()

    assert workspace.devices(3) == [ON_CPU] * 3
    (away,) = workspace.events.named("engine.failover")
    assert (away["images"], away["reason"], away["model"]) == ([1, 2, 3], "sticky_fault", LESSER)
    assert workspace.made[0].closed


def test_what_is_computed_when_it_gets_hot_may_finish(workspace: Workspace):
    """Heat during a batch leaves its process alone until the batch is done; the next one goes to the CPU."""
    workspace.well()
    workspace.segment()
    workspace.attendant.computing([7])
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()

    assert not workspace.made[0].aborted
    assert workspace.events.named("engine.failover")[0]["images"] == [7]
    workspace.attendant.computing([])
    assert workspace.devices() == [ON_CPU]
    workspace.attendant.wait(lambda: True)
    assert workspace.gpu.ready is False


def test_an_idle_hot_process_ends_at_once(workspace: Workspace):
    """Nobody waits for an image to give the memory of a hot GPU back."""
    workspace.well()
    workspace.segment()
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()

    assert workspace.made[0].aborted


def test_fail_back_goes_through_a_fresh_process_and_single_images(workspace: Workspace):
    """Another process than before; ten images go one by one, then batches again."""
    workspace.well()
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()
    workspace.sensor.reading = WELL
    workspace.well()

    assert workspace.devices(12) == [ON_GPU] * 12
    assert len(workspace.made) == 2
    assert [len(batch) for batch in workspace.made[1].batches] == [1] * 10 + [2]
    assert [event["from"] for event in workspace.events.named("engine.failback")] == ["cpu"]


def test_a_fault_among_the_single_images_is_another_trip(workspace: Workspace):
    """It costs twice the dwell, and no image."""
    workspace.well()
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()
    workspace.sensor.reading = WELL
    workspace.plan = {"script": ["ok", "memory"]}
    workspace.well()

    assert workspace.devices(3) == [ON_GPU, ON_CPU, ON_CPU]
    assert workspace.attendant.state.trips == 2


def test_an_image_too_large_for_the_gpu_s_memory_is_the_cpu_s(workspace: Workspace):
    """Alone it lacks memory: it goes to the CPU, the process stays, and the next image goes to the GPU."""
    workspace.plan = {"script": ["memory"]}
    workspace.well()

    assert workspace.devices() == [ON_CPU]
    assert workspace.devices() == [ON_GPU]
    assert len(workspace.made) == 1
    assert workspace.phase is Phase.OK


def test_a_process_that_dies_while_nothing_is_computed_is_noticed(workspace: Workspace):
    """At the next check, not with the next image in hand."""
    workspace.well()
    workspace.segment()
    workspace.made[0].alive = False
    workspace.check()

    assert workspace.events.named("engine.failover")[0]["reading"] == "its process is gone"
    assert workspace.devices() == [ON_CPU]


@pytest.mark.parametrize(("sick", "reason"), [("golden", "golden_mismatch"), ("canary", "memory_errors")])
def test_a_device_that_is_due_is_looked_at_before_the_next_image(images: ImageStore, sick: str, reason: str):
    """The image that waits is not given to a device that fails the look."""
    health = HEALTH.model_copy(update={"golden_interval": 600.0, "canary_interval": 60.0})
    workspace = houses(images, health).well()
    workspace.segment()
    workspace.sick = sick
    workspace.check()

    assert workspace.devices() == [ON_GPU]  # nothing is due yet
    workspace.clock.advance(600.0)
    assert workspace.devices() == [ON_CPU]
    assert workspace.events.named("engine.failover")[0]["reason"] == reason


def test_a_look_that_finds_nothing_leaves_no_trace(images: ImageStore):
    """No event and no other device."""
    workspace = houses(images, HEALTH.model_copy(update={"golden_interval": 600.0, "canary_interval": 60.0})).well()
    before = len(workspace.events.events)
    for _ in range(5):
        workspace.clock.advance(600.0)
        workspace.attendant.tick()
        assert workspace.devices() == [ON_GPU]

    assert [name for name, _ in workspace.events.events[before:]] == ["engine.started"]


def test_an_unkillable_process_is_left_behind(workspace: Workspace):
    """It is stuck in the driver: the device is lost, work goes on, and nobody waits for it."""
    workspace.well()
    workspace.segment()
    workspace.made[0].abandoned = True
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()

    assert workspace.devices() == [ON_CPU]
    workspace.attendant.wait(lambda: workspace.phase is Phase.LOST)
    assert workspace.events.named("engine.state")[-1]["reason"] == "unkillable"


def test_a_standby_on_demand_is_given_back(images: ImageStore):
    """It starts with the first image after the failover and ends with the first one after the fail-back."""
    workspace = houses(images, HEALTH, warm=False).well()
    workspace.segment()
    assert workspace.standbys == []
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()
    assert workspace.devices() == [ON_CPU]
    workspace.sensor.reading = WELL
    workspace.well()
    assert workspace.devices() == [ON_GPU]

    assert [engine.closed for engine in workspace.standbys] == [True]


def test_start_waits_for_the_first_probe_and_loads_the_standby(workspace: Workspace):
    """What the images are computed by is known when the GPU has proved itself, not before."""
    assert workspace.routing.description() is None
    assert workspace.routing.lane() is workspace.standby
    workspace.standby.start()
    assert workspace.routing.lane() is None
    workspace.check()
    assert workspace.routing.description() is None
    workspace.well()

    assert workspace.routing.description().device == "cuda:0"


def test_a_gpu_that_comes_up_while_the_standby_is_loaded_leaves_nobody_waiting(workspace: Workspace):
    """Whoever loaded the standby has given its turn back when he goes on with the GPU."""
    assert workspace.routing.to_start() is workspace.standby
    workspace.standby.start()
    workspace.well()
    assert workspace.routing.description().device == "cuda:0"
    workspace.routing.release()

    assert workspace.keeper.turn.asking == 0


def test_start_goes_on_with_the_cpu_when_the_gpu_fails_its_probe(workspace: Workspace):
    """One event says so; what is computed meanwhile is keyed by weights that nobody has seen."""
    workspace.sick = "golden"
    workspace.standby.start()
    workspace.until(Phase.QUARANTINED)
    said = workspace.routing.description()

    assert said.device == "cpu"
    assert said.models[MODEL]["sha256"] != workspace.routing.description().models[MODEL]["sha256"]
    assert workspace.devices() == [ON_CPU]
    assert [event["reason"] for event in workspace.events.named("engine.degraded")] == ["gpu_not_ready"]
    workspace.sick = ""
    workspace.well()
    assert workspace.devices() == [ON_GPU]
    assert len(workspace.events.named("engine.failback")) == 1


def test_a_gpu_that_turns_up_later_keeps_no_image_waiting(workspace: Workspace):
    """While it proves itself the CPU goes on."""
    workspace.sensor.reading = Reading("fake", Problem.NO_DEVICE)
    workspace.standby.start()
    workspace.check()
    assert workspace.devices() == [ON_CPU]
    workspace.sensor.reading = WELL
    workspace.until(Phase.PROBING)
    assert workspace.devices() == [ON_CPU]
    workspace.well()

    assert workspace.devices() == [ON_GPU]


def test_weights_that_are_missing_are_the_operator_s_to_mend(workspace: Workspace):
    """As without a GPU: the service does not start with another model than the one that was asked for."""
    workspace.sick = "model"
    workspace.until(Phase.QUARANTINED)

    with pytest.raises(ModelError, match="no weights"):
        workspace.engine.start()


def test_weights_that_vanish_later_cost_the_gpu_only(workspace: Workspace):
    """A failed probe; images are the CPU's until the weights are back."""
    workspace.well()
    workspace.engine.start()
    workspace.sick = "model"
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()
    workspace.sensor.reading = WELL
    workspace.until(Phase.QUARANTINED)
    assert workspace.devices() == [ON_CPU]
    workspace.sick = ""
    workspace.well()

    assert workspace.devices() == [ON_GPU]


def test_without_a_standby_there_is_no_lane_while_the_gpu_is_away(images: ImageStore):
    """require_gpu: images wait; the state and the event say for what."""
    workspace = houses(images, HEALTH.model_copy(update={"require_gpu": True})).well()
    workspace.segment()
    workspace.sensor.reading = replace(WELL, temperature=91.0)
    workspace.check()

    assert workspace.routing.lane() is None
    assert workspace.fleet.describe()["state"] == "waiting"
    assert workspace.fleet.device == "none"
    assert workspace.events.named("engine.degraded")[-1]["reason"] == "waiting_for_gpu"
    workspace.stop.told = True
    with pytest.raises(EngineLost):
        workspace.engine.segment([workspace.put()])


def test_closing_ends_every_process_and_thread(images: ImageStore):
    """Also those of a probe that nobody has asked for yet; no event is made of it."""
    workspace = Workspace(images)
    workspace.check()
    assert workspace.attendant.state.proved
    before = len(workspace.events.events)
    workspace.engine.close()

    assert [engine.ended for engine in workspace.made] == [True]
    assert workspace.sensor.closed
    assert workspace.events.events[before:] == []
    assert not any(thread.is_alive() for thread in workspace.attendant._threads)


def test_a_poison_image_is_tried_on_both_devices(workspace: Workspace):
    """It fails alone on the GPU, then on the CPU, and is refused; the others come out."""
    workspace.plan = workspace.standby_plan = {"poison": "lost"}
    workspace.well()
    works = [workspace.put(), workspace.put(corner=POISON_COLOUR), workspace.put()]
    answers = workspace.engine.segment(works).answers

    assert [type(answer).__name__ for answer in answers] == ["Answer", "Poisoned", "Answer"]
    assert any(2 in batch for batch in workspace.made[0].batches)
    assert any(2 in batch for engine in workspace.standbys for batch in engine.batches)


# --- whatever happens

STEPS = ["ok", "memory", "lost", "nonsense"]
ACTIONS = st.one_of(
    st.tuples(st.just("heat"), st.sampled_from([50.0, 75.0, 80.0, 85.0, 85.1, 99.0])),
    st.tuples(st.just("problem"), st.sampled_from(list(Problem))),
    st.tuples(st.just("sick"), st.sampled_from(["", "start", "no_device", "golden", "canary", "model"])),
    st.tuples(st.just("script"), st.lists(st.sampled_from(STEPS), max_size=4)),
    st.tuples(st.just("check"), st.integers(1, 15)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 60.0, 600.0, 4000.0])),
    st.tuples(st.just("pictures"), st.integers(1, 6)),
    st.tuples(st.just("die"), st.none()),
)


def act(workspace: Workspace, action: tuple[str, object]) -> None:
    match action:
        case ("heat", float(degrees)):
            workspace.sensor.reading = replace(WELL, temperature=degrees)
        case ("problem", Problem() as problem):
            workspace.sensor.reading = Reading("fake", problem)
        case ("sick", str(what)):
            workspace.sick = what
        case ("script", list(script)):
            workspace.plan = {"script": script}
        case ("check", int(times)):
            workspace.check(times)
        case ("wait", float(seconds)):
            workspace.clock.advance(seconds)
        case ("pictures", int(count)):
            while workspace.attendant.undecided:
                workspace.check()
            workspace.segment(count)
        case ("die", None):
            for engine in workspace.made:
                engine.alive = False


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(ACTIONS, max_size=40))
def test_every_image_is_answered_right_and_every_event_fits(actions):
    """Whatever the device does: right answers in order, work away and back in turns, no process used twice or left."""
    with Arena(1 << 20) as arena, ImageStore(arena) as images:
        workspace = Workspace(images, HEALTH.model_copy(update={"golden_interval": 600.0, "canary_interval": 60.0}))
        try:
            workspace.standby.start()
            for action in actions:
                act(workspace, action)
            act(workspace, ("pictures", 3))
        finally:
            workspace.engine.close()
        away = False
        for name, _ in workspace.events.events:
            if name == "engine.failover":
                assert not away
                away = True
            elif name == "engine.failback":
                away = False
        proved = [event for event in workspace.events.named("engine.state") if event["reason"] == "probe_passed"]
        served = [engine for engine in workspace.made if engine.batches]
        assert len(served) <= len(proved)
        assert all(engine.ended for engine in workspace.made)
