"""GPU and CPU lanes under the failover policy, in one process: fake engines, a clock that is moved by hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.config.load import Health
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
from rmbgd.engine.types import Answer, CanaryPass, EngineDescription, Work
from rmbgd.errors import EngineLost, ModelError
from rmbgd.events import RecordedEvents
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import POISON_COLOUR, FakeEngine, expected_alpha
from tests.engine.images import Pictures

WELL = Reading("fake", temperature=60.0, throttle=frozenset())
HEALTH = Health(canary_blocks=256, probe_passes=1, canary_interval=86_400, golden_interval=86_400)
MODEL, LESSER = "big", "lesser"
GREEN = FakeEngine(np.empty(0, np.uint8)).golden(MODEL).alpha


class Stopping:
    """Never, until told."""

    def __init__(self) -> None:
        self.told = False

    def is_set(self) -> bool:
        return self.told

    def wait(self, timeout: float | None = None) -> bool:
        return self.told


class InProcess(FakeEngine):
    """A fake engine with what a worker has besides; `sick` holds what every one of them does wrong."""

    def __init__(self, house: House, **options: object) -> None:
        super().__init__(house.pictures.arena.block, device="cuda:0", models=(MODEL,), **options)
        self.house = house
        self.alive, self.ended, self.abandoned, self.aborted = True, False, False, False

    lingers = False

    def belongs_to(self, beat: object, *, patience: float | None = None) -> None:
        """Nobody judges here, nor waits."""

    def abort(self) -> None:
        self.alive, self.aborted = False, True

    def close(self) -> None:
        super().close()
        self.alive, self.ended = False, True

    def start(self) -> EngineDescription:
        if self.house.sick == "start":
            raise EngineLost("sick")
        if self.house.sick == "no_device":
            raise EngineLost("gone", cause="no_device")
        if self.house.sick == "model":
            raise ModelError("no weights")
        return super().start()

    def segment(self, batch):
        if self.aborted:
            raise EngineLost("killed")
        return super().segment(batch)

    def golden(self, model: str) -> Golden:
        found = super().golden(model)
        return Golden(found.alpha * 0, 0.001) if self.house.sick == "golden" else found

    def canary(self, blocks: int) -> CanaryPass:
        return CanaryPass(blocks, 5 if self.house.sick == "canary" else 0)


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


class House:
    """The routing under test; `plan` are arguments for each GPU engine to come."""

    def __init__(self, pictures: Pictures, health: Health = HEALTH, *, warm: bool = True) -> None:
        self.pictures, self.health = pictures, health
        self.clock, self.events, self.stop, self.sensor = FakeClock(), RecordedEvents(), Stopping(), Sensor()
        self.made: list[InProcess] = []
        self.standbys: list[FakeEngine] = []
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
        engine = FakeEngine(self.pictures.arena.block, device="cpu", models=(LESSER,), **self.standby_plan)
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

    def well(self) -> House:
        self.until(Phase.OK)
        return self

    def put(self, **options: object) -> Work:
        self.count += 1
        return self.pictures.put(self.count, model=MODEL, **options)

    def segment(self, count: int = 1) -> list[Answer]:
        """The answers to so many pictures; each of them is right."""
        works = [self.put() for _ in range(count)]
        answers = self.engine.segment(works).answers
        assert [answer.image_id for answer in answers] == [work.image_id for work in works]
        for work in works:
            slot = self.pictures.slot(work)
            assert np.array_equal(slot.rgba[..., 3], expected_alpha(slot.rgb))
            self.pictures.leases.pop(work.image_id).release()
        return answers

    def devices(self, count: int = 1) -> list[tuple[str, str]]:
        return [(answer.device, answer.model) for answer in self.segment(count)]


ON_GPU, ON_CPU = ("cuda:0", MODEL), ("cpu", LESSER)


@pytest.fixture
def house(pictures: Pictures) -> Iterator[House]:
    house = House(pictures)
    yield house
    house.engine.close()


def houses(pictures: Pictures, health: Health, **options: object) -> House:
    house = House(pictures, health, **options)
    pictures.callback(house.engine.close)
    return house


def test_the_process_that_passed_the_probe_is_the_one_that_computes(house: House):
    """No second process is started, and the answer names the device and the model that was asked for."""
    house.well()

    assert house.devices(3) == [ON_GPU] * 3
    assert len(house.made) == 1
    assert house.made[0].batches == [[1, 2, 3]]


def test_a_trip_in_the_middle_of_a_batch_moves_the_rest(house: House):
    """The GPU dies with a batch: the same pictures are computed by the CPU, and the event names them."""
    house.plan = {"script": ["lost"]}
    house.well()

    assert house.devices(3) == [ON_CPU] * 3
    (away,) = house.events.named("engine.failover")
    assert (away["images"], away["reason"], away["model"]) == ([1, 2, 3], "sticky_fault", LESSER)
    assert house.made[0].closed


def test_what_is_computed_when_it_gets_hot_may_finish(house: House):
    """Heat during a batch leaves its process alone until the batch is done; the next one goes to the CPU."""
    house.well()
    house.segment()
    house.attendant.computing([7])
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()

    assert not house.made[0].aborted
    assert house.events.named("engine.failover")[0]["images"] == [7]
    house.attendant.computing([])
    assert house.devices() == [ON_CPU]
    house.attendant.wait(lambda: True)
    assert house.gpu.ready is False


def test_an_idle_hot_process_ends_at_once(house: House):
    """Nobody waits for a picture to give the memory of a hot GPU back."""
    house.well()
    house.segment()
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()

    assert house.made[0].aborted


def test_fail_back_goes_through_a_fresh_process_and_single_pictures(house: House):
    """Another process than before; ten pictures go one by one, then batches again."""
    house.well()
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()
    house.sensor.reading = WELL
    house.well()

    assert house.devices(12) == [ON_GPU] * 12
    assert len(house.made) == 2
    assert [len(batch) for batch in house.made[1].batches] == [1] * 10 + [2]
    assert [event["from"] for event in house.events.named("engine.failback")] == ["cpu"]


def test_a_fault_among_the_single_pictures_is_another_trip(house: House):
    """It costs twice the dwell, and no picture."""
    house.well()
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()
    house.sensor.reading = WELL
    house.plan = {"script": ["ok", "memory"]}
    house.well()

    assert house.devices(3) == [ON_GPU, ON_CPU, ON_CPU]
    assert house.attendant.state.trips == 2


def test_a_picture_too_large_for_the_gpu_s_memory_is_the_cpu_s(house: House):
    """Alone it lacks memory: it goes to the CPU, the process stays, and the next picture goes to the GPU."""
    house.plan = {"script": ["memory"]}
    house.well()

    assert house.devices() == [ON_CPU]
    assert house.devices() == [ON_GPU]
    assert len(house.made) == 1
    assert house.phase is Phase.OK


def test_a_process_that_dies_while_nothing_is_computed_is_noticed(house: House):
    """At the next check, not with the next picture in hand."""
    house.well()
    house.segment()
    house.made[0].alive = False
    house.check()

    assert house.events.named("engine.failover")[0]["reading"] == "its process is gone"
    assert house.devices() == [ON_CPU]


@pytest.mark.parametrize(("sick", "reason"), [("golden", "golden_mismatch"), ("canary", "memory_errors")])
def test_a_device_that_is_due_is_looked_at_before_the_next_picture(pictures: Pictures, sick: str, reason: str):
    """The picture that waits is not given to a device that fails the look."""
    health = HEALTH.model_copy(update={"golden_interval": 600.0, "canary_interval": 60.0})
    house = houses(pictures, health).well()
    house.segment()
    house.sick = sick
    house.check()

    assert house.devices() == [ON_GPU]  # nothing is due yet
    house.clock.advance(600.0)
    assert house.devices() == [ON_CPU]
    assert house.events.named("engine.failover")[0]["reason"] == reason


def test_a_look_that_finds_nothing_leaves_no_trace(pictures: Pictures):
    """No event and no other device."""
    house = houses(pictures, HEALTH.model_copy(update={"golden_interval": 600.0, "canary_interval": 60.0})).well()
    before = len(house.events.events)
    for _ in range(5):
        house.clock.advance(600.0)
        house.attendant.tick()
        assert house.devices() == [ON_GPU]

    assert [name for name, _ in house.events.events[before:]] == ["engine.started"]


def test_an_unkillable_process_is_left_behind(house: House):
    """It is stuck in the driver: the device is lost, work goes on, and nobody waits for it."""
    house.well()
    house.segment()
    house.made[0].abandoned = True
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()

    assert house.devices() == [ON_CPU]
    house.attendant.wait(lambda: house.phase is Phase.LOST)
    assert house.events.named("engine.state")[-1]["reason"] == "unkillable"


def test_a_standby_on_demand_is_given_back(pictures: Pictures):
    """It starts with the first picture after the failover and ends with the first one after the fail-back."""
    house = houses(pictures, HEALTH, warm=False).well()
    house.segment()
    assert house.standbys == []
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()
    assert house.devices() == [ON_CPU]
    house.sensor.reading = WELL
    house.well()
    assert house.devices() == [ON_GPU]

    assert [engine.closed for engine in house.standbys] == [True]


def test_start_waits_for_the_first_probe_and_loads_the_standby(house: House):
    """What the pictures are computed by is known when the GPU has proved itself, not before."""
    assert house.routing.description() is None
    assert house.routing.lane() is house.standby
    house.standby.start()
    assert house.routing.lane() is None
    house.check()
    assert house.routing.description() is None
    house.well()

    assert house.routing.description().device == "cuda:0"


def test_a_gpu_that_comes_up_while_the_standby_is_loaded_leaves_nobody_waiting(house: House):
    """Whoever loaded the standby has given its turn back when he goes on with the GPU."""
    assert house.routing.to_start() is house.standby
    house.standby.start()
    house.well()
    assert house.routing.description().device == "cuda:0"
    house.routing.release()

    assert house.keeper.turn.asking == 0


def test_start_goes_on_with_the_cpu_when_the_gpu_fails_its_probe(house: House):
    """One event says so; what is computed meanwhile is keyed by weights that nobody has seen."""
    house.sick = "golden"
    house.standby.start()
    house.until(Phase.QUARANTINED)
    said = house.routing.description()

    assert said.device == "cpu"
    assert said.models[MODEL]["sha256"] != house.routing.description().models[MODEL]["sha256"]
    assert house.devices() == [ON_CPU]
    assert [event["reason"] for event in house.events.named("engine.degraded")] == ["gpu_not_ready"]
    house.sick = ""
    house.well()
    assert house.devices() == [ON_GPU]
    assert len(house.events.named("engine.failback")) == 1


def test_a_gpu_that_turns_up_later_keeps_no_picture_waiting(house: House):
    """While it proves itself the CPU goes on."""
    house.sensor.reading = Reading("fake", Problem.NO_DEVICE)
    house.standby.start()
    house.check()
    assert house.devices() == [ON_CPU]
    house.sensor.reading = WELL
    house.until(Phase.PROBING)
    assert house.devices() == [ON_CPU]
    house.well()

    assert house.devices() == [ON_GPU]


def test_weights_that_are_missing_are_the_operator_s_to_mend(house: House):
    """As without a GPU: the service does not start with another model than the one that was asked for."""
    house.sick = "model"
    house.until(Phase.QUARANTINED)

    with pytest.raises(ModelError, match="no weights"):
        house.engine.start()


def test_weights_that_vanish_later_cost_the_gpu_only(house: House):
    """A failed probe; pictures are the CPU's until the weights are back."""
    house.well()
    house.engine.start()
    house.sick = "model"
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()
    house.sensor.reading = WELL
    house.until(Phase.QUARANTINED)
    assert house.devices() == [ON_CPU]
    house.sick = ""
    house.well()

    assert house.devices() == [ON_GPU]


def test_without_a_standby_there_is_no_lane_while_the_gpu_is_away(pictures: Pictures):
    """require_gpu: pictures wait; the state and the event say for what."""
    house = houses(pictures, HEALTH.model_copy(update={"require_gpu": True})).well()
    house.segment()
    house.sensor.reading = replace(WELL, temperature=91.0)
    house.check()

    assert house.routing.lane() is None
    assert house.fleet.describe()["state"] == "waiting"
    assert house.fleet.device == "none"
    assert house.events.named("engine.degraded")[-1]["reason"] == "waiting_for_gpu"
    house.stop.told = True
    with pytest.raises(EngineLost):
        house.engine.segment([house.put()])


def test_closing_ends_every_process_and_thread(pictures: Pictures):
    """Also those of a probe that nobody has asked for yet; no event is made of it."""
    house = House(pictures)
    house.check()
    assert house.attendant.state.proved
    before = len(house.events.events)
    house.engine.close()

    assert [engine.ended for engine in house.made] == [True]
    assert house.sensor.closed
    assert house.events.events[before:] == []
    assert not any(thread.is_alive() for thread in house.attendant._threads)


def test_a_poison_picture_is_tried_on_both_devices(house: House):
    """It fails alone on the GPU, then on the CPU, and is refused; the others come out."""
    house.plan = house.standby_plan = {"poison": "lost"}
    house.well()
    works = [house.put(), house.put(corner=POISON_COLOUR), house.put()]
    answers = house.engine.segment(works).answers

    assert [type(answer).__name__ for answer in answers] == ["Answer", "Poisoned", "Answer"]
    assert any(2 in batch for batch in house.made[0].batches)
    assert any(2 in batch for engine in house.standbys for batch in engine.batches)


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


def act(house: House, action: tuple[str, object]) -> None:
    match action:
        case ("heat", float(degrees)):
            house.sensor.reading = replace(WELL, temperature=degrees)
        case ("problem", Problem() as problem):
            house.sensor.reading = Reading("fake", problem)
        case ("sick", str(what)):
            house.sick = what
        case ("script", list(script)):
            house.plan = {"script": script}
        case ("check", int(times)):
            house.check(times)
        case ("wait", float(seconds)):
            house.clock.advance(seconds)
        case ("pictures", int(count)):
            while house.attendant.undecided:
                house.check()
            house.segment(count)
        case ("die", None):
            for engine in house.made:
                engine.alive = False


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(ACTIONS, max_size=40))
def test_every_picture_is_answered_right_and_every_event_fits(actions):
    """Whatever the device does: right answers in order, work away and back in turns, no process used twice or left."""
    with Arena(1 << 20) as arena, Pictures(arena) as pictures:
        house = House(pictures, HEALTH.model_copy(update={"golden_interval": 600.0, "canary_interval": 60.0}))
        try:
            house.standby.start()
            for action in actions:
                act(house, action)
            act(house, ("pictures", 3))
        finally:
            house.engine.close()
        away = False
        for name, _ in house.events.events:
            if name == "engine.failover":
                assert not away
                away = True
            elif name == "engine.failback":
                away = False
        proved = [event for event in house.events.named("engine.state") if event["reason"] == "probe_passed"]
        served = [engine for engine in house.made if engine.batches]
        assert len(served) <= len(proved)
        assert all(engine.ended for engine in house.made)
