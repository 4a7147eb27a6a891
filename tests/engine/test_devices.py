"""Several GPUs: who takes images, where those in hand go, and what is said, with fake engines in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.engine.arena import Arena
from rmbgd.engine.health_types import Phase
from rmbgd.engine.resilient import Stopped
from rmbgd.engine.types import Answer, Poisoned
from rmbgd.errors import EngineLost, ModelError
from rmbgd.testing.engine import POISON_COLOUR
from tests.engine.fleet import HEALTH, HOT, WELL, Fleet
from tests.engine.image_store import ImageStore
from tests.engine.processes import PATIENCE

FIRST, SECOND, STANDBY = "cuda:0", "cuda:1", "cpu"


@pytest.fixture
def fleet(images: ImageStore) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(**options: object) -> Fleet:
        made.append(Fleet(images, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop.told = True
        each.close()


def test_each_thread_uses_its_own_gpu(fleet):
    """While both are well nobody touches the other's, nor the CPU."""
    both = fleet().well()

    assert both.made_by(0, 2) == [FIRST] * 2
    assert both.made_by(1, 2) == [SECOND] * 2
    assert both.may_take() == [True, True]
    assert both.devices.device == "cuda:0, cuda:1"
    assert both.devices.describe()["state"] == "ready"


def test_a_thread_whose_gpu_is_away_leaves_images_to_the_others(fleet):
    """One away: it takes none; all away: the first one takes them for the CPU; when stopping, whoever is asked."""
    both = fleet().well()
    both.gpus[0].reading = HOT
    both.check()
    assert both.may_take() == [False, True]
    both.gpus[1].reading = HOT
    both.check()
    assert both.may_take() == [True, False]
    assert both.made_by(0) == [STANDBY]
    both.stop.told = True
    assert both.may_take() == [True, True]


def test_images_in_hand_when_only_the_device_is_taken_away_go_to_the_other_gpu(fleet):
    """Heat is no image's fault: what its thread had taken is made by the other GPU, with the model asked for."""
    both = fleet().well()
    both.gpus[0].reading = HOT
    both.check()

    assert both.made_by(0, 3) == [SECOND] * 3
    assert both.gpus[1].made[-1].batches == [[1, 2, 3]]  # in company, as they were


def test_a_process_killed_because_its_device_is_ill_accuses_nobody(fleet):
    """The health check condemns the device while it computes: its images are no suspects, and stay together."""
    both = fleet().well()
    both.made_by(0)
    child = both.gpus[0].made[-1]

    def segment(batch):
        both.gpus[0].reading = replace(WELL, remap_failed=True)
        both.gpus[0].check()
        return type(child).segment(child, batch)

    child.segment = segment
    assert both.made_by(0, 3) == [SECOND] * 3
    assert both.gpus[1].made[-1].batches == [[2, 3, 4]]


def test_images_that_met_a_fault_go_to_the_cpu_alone(fleet):
    """What killed one GPU's process could kill the next one's: it stays in use, and takes what comes."""
    both = fleet()
    both.gpus[0].plan = {"script": ["lost"]}
    both.well()

    assert both.made_by(0, 3) == [STANDBY] * 3
    assert [len(batch) for engine in both.standbys for batch in engine.batches] == [1, 1, 1]
    assert both.may_take() == [False, True]
    assert both.gpus[1].computed() == []


def test_without_a_standby_they_go_to_the_other_gpu_alone(fleet):
    """require_gpu: there is nothing else."""
    both = fleet(health=HEALTH.model_copy(update={"require_gpu": True}))
    both.gpus[0].plan = {"script": ["lost"]}
    both.well()

    assert both.made_by(0, 3) == [SECOND] * 3
    assert both.gpus[1].made[-1].batches == [[1], [2], [3]]


def test_events_say_where_work_goes_and_whence_it_comes_back(fleet):
    """To the other GPU while it is well, else to the CPU; the model in use is the one that computes there."""
    both = fleet().well()
    for gpu in both.gpus:
        gpu.reading = HOT
        both.check()
    both.gpus[0].reading = WELL
    both.until(Phase.OK, Phase.COOLING)
    both.gpus[1].reading = WELL
    both.well()

    away = [(event["from"], event["to"], event["model"]) for event in both.events.named("engine.failover")]
    back = [(event["from"], event["to"], event["model"]) for event in both.events.named("engine.failback")]
    assert away == [(FIRST, SECOND, "big"), (SECOND, STANDBY, "lesser")]
    assert back == [(STANDBY, FIRST, "big"), (FIRST, SECOND, "big")]


def test_one_that_is_away_makes_the_state_degraded(fleet):
    """Every device is named with its state; the images' device is the one that is left."""
    both = fleet().well()
    both.standby.lane.start()
    both.gpus[0].reading = HOT
    both.check()
    said = both.devices.describe()

    assert (said["state"], said["device"]) == ("degraded", SECOND)
    assert {name: facts["state"] for name, facts in said["devices"].items()} == {
        FIRST: "cooling",
        SECOND: "ok",
        STANDBY: "ready",
    }


def test_the_service_starts_with_the_first_gpu_that_is_well(fleet):
    """One failed its probe: nothing waits for it, one event says so, and its thread waits until it is well."""
    both = fleet()
    both.gpus[0].sick = "start"
    both.standby.lane.start()
    both.until(Phase.QUARANTINED, Phase.OK)

    assert both.engines[0].start().device == SECOND
    assert [
        event["reason"]
        for event in both.events.named(
            "engine.degraded",
        )
    ] == ["gpu_not_ready"]
    assert both.events.named("engine.degraded")[0]["model"] == "big"
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(both.engines[1].start)
        assert second.result(PATIENCE).device == SECOND


def test_who_waits_for_a_gpu_that_never_comes_leaves_with_the_first(fleet):
    """The first thread ends when no images come any more; the other has computed none and holds up nobody."""
    both = fleet()
    both.gpus[1].sick = "start"
    both.standby.lane.start()
    both.until(Phase.OK, Phase.QUARANTINED)
    both.engines[0].start()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(both.engines[1].start)
        both.engines[0].close()
        with pytest.raises(Stopped):
            second.result(PATIENCE)


def test_weights_that_no_gpu_can_load_are_the_operator_s_to_mend(fleet):
    """One GPU that cannot is no reason not to start; all of them are, as where there is one."""
    both = fleet()
    both.standby.lane.start()
    both.gpus[0].sick = "model"
    both.until(Phase.QUARANTINED, Phase.OK)
    assert both.engines[0].start().device == SECOND
    none = fleet()
    for gpu in none.gpus:
        gpu.sick = "model"
    none.until(Phase.QUARANTINED, Phase.QUARANTINED)
    with pytest.raises(ModelError):
        none.engines[0].start()


def test_the_standby_ends_with_its_last_user(fleet):
    """One thread leaves, another may still need it."""
    both = fleet().well()
    both.standby.lane.start()
    both.engines[0].close()
    assert not both.standbys[0].closed
    for gpu in both.gpus:
        gpu.reading = HOT
    both.gpus[1].check()
    assert both.made_by(1) == [STANDBY]
    both.engines[1].close()
    both.engines[1].close()

    assert both.standbys[0].closed
    assert all(child.ended for gpu in both.gpus for child in gpu.made)


def test_a_faulty_process_that_does_not_go_keeps_no_image_waiting(fleet):
    """It is stuck in the driver: somebody else waits for its end, and finds that the device is lost."""
    both = fleet()
    both.gpus[0].plan = {"script": ["lost"]}
    both.well()
    both.made_by(1)
    child = both.gpus[0].made[-1]
    child.lingers = child.abandoned = True

    assert both.made_by(0) != [FIRST]
    both.gpus[0].attendant.wait(lambda: both.gpus[0].phase is Phase.LOST)
    assert child.ended


def test_a_process_of_a_hot_gpu_is_not_kept_until_somebody_comes(fleet):
    """Its thread takes no more images: who looks after the GPU lets its process go."""
    both = fleet().well()
    both.made_by(0)
    both.gpus[0].reading = HOT
    both.check()

    assert not both.gpus[0].station.lane.ready


# --- poison


@pytest.mark.parametrize(("company", "tries", "deaths"), [(3, 3, 3), (0, 3, 3), (3, 1, 2), (0, 1, 2), (0, 2, 2)])
def test_a_poison_image_costs_as_many_processes_as_tries(fleet, company, tries, deaths):
    """In company or alone, one GPU's and then only the CPU's; with one try the CPU has tried it all the same."""
    both = fleet(tries=tries)
    for gpu in both.gpus:
        gpu.plan = {"poison": "lost"}
    both.standby_plan = {"poison": "lost"}
    both.well()
    works = [both.put(corner=POISON_COLOUR)] + [both.put() for _ in range(company)]
    answers = both.run(0, works)

    assert [type(answer) for answer in answers] == [Poisoned] + [Answer] * company
    assert both.deaths() == deaths
    assert both.gpus[1].computed() == []
    assert both.devices.device == SECOND


def test_what_only_the_gpu_cannot_do_is_no_poison(fleet):
    """It killed the GPU's process, with one try only, and the CPU answers it."""
    both = fleet(tries=1)
    both.gpus[0].plan = {"poison": "lost"}
    both.well()

    assert [answer.device for answer in both.run(0, [both.put(corner=POISON_COLOUR)])] == [STANDBY]


# --- the standby


def test_a_standby_that_cannot_be_loaded_does_not_keep_the_service_from_starting(fleet):
    """The GPU works: one event says that nothing stands by, and why; it is tried again until it is there."""
    both = fleet()
    both.standby_sick = "model"
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(both.engines[0].start)
        both.well()
        assert started.result(PATIENCE).device in (FIRST, SECOND)
    said = both.events.named("engine.degraded")
    assert [(event["device"], event["reason"]) for event in said] == [(STANDBY, "no_standby")]
    assert "damaged" in said[0]["reading"]
    assert both.devices.describe()["devices"][STANDBY] == {"state": "missing"}
    for _ in range(5):
        both.clock.advance(60.0)
        both.standby.tick()
    assert len(both.events.named("engine.degraded")) == 1
    both.standby_sick = ""
    both.clock.advance(60.0)
    both.standby.tick()

    assert both.devices.describe()["devices"][STANDBY] == {"state": "ready"}


def test_a_suspect_goes_to_a_gpu_where_no_standby_can_be_loaded(fleet):
    """Nothing else is there to try it: failing alone on GPUs convicts it then."""
    three = fleet(count=3, tries=2)
    three.standby_sick = "model"
    for gpu in three.gpus:
        gpu.plan = {"poison": "lost"}
    three.well()
    with pytest.raises(EngineLost):
        three.standby.lane.start()
    three.clock.advance(60.0)
    three.standby.tick()
    answers = three.run(0, [three.put(corner=POISON_COLOUR)])

    assert isinstance(answers[0], Poisoned)
    assert three.deaths() == 2
    assert [gpu.computed() for gpu in three.gpus] == [[1], [1], []]


def test_with_neither_gpu_nor_standby_the_start_fails(fleet):
    """The weights of what stands in are the operator's to mend, and nothing can compute meanwhile."""
    both = fleet()
    both.standby_sick = "model"
    for gpu in both.gpus:
        gpu.sick = "start"
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(both.engines[0].start)
        both.until(Phase.QUARANTINED, Phase.QUARANTINED)
        with pytest.raises(ModelError, match="damaged"):
            started.result(PATIENCE)


def test_a_standby_that_died_in_idleness_is_started_again_before_it_is_needed(fleet):
    """The kernel took its process while the GPUs worked: the next look notices, and the one after it is there."""

    class Process:
        alive = False

        def abort(self) -> None:
            """It is gone already."""

    both = fleet().well()
    both.standby.lane.start()
    both.standby.process = Process()
    both.standby.tick()
    Process.alive = True

    assert both.events.named("engine.fault")[-1]["detail"] == "its process is gone"
    assert [engine.closed for engine in both.standbys] == [True, False]
    assert both.standby.ready


def test_a_standby_on_demand_is_left_alone_while_nobody_needs_it(fleet):
    """Where memory is scarce nothing is loaded in advance."""
    both = fleet(warm=False).well()
    both.standby.tick()

    assert both.standbys == []


# --- whatever happens

INDEX = st.integers(0, 1)
ACTIONS = st.one_of(
    st.tuples(st.just("reading"), INDEX, st.sampled_from([WELL, HOT, replace(WELL, ecc_uncorrected=3)])),
    st.tuples(st.just("sick"), INDEX, st.sampled_from(["", "start", "model"])),
    st.tuples(st.just("script"), INDEX, st.lists(st.sampled_from(["ok", "memory", "lost", "nonsense"]), max_size=4)),
    st.tuples(st.just("die"), INDEX, st.none()),
    st.tuples(st.just("standby"), INDEX, st.sampled_from(["", "model", "lost"])),
    st.tuples(st.just("check"), INDEX, st.integers(1, 15)),
    st.tuples(st.just("wait"), INDEX, st.sampled_from([1.0, 60.0, 600.0, 4000.0])),
    st.tuples(st.just("pictures"), INDEX, st.integers(1, 6)),
)


def act(workspace: Fleet, name: str, gpu, value) -> None:
    match name:
        case "reading":
            gpu.reading = value
        case "sick":
            gpu.sick = value
        case "script":
            gpu.plan = {"script": value}
        case "die":
            for child in gpu.made:
                child.alive = False
        case "standby":
            workspace.standby_sick = value
        case "check":
            workspace.check(value)
            workspace.standby.tick()
        case "wait":
            workspace.clock.advance(value)
        case "pictures":
            serve(workspace, gpu.index, value)


def serve(workspace: Fleet, index: int, count: int) -> None:
    """As the threads do: whoever may take them takes them; the CPU makes none that met no fault while a GPU is well."""
    if not workspace.devices.may_take(index):
        index = workspace.may_take().index(True)
    in_use, faults = bool(workspace.devices.in_use), len(workspace.events.named("engine.fault"))
    if not in_use:
        workspace.standby_sick = ""  # with nothing that computes they would wait here for ever
    devices = set(workspace.made_by(index, count))
    if in_use and len(workspace.events.named("engine.fault")) == faults and workspace.devices.in_use:
        assert STANDBY not in devices


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(ACTIONS, max_size=40))
def test_whatever_two_gpus_do_every_image_is_answered_right(actions):
    """Right answers in order, by a GPU while one is well; no process is used after a trip, or left behind."""
    with Arena(1 << 20) as arena, ImageStore(arena) as images:
        workspace = Fleet(images)
        try:
            workspace.standby.lane.start()
            while workspace.devices.undecided:
                workspace.check()
            for name, index, value in actions:
                if name == "pictures" and not workspace.devices.in_use:
                    workspace.standby_sick = ""
                act(workspace, name, workspace.gpus[index], value)
            act(workspace, "pictures", workspace.gpus[0], 3)
        finally:
            workspace.close()
        for gpu in workspace.gpus:
            edges = [
                name
                for name, keys in workspace.events.events
                if (name == "engine.failover" and keys["from"] == gpu.device)
                or (name == "engine.failback" and keys["to"] == gpu.device)
            ]
            assert edges == ["engine.failover", "engine.failback"] * (len(edges) // 2) + edges[len(edges) // 2 * 2 :]
            proved = workspace.events.named("engine.state")
            proofs = [each for each in proved if each["device"] == gpu.device and each["reason"] == "probe_passed"]
            assert len([child for child in gpu.made if child.batches]) <= len(proofs)
            assert all(child.ended for child in gpu.made)
        assert all(engine.closed for engine in workspace.standbys)
