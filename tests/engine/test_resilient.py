"""The engine made of engines: restarts, splits, refuses poison, and gives up only when the service stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rmbgd.clock import SystemClock
from rmbgd.engine.lane import GROW_AFTER, Lane
from rmbgd.engine.resilient import OneLane, ResilientEngine
from rmbgd.engine.types import Answer, Backend, Poisoned, Work
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineLost, ModelError
from rmbgd.events import RecordedEvents
from rmbgd.testing.clock import FakeClock
from rmbgd.testing.engine import POISON_COLOUR, FakeBackend, expected_alpha
from tests.engine.image_store import ImageStore
from tests.engine.processes import PATIENCE, SpyBeat


class FakeStop:
    """A stop that moves the clock when waited for, remembers how long, and is set after so many waits."""

    def __init__(self, clock: FakeClock, after: int = 1000) -> None:
        self.clock = clock
        self.waits: list[float] = []
        self.after = after

    def is_set(self) -> bool:
        return len(self.waits) >= self.after

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        if self.is_set():
            return True
        self.clock.advance(timeout)
        return False


class Workspace:
    """A resilient engine over fake engines; `plans` are arguments for each FakeBackend in turn, the last for ever."""

    def __init__(
        self, images: ImageStore, *plans: dict, stop_after: int = 1000, tries: int = 3, start_tries=None
    ) -> None:
        self.images = images
        self.clock = FakeClock()
        self.events = RecordedEvents()
        self.stop = FakeStop(self.clock, stop_after)
        self.made: list[FakeBackend] = []
        self.plans = list(plans) or [{}]
        self.lane = Lane("fake", self.make, emit=self.events, clock=self.clock, delay_maximum=8.0)
        self.engine = ResilientEngine(
            OneLane(self.lane), tries=tries, stop=self.stop, clock=self.clock, start_tries=start_tries
        )

    def make(self) -> Backend:
        plan = self.plans[min(len(self.made), len(self.plans) - 1)]
        self.made.append(FakeBackend(self.images.arena.block, **plan))
        return self.made[-1]

    def is_right(self, work: Work) -> bool:
        slot = self.images.slot(work)
        return np.array_equal(slot.rgba[..., 3], expected_alpha(slot.rgb))


@pytest.mark.parametrize(("step", "kind"), [("lost", "lost"), ("nonsense", "nonsense")])
def test_a_batch_that_fails_runs_again_image_by_image(images, step, kind):
    """After a sticky fault a fresh engine computes the same slots, one by one; the events tell fault and restart."""
    workspace = Workspace(images, {"script": [step]}, {})
    works = [images.put(n) for n in (1, 2, 3)]
    workspace.engine.start()
    report = workspace.engine.segment(works)

    assert [(a.image_id, a.batch, a.tries) for a in report.answers] == [(1, 1, 2), (2, 1, 2), (3, 1, 2)]
    assert all(workspace.is_right(work) for work in works)
    assert [engine.batches for engine in workspace.made] == [[[1, 2, 3]], [[1], [2], [3]]]
    assert workspace.made[0].closed
    assert [name for name, _ in workspace.events.events] == ["engine.started", "engine.fault", "engine.restarted"]
    fault = workspace.events.named("engine.fault")[0]
    assert (fault["kind"], fault["images"], fault["restarts"]) == (kind, [1, 2, 3], 0)
    assert workspace.events.named("engine.restarted")[0]["restarts"] == 1


def test_the_first_restart_is_immediate_and_later_ones_wait_longer(images):
    """An engine that does not come up is tried again at once, then after 1, 2, 4, 8, 8 seconds, until it does."""
    workspace = Workspace(images, {"script": ["lost"]}, *[{"start": "lost"}] * 6, {})
    workspace.engine.start()
    workspace.engine.segment([images.put()])

    assert workspace.stop.waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert workspace.events.named("engine.restarted")[0]["seconds"] == sum(workspace.stop.waits)
    assert len(workspace.events.named("engine.fault")) == 7


def test_an_answer_ends_the_series_of_failures(images):
    """After a batch was answered the next fault is followed by an immediate restart again."""
    workspace = Workspace(images, {"script": ["ok", "lost"]})
    workspace.engine.start()
    for n in range(6):
        workspace.engine.segment([images.put(n)])

    assert workspace.stop.waits == []


def test_poison_is_refused_and_its_company_is_not(images):
    """What brings down three engines, at last alone, is refused with the last cause; the others are answered."""
    workspace = Workspace(images, {"poison": "lost"})
    works = [images.put(1), images.put(2, corner=POISON_COLOUR), images.put(3)]
    workspace.engine.start()
    answers = workspace.engine.segment(works).answers

    assert [type(a) for a in answers] == [Answer, Poisoned, Answer]
    assert answers[1] == Poisoned(2, "the script says that the device is lost", 3)
    assert workspace.is_right(works[0])
    assert workspace.is_right(works[2])
    assert len(workspace.events.named("engine.fault")) == 3  # once in company, twice alone


def test_nobody_is_refused_while_the_engine_does_not_pass_its_known_image(images):
    """An image that failed alone often enough is not refused by an engine that then fails by itself, too."""
    workspace = Workspace(images, {"script": ["lost"]}, {"start": "lost"}, tries=1, stop_after=5)
    workspace.engine.start()
    with pytest.raises(EngineLost, match="stopping"):
        workspace.engine.segment([images.put()])


def test_shortage_of_memory_halves_the_batch_and_is_remembered(images):
    """The engine stays; the batch goes in halves, and the next ones are cut at once, until more is tried again."""
    workspace = Workspace(images, {"memory_limit": 2})
    works = [images.put(n) for n in range(8)]
    workspace.engine.start()
    first = workspace.engine.segment(works)
    after_first = [len(batch) for batch in workspace.made[0].batches]
    workspace.engine.segment(works)
    second = [len(batch) for batch in workspace.made[0].batches[len(after_first) :]]
    while len(workspace.events.named("engine.fault")) < 3:
        workspace.engine.segment(works)

    assert after_first == [8, 4, 2, 2, 2, 2]
    assert [a.batch for a in first.answers] == [2] * 8
    assert second == [2, 2, 2, 2]
    assert [len(batch) for batch in workspace.made[0].batches[2 : 2 + GROW_AFTER]] == [2] * GROW_AFTER
    assert len(workspace.made) == 1


def test_an_image_too_large_for_memory_gets_a_fresh_engine_each_time(images):
    """Alone and still out of memory: a new process has the least in memory; then the image is refused."""
    workspace = Workspace(images, {"script": ["memory"] * 3})
    workspace.engine.start()
    answers = workspace.engine.segment([images.put()]).answers

    assert isinstance(answers[0], Poisoned)
    assert len(workspace.made) == 4


def test_stopping_ends_the_wait_for_an_engine(images):
    """While no engine is ready a stop raises EngineLost, so that the images can go back."""
    workspace = Workspace(images, {"script": ["lost"]}, {"start": "lost"}, stop_after=3)
    workspace.engine.start()
    with pytest.raises(EngineLost, match="stopping"):
        workspace.engine.segment([images.put()])

    assert len(workspace.stop.waits) == 3


def test_a_ready_engine_works_on_while_the_service_stops(images):
    """A stop alone takes nothing away: what is decoded is computed."""
    workspace = Workspace(images)
    workspace.engine.start()
    workspace.stop.after = 0

    assert workspace.engine.segment([images.put()]).answers[0].image_id == 1


def test_an_engine_that_never_starts_can_be_given_up(images):
    """With start_tries the last fault is raised; without, the tries go on."""
    workspace = Workspace(images, {"start": "lost"}, start_tries=2)
    with pytest.raises(EngineLost, match="script"):
        workspace.engine.start()

    assert len(workspace.made) == 2
    assert workspace.events.named("engine.started") == []


def test_weights_that_cannot_be_used_end_the_first_start_only(images):
    """ModelError goes to the operator at first; later it is a fault among others, and the service goes on trying."""
    first = Workspace(images, {"start": "model"})
    with pytest.raises(ModelError):
        first.engine.start()
    later = Workspace(images, {"script": ["lost"]}, {"start": "model"}, {})
    later.engine.start()
    later.engine.segment([images.put()])

    assert first.made[0].closed
    assert [fault["detail"] for fault in later.events.named("engine.fault")][1:] == [
        "the script says that the weights are damaged"
    ]


def test_closing_closes_the_engine_in_use(images):
    """close gives everything back, twice if asked."""
    workspace = Workspace(images)
    workspace.engine.start()
    workspace.engine.close()
    workspace.engine.close()

    assert workspace.made[0].closed


@pytest.fixture
def real(images) -> Iterator[tuple[Callable[..., ResilientEngine], list[EngineWorker], RecordedEvents, SpyBeat]]:
    """Builds a resilient engine over real child processes; `scripts` has one script per process, the last for ever."""
    workers: list[EngineWorker] = []
    engines: list[ResilientEngine] = []
    events = RecordedEvents()
    heartbeat = SpyBeat()

    def build(*scripts: list[str], batch_timeout: float = PATIENCE, **options: object) -> ResilientEngine:
        def make() -> Backend:
            script = scripts[min(len(workers), len(scripts) - 1)]
            workers.append(
                EngineWorker(
                    images.arena,
                    "rmbgd.testing.engine:create",
                    {"script": script, **options},
                    start_timeout=PATIENCE,
                    batch_timeout=batch_timeout,
                    on_output=lambda line: events("engine.output", source="engine", line=line),
                    heartbeat=heartbeat,
                )
            )
            return workers[-1]

        clock = FakeClock()
        lane = Lane("fake", make, emit=events, clock=clock, delay_maximum=8.0)
        engine = ResilientEngine(OneLane(lane), tries=3, stop=FakeStop(clock), clock=clock)
        engines.append(engine)
        return engine

    yield build, workers, events, heartbeat
    for engine in engines:
        engine.close()


def test_kill_9_of_the_real_process_loses_nothing(images, real):
    """The process is killed while it computes; the next one answers every image of the batch."""
    build, workers, events, heartbeat = real
    engine = build(["hang"], [])
    works = [images.put(n) for n in (1, 2)]
    engine.start()
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(engine.segment, works)
        heartbeat.blocked.wait(PATIENCE)
        os.kill(workers[0].pid, signal.SIGKILL)
        answers = report.result(PATIENCE).answers

    assert [(a.image_id, a.tries) for a in answers] == [(1, 2), (2, 2)]
    assert "SIGKILL" in events.named("engine.fault")[0]["detail"]
    for work in works:
        slot = images.slot(work)
        assert np.array_equal(slot.rgba[..., 3], expected_alpha(slot.rgb))


def test_a_real_process_that_hangs_is_replaced(images, real):
    """A hang is killed at the deadline and the image runs again."""
    build, _workers, events, _heartbeat = real
    engine = build(["hang"], [], batch_timeout=0.3)
    engine.start()
    answers = engine.segment([images.put()]).answers

    assert answers[0].tries == 2
    assert "hung" in events.named("engine.fault")[0]["detail"]


def test_an_image_that_kills_real_processes_is_refused(images, real):
    """Poison ends each process it meets by SIGKILL; after three it is refused, its company is answered by a fourth."""
    build, workers, _events, _heartbeat = real
    engine = build([], poison="kill")
    engine.start()
    answers = engine.segment([images.put(1, corner=POISON_COLOUR), images.put(2)]).answers

    assert isinstance(answers[0], Poisoned)
    assert "SIGKILL" in answers[0].detail
    assert isinstance(answers[1], Answer)
    assert len(workers) == 4


def test_the_system_clock_serves_too(images):
    """With real time and a real event nothing needs to wait when all is well."""
    clock = SystemClock()
    lane = Lane("fake", lambda: FakeBackend(images.arena.block), emit=RecordedEvents(), clock=clock, delay_maximum=1.0)
    engine = ResilientEngine(OneLane(lane), tries=3, stop=FakeStop(FakeClock()), clock=clock)
    engine.start()

    assert engine.segment([images.put()]).answers[0].device == "fake"
    engine.close()
