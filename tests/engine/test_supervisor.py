"""What a supervisor does with one device or several: hand over, check, withdraw, restart, and say so."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import pytest

from rmbgd.engine.devices import Stopped
from rmbgd.engine.health_types import Phase
from rmbgd.engine.retry import BURST, KILLS
from rmbgd.engine.types import EngineDescription, Limit
from rmbgd.errors import ConfigError, EngineLost, ModelError, Reason
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline.items import Postponed
from tests.engine.simulation import LESSER, MODEL, WELL, Began, Gpu

ON_GPU, ON_CPU = "cuda:0", "cpu"
LOSES_ONE = {"script": ["lost"]}
DIES_OF_POISON = {"poison": "lost"}
SICK = {"start": "lost"}


def edges(it) -> list[tuple[str, object, object]]:
    """Where work went, by event."""
    names = ("engine.failover", "engine.failback")
    return [(name.rpartition(".")[2], keys["from"], keys["to"]) for name, keys in it.events.events if name in names]


def where(it, count: int = 1) -> list[str]:
    """Devices that compute so many new images."""
    numbers = it.put(count)
    it.run()
    return it.devices_of(numbers)


def batches(it, device: str) -> list[int]:
    """Sizes of the batches that the device began."""
    return [len(event.images) for event in it.trace if isinstance(event, Began) and event.device == device]


def reasons(it) -> list[str]:
    return [event["reason"] for event in it.events.named("engine.degraded")]


def join_threads(gpu: Gpu) -> None:
    """Processes that are to end have ended."""
    for thread in list(gpu._threads):
        thread.join(30)


def get_hot_during(it, *, recover: bool = False) -> None:
    """The GPU gets hot while its worker runs the next batch, and with `recover` is well again before the end."""
    worker = it.gpus[0].made[-1]
    run = worker.run

    def slow(batch):
        worker.run = run
        it.heat()
        if recover:
            it.mend()
        return run(batch)

    worker.run = slow


# --- one GPU and the CPU behind it


def test_a_batch_that_is_lost_with_its_process_is_computed_by_the_fallback(simulate):
    it = simulate(gpu_plan=LOSES_ONE).well()
    numbers = it.put(4)
    it.run()
    assert it.devices_of(numbers) == [ON_CPU] * 4
    assert {it.outcomes[number].answer.tries for number in numbers} == {2}
    assert batches(it, ON_CPU) == [1] * 4
    (failover,) = it.events.named("engine.failover")
    assert (failover["images"], failover["reason"], failover["model"]) == (numbers, "sticky_fault", LESSER)
    (fault,) = it.events.named("engine.fault")
    assert (fault["device"], fault["kind"], fault["images"]) == (ON_GPU, "lost", numbers)


@pytest.mark.parametrize(("script", "device"), [([], ON_GPU), (["memory"], ON_CPU)])
def test_what_is_computed_when_it_gets_hot_may_finish(simulate, script, device):
    """Heat during a batch leaves its process alone until the batch is done, whatever becomes of it; then it ends, and
    the next image goes to the CPU."""
    it = simulate(gpu_plan={"script": script}).well()
    numbers = it.put(2)
    get_hot_during(it)
    it.step(0)
    join_threads(it.gpus[0])
    assert it.gpus[0].phase is Phase.COOLING
    assert [worker.ended for worker in it.gpus[0].made] == [True]
    it.run()
    assert it.devices_of(numbers) == [device] * 2
    assert where(it) == [ON_CPU]
    assert edges(it) == [("failover", ON_GPU, ON_CPU)]


def test_images_whose_device_is_withdrawn_are_no_suspects(simulate):
    """The health check condemns the device while it computes: they stay together, with no fault to their name."""
    it = simulate(gpus=2).well()
    numbers = it.put(4)
    assert it.begin(0)
    it.gpus[0].reading = replace(WELL, ecc_uncorrected=0)
    it.check()
    assert it.gpus[0].ready_worker(it.threads[0]._heartbeat) is not None
    it.gpus[0].reading = replace(WELL, ecc_uncorrected=3)
    it.check()
    assert it.gpus[0].phase is Phase.QUARANTINED
    it.end(0)
    it.run()
    assert it.devices_of(numbers) == ["cuda:1"] * 4
    assert {it.outcomes[number].answer.batch for number in numbers} == {4}


def test_fail_back_goes_through_a_fresh_process_and_single_images(simulate):
    it = simulate(gpu_plan=LOSES_ONE).well()
    assert where(it) == [ON_CPU]
    it.mend()
    assert where(it, 12) == [ON_GPU] * 12
    assert batches(it, ON_GPU)[1:] == [1] * 10 + [2]
    assert len(it.gpus[0].made) == 2
    assert edges(it) == [("failover", ON_GPU, ON_CPU), ("failback", ON_CPU, ON_GPU)]


def test_a_gpu_that_ran_short_of_memory_gets_a_fresh_process_that_plans_anew(simulate):
    """Its images go back as they were, and the GPU is no worse for it: it is used again at the next check."""
    it = simulate(gpu_plan={"script": ["memory"]}).well()
    numbers = it.put(4)
    it.gpus[0].plan = {"batch_sizes": (1, 2)}
    it.step(0)
    it.check()
    it.run()
    assert it.devices_of(numbers) == [ON_GPU] * 4
    assert batches(it, ON_GPU) == [4, 2, 2]
    assert [worker.ended for worker in it.gpus[0].made] == [True, False]
    (failover,) = it.events.named("engine.failover")
    assert (failover["reason"], failover["images"]) == ("replan", numbers)
    assert it.gpus[0].describe()["trips"] == 0


def test_an_image_too_large_for_the_gpu_s_memory_is_the_cpu_s(simulate):
    it = simulate(gpu_plan={"script": ["memory"]}).well()
    it.gpus[0].plan = {}
    assert where(it) == [ON_CPU]
    it.check()
    assert where(it) == [ON_GPU]


def test_a_process_that_finds_no_memory_at_its_start_is_no_failed_probe(simulate):
    """It rests at its third time, while the CPU serves, and is used when the memory is free again."""
    it = simulate(gpu_plan={"start": "memory"}).until(Phase.SHORT)
    it.check()
    assert where(it) == [ON_CPU]
    assert len(it.gpus[0].made) == 3
    assert "dwell" in it.gpus[0].describe()
    assert reasons(it) == ["gpu_not_ready"]
    it.mend()
    assert where(it) == [ON_GPU]


def test_a_fresh_process_starts_when_the_one_before_is_gone(simulate):
    """Until then its memory is not free, and a GPU that takes one process at a time is busy."""
    it = simulate(gpu_plan={"script": ["memory"]}).well()
    (first,) = it.gpus[0].made
    gone = threading.Event()
    close = first.close
    first.close = lambda: (gone.wait(30), close())
    it.gpus[0].plan = {}
    it.put()
    it.step(0)
    started: list[bool] = []
    [thread for thread in it.gpus[0]._threads if thread.name.startswith("probe")][-1].join(0.05)
    started.append(it.gpus[0].made[1].backend is not None)
    gone.set()
    it.check()
    started.append(it.gpus[0].made[1].backend is not None)
    assert started == [False, True]


def test_shortage_of_memory_halves_the_batch_and_is_remembered(simulate):
    it = simulate(gpus=0, plan={"memory_limit": 3}).well()
    numbers = it.put(8)
    it.run()
    assert batches(it, ON_CPU) == [8, 4, 2, 2, 2, 2]
    assert [it.outcomes[number].answer.tries for number in numbers] == [3] * 4 + [2] * 4
    for _ in range(64):
        where(it)
    where(it, 8)
    assert 4 in batches(it, ON_CPU)[6:]


def test_an_image_too_large_for_memory_gets_a_fresh_worker_each_time(simulate):
    """Without another device: a new process has the least in memory; then the image is rejected."""
    it = simulate(gpus=0, plan={"script": ["memory"]}, tries=2).well()
    (number,) = it.put()
    it.serve()
    assert it.rejected() == [number]
    assert len(it.cpu_made) == 3
    assert "memory is short" in it.outcomes[number].detail


def limits(it) -> list[str]:
    return [event["what"] for event in it.events.named("engine.limited")]


def test_a_card_that_does_not_bear_our_kernels_is_used_without(simulate):
    """Two processes die of them before they have passed; every later one does without, and that is said once."""
    it = simulate(gpu_plan={"start": "kernels cuda:illegal_address"}).well()
    assert where(it) == [ON_GPU]
    assert [worker.backend._on["kernels"] for worker in it.gpus[0].made] == [True, True, False]
    it.gpus[0].plan = {}
    it.heat()
    it.mend()
    assert [worker.backend._on["kernels"] for worker in it.gpus[0].made[3:]] == [False]
    assert limits(it) == ["kernels"]


def test_a_card_that_bears_no_graphs_either_gets_neither(simulate):
    it = simulate(gpu_plan={"start": "graphs lost"}).well()
    assert [worker.backend._on for worker in it.gpus[0].made[-2:]] == [
        {"kernels": False, "graphs": True}, {"kernels": False, "graphs": False}
    ]  # fmt: skip
    assert limits(it) == ["kernels", "graphs"]


def test_a_process_that_was_killed_from_outside_says_nothing_of_the_card(simulate):
    it = simulate(gpu_plan={"start": "killed"})
    it.check(60)
    it.mend()
    assert [worker.backend._on["kernels"] for worker in it.gpus[0].made] == [True] * 4


def test_after_an_unclean_capture_the_next_process_records_no_graphs(simulate):
    """At once: it is no trip, and without graphs it cannot be again."""
    it = simulate(gpu_plan={"start": "graphs unclean_capture"}).well()
    assert [worker.backend._on["graphs"] for worker in it.gpus[0].made] == [True, False]
    assert it.gpus[0].describe()["trips"] == 0
    assert limits(it) == ["graphs"]
    it.gpus[0].plan = {}
    it.heat()
    it.mend()
    assert it.gpus[0].made[-1].backend._on["graphs"] is False


def test_a_process_that_says_so_without_recording_any_is_a_fault_like_others(simulate):
    it = simulate(gpu_plan={"start": "unclean_capture"}).until(Phase.QUARANTINED)
    assert [worker.backend._on["graphs"] for worker in it.gpus[0].made] == [True, False]


def test_how_the_cpu_computes_is_known_once_it_has_started(simulate):
    it = simulate(gpus=1, warm=False)
    assert it.context.cpu_models() == {}
    facts = {"runtime": "torch", "precision": "float32"}
    it.cpu.description = EngineDescription(ON_CPU, {LESSER: facts | {"sha256": "a"}}, (1,))
    assert it.context.cpu_models() == {LESSER: facts}
    assert simulate(gpus=0).context.cpu_models().keys() <= {MODEL}


def test_a_late_fault_of_the_old_process_leaves_the_new_one_alone(simulate):
    """It hung while the GPU cooled down and passed its next probe with another process."""
    it = simulate(gpu_plan=LOSES_ONE).well()
    it.put()
    get_hot_during(it, recover=True)
    it.step(0)
    assert it.gpus[0].phase is Phase.OK
    assert [worker.alive for worker in it.gpus[0].made] == [False, True]
    assert edges(it) == [("failover", ON_GPU, ON_CPU), ("failback", ON_CPU, ON_GPU)]
    assert where(it) == [ON_GPU]


def test_an_image_without_finite_alpha_on_the_gpu_is_computed_by_the_cpu(simulate):
    """The GPU is not to blame: its process stays, the others of the batch are its own, and nothing fails over."""
    it = simulate(gpu_plan={"poison": "not_finite"}).well()
    before = it.put(2)
    (large,) = it.put(poison=True)
    it.put(3)
    it.serve()
    assert it.devices_of([large]) == [ON_CPU]
    assert it.devices_of([*before, large + 1, large + 3]) == [ON_GPU] * 4
    assert edges(it) == it.events.named("engine.fault") == []
    assert [worker.ended for worker in it.gpus[0].made] == [False]
    assert it.outcomes[large].answer.tries == 2


def test_a_batch_of_which_nothing_is_finite_goes_to_the_cpu(simulate):
    it = simulate(gpu_plan={"poison": "not_finite"}).well()
    large = [number for _ in range(4) for number in it.put(poison=True)]
    it.serve()
    assert it.devices_of(large) == [ON_CPU] * 4
    assert it.gpus[0].phase is Phase.OK


def test_a_fallback_that_starts_on_demand_is_started_for_an_image_without_finite_alpha(simulate):
    it = simulate(warm=False, gpu_plan={"poison": "not_finite"}).well()
    (large,) = it.put(poison=True)
    it.serve()
    assert it.devices_of([large]) == [ON_CPU]
    it.check()
    assert it.cpu.describe() == {"state": "on_demand"}


def test_without_a_fallback_an_image_without_finite_alpha_is_rejected_and_the_gpu_goes_on(simulate):
    it = simulate(require_gpu=True, gpu_plan={"poison": "not_finite"}).well()
    (large,) = it.put(poison=True)
    others = it.put(5)
    it.serve()
    assert it.rejected() == [large]
    assert (it.outcomes[large].reason, it.outcomes[large].detail) == (Reason.POISON, "alpha is not finite on cuda:0")
    assert it.devices_of(others) == [ON_GPU] * 5
    assert [worker.ended for worker in it.gpus[0].made] == [False]
    assert it.events.named("engine.fault") == []


@pytest.mark.parametrize("device", [ON_GPU, ON_CPU])
def test_a_process_that_dies_while_nothing_is_computed_is_noticed(simulate, device):
    it = simulate().well()
    (it.gpus[0].made if device == ON_GPU else it.cpu_made)[-1].abort()
    it.check(2)
    assert edges(it) == ([("failover", ON_GPU, ON_CPU)] if device == ON_GPU else [])
    assert [event["device"] for event in it.events.named("engine.restarted")] == [ON_CPU] * (device == ON_CPU)
    assert [event["images"] for event in it.events.named("engine.fault")] == [[]] * (device == ON_CPU)


@pytest.mark.parametrize(
    ("due", "order", "reason"),
    [("canary_interval", "canary", "memory_errors"), ("golden_interval", "zero", "golden_mismatch")],
)
def test_a_device_that_is_due_is_checked_before_the_next_image(simulate, tmp_path, due, order, reason):
    """A check that finds nothing leaves no trace; else the image that waits is not given to the device."""
    it = simulate(gpu_plan={"orders": str(tmp_path)}, **{due: 60.0}).well()
    it.clock.advance(61.0)
    before = len(it.events.events)
    assert where(it) == [ON_GPU]
    assert {name for name, _ in it.events.events[before:]} <= {"engine.batching"}
    it.clock.advance(61.0)
    (tmp_path / order).write_text("200")
    assert where(it) == [ON_CPU]
    assert it.events.named("engine.failover")[0]["reason"] == reason


def test_a_fallback_on_demand_is_there_only_while_it_is_needed(simulate):
    it = simulate(warm=False, gpu_plan=LOSES_ONE).well()
    assert not it.cpu_made
    assert it.devices.describe()["devices"][ON_CPU] == {"state": "on_demand"}
    (number,) = it.put()
    it.serve()
    assert it.devices_of([number]) == [ON_CPU]
    it.mend().check()
    assert [worker.ended for worker in it.cpu_made] == [True]
    assert where(it) == [ON_GPU]


# --- when the service starts


def test_the_service_starts_with_the_first_device_that_passed_its_self_test(simulate):
    """What the images are computed by is known then, not before; the fallback was loaded meanwhile."""
    it = simulate(gpus=2)
    it.cpu.tick()
    assert it.cpu.view.usable
    assert not it.devices._description.done()
    assert it.devices.describe()["state"] == "starting"
    it.gpus[1].plan = SICK
    it.until(Phase.OK, Phase.QUARANTINED)
    assert it.devices.description().device == "cuda:0"
    assert it.devices.describe()["state"] == "degraded"
    assert it.events.named("engine.degraded") == [{"device": "cuda:1", "reason": "gpu_not_ready", "model": MODEL}]


def test_the_service_starts_with_the_fallback_loaded(simulate):
    """A GPU that is ready first waits for it, so that a failover waits for no start; not for one on demand."""
    it, other = simulate(), simulate(warm=False)
    it.until(Phase.OK, tick_cpu=False)
    other.until(Phase.OK, tick_cpu=False)
    assert not it.devices._description.done()
    assert other.devices.description().device == ON_GPU
    it.cpu.tick()
    assert it.devices.description().device == ON_GPU


def test_the_service_starts_on_the_fallback_when_no_gpu_passes(simulate):
    """One event says so; what is computed meanwhile is keyed by weights that nothing has seen."""
    it = simulate(gpu_plan=SICK).until(Phase.QUARANTINED)
    description = it.devices.description()
    assert description.device == ON_CPU
    assert "not seen" in str(description.models[MODEL]["sha256"])
    assert reasons(it) == ["gpu_not_ready"]
    assert where(it) == [ON_CPU]
    it.mend()
    assert where(it) == [ON_GPU]
    assert edges(it) == [("failback", ON_CPU, ON_GPU)]


@pytest.mark.parametrize(
    ("gpus", "gpu", "cpu"), [(0, "ok", "model"), (1, "model", "ok"), (2, "model", "ok"), (1, "lost", "model")]
)
def test_weights_that_no_device_can_load_are_the_operators_to_mend(simulate, gpus, gpu, cpu):
    """The service does not start with another model than the one that was asked for, nor with nothing at all."""
    it = simulate(gpus=gpus, plan={"start": cpu}, gpu_plan={"start": gpu})
    it.until(*[Phase.QUARANTINED] * gpus).check()
    with pytest.raises(ModelError, match="weights are damaged"):
        it.devices.description()
    assert reasons(it) == ["no_standby"] * (gpu == "lost"), "nothing serves, so nothing serves with less"


def test_a_gpu_that_fails_after_the_stop_is_no_news(simulate):
    it = simulate(gpu_plan=SICK)
    it.context.stop_waiting()
    it.until(Phase.QUARANTINED)
    assert reasons(it) == []


def test_weights_that_vanish_later_are_a_fault_like_any_other(simulate):
    """On the only device: it is tried again until they are back, and the images wait."""
    it = simulate(gpus=0, plan={"script": ["ok", "lost"]}).well()
    assert where(it) == [ON_CPU]
    it.cpu_plan = {"start": "model"}
    numbers = it.put()
    it.run()
    it.check(3)
    assert not it.outcomes.get(numbers[0])
    it.cpu_plan = {}
    it.serve()
    assert it.devices_of(numbers) == [ON_CPU]


def test_stopping_ends_the_wait_for_a_device(simulate):
    it = simulate(gpus=0, plan=SICK)
    it.check(2)
    numbers = it.put(3)
    it.context.stop_waiting()
    it.run()
    with pytest.raises(Stopped):
        it.devices.description()
    assert all(isinstance(it.outcomes[number], Postponed) for number in numbers)
    assert {it.outcomes[number].why for number in numbers} == {"stopping"}


def test_a_ready_worker_works_on_while_the_service_stops(simulate):
    it = simulate(gpus=0).well()
    it.context.stop_waiting()
    assert where(it, 3) == [ON_CPU] * 3


@pytest.mark.parametrize("order", ["abort", "close"])
def test_a_start_that_the_stop_cuts_short_is_no_fault(simulate, order):
    """A report counts faults, and an operator who stops the service has caused none."""
    it = simulate(gpus=0, plan=SICK)
    it.context.stop_waiting() if order == "abort" else it.cpu.stop()
    it.cpu._start_worker()
    assert it.events.events == []


def test_at_the_stop_a_batch_goes_to_the_gpu_that_is_still_well(simulate, tmp_path):
    """Its own GPU failed the memory test just before: only what nobody can compute is given back."""
    it = simulate(gpus=2, canary_interval=60.0)
    it.gpus[0].plan = {"orders": str(tmp_path)}
    it.well().clock.advance(61.0)
    (tmp_path / "canary").write_text("200")
    numbers = it.put(3)
    it.context.stop_waiting()
    assert it.begin(0)
    it.end(0)
    it.run()
    assert it.devices_of(numbers) == ["cuda:1"] * 3


# --- several GPUs


def test_images_of_a_gpu_that_is_withdrawn_go_to_the_other_with_the_model_asked_for(simulate):
    it = simulate(gpus=2).well()
    it.heat()
    join_threads(it.gpus[0])
    assert it.gpus[0].made[-1].ended, "a hot GPU's memory is given back without an image that has to come first"
    assert where(it) == ["cuda:1"]
    it.heat(1)
    assert where(it) == [ON_CPU]
    it.mend()
    assert edges(it)[:2] == [("failover", "cuda:0", "cuda:1"), ("failover", "cuda:1", ON_CPU)]
    assert [event["model"] for event in it.events.named("engine.failover")] == [MODEL, LESSER]
    assert {name for name, *_ in edges(it)[2:]} == {"failback"}


@pytest.mark.parametrize(("mark", "reason"), [("poison", Reason.POISON), ("hog", Reason.EXHAUSTS_MEMORY)])
def test_a_suspect_goes_to_a_gpu_where_there_is_no_fallback(simulate, mark, reason):
    it = simulate(gpus=2, require_gpu=True, gpu_plan=DIES_OF_POISON).well()
    (suspect,) = it.put(**{mark: True})
    it.serve()
    assert it.outcomes[suspect].reason is reason
    assert set(reasons(it)) <= {"waiting_for_gpu"}


def test_a_fallback_that_cannot_be_started_is_told_once_and_not_relied_on(simulate):
    """The GPU works, and takes suspects too; it is tried again until it is there."""
    it = simulate(plan=SICK, gpu_plan=LOSES_ONE).well()
    assert it.devices.description().device == ON_GPU
    it.check(3)
    assert reasons(it) == ["no_standby"]
    assert it.devices.describe()["devices"][ON_CPU] == {"state": "missing"}
    numbers = it.put()
    it.run()
    it.gpus[0].plan = {}
    it.serve()
    assert it.devices_of(numbers) == [ON_GPU]
    it.cpu_plan = {}
    it.check(3)
    assert it.devices.describe()["devices"][ON_CPU] == {"state": "ready"}


def test_without_a_fallback_images_wait_for_the_gpu(simulate):
    it = simulate(require_gpu=True).well()
    it.heat()
    numbers = it.put()
    it.run()
    assert not it.outcomes
    assert (it.devices.device, it.devices.describe()["state"]) == ("none", "waiting")
    assert reasons(it) == ["waiting_for_gpu"]
    it.gpus[0].reading = WELL
    it.serve()
    assert it.devices_of(numbers) == [ON_GPU]


@pytest.mark.parametrize(("company", "tries", "deaths"), [(0, 3, 3), (3, 3, 3), (0, 4, 4), (3, 2, 3), (3, 1, 3)])
def test_poison_costs_as_many_processes_as_tries(simulate, company, tries, deaths):
    """In company or alone, one of the GPU and then of the CPU, two at least: with one try it has tried twice all the
    same, and may answer: what only the GPU cannot do is no poison."""
    for plan, rejected in ((DIES_OF_POISON, True), ({}, False)):
        it = simulate(tries=tries, plan=plan, gpu_plan=DIES_OF_POISON).well()
        (number,) = it.put(poison=True)
        it.put(company)
        it.serve()
        assert it.rejected() == [number] * rejected
        faults = [fault for fault in it.events.named("engine.fault") if fault["images"]]
        assert len(faults) == (deaths if rejected else 1)


# --- restarts of the CPU


def test_the_first_restart_is_immediate_and_later_ones_wait_longer(simulate):
    it = simulate(gpus=0, plan=LOSES_ONE).well()
    it.put()
    it.cpu_plan = SICK
    it.run()
    starts = []
    while len(starts) < 6:
        before = len(it.cpu_made)
        it.cpu.tick()
        starts += [it.clock.monotonic()] * (len(it.cpu_made) - before)
        it.clock.advance(0.25)
    assert [after - before for before, after in itertools.pairwise(starts)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    it.cpu_plan = {}
    it.serve()
    assert it.cpu.failures == 0
    assert [event["restarts"] for event in it.events.named("engine.restarted")] == [1]


def test_a_run_that_nobody_attends_to_gives_up(simulate):
    """At the second start that fails for the same reason, or at the fifth; not while a GPU works. A service goes on."""
    service, it, other, on_gpu = (simulate(gpus=gpus, plan=SICK) for gpus in (0, 0, 0, 1))
    for each in (it, other, on_gpu):
        each.cpu._gives_up = True
    on_gpu.until(Phase.OK, tick_cpu=False)
    for each in (service, on_gpu):
        each.check(20)
        assert len(each.cpu_made) > 3
    it.cpu.tick()
    with pytest.raises(ConfigError, match="the engine cannot be started: the script says that the device is lost"):
        it.cpu.tick()
    for number in range(1, 5):
        other.cpu._start_failed(EngineLost(f"reason {number}"))
    with pytest.raises(ConfigError, match="reason 5"):
        other.cpu._start_failed(EngineLost("reason 5"))


@pytest.mark.parametrize(("cause", "faults"), [("kills", [1, 2, 1]), ("flakes", [1, 2, 1, 1])])
def test_a_fault_of_others_delays_the_verdict_and_a_kill_from_outside_does_not(simulate, cause, faults):
    it = simulate(gpus=0, plan=DIES_OF_POISON, tries=2).well()
    (poison,) = it.put(poison=True)
    it.begin(0)
    it.put()
    it.end(0)
    setattr(it, cause, 1)
    it.serve()
    assert it.rejected() == [poison]
    assert [fault["images"] for fault in it.events.named("engine.fault")] == [[image] for image in faults]


@pytest.mark.parametrize("others", [False, True])
def test_an_image_that_brings_the_oom_killer_is_set_aside(simulate, others):
    """After three kills with it alone, where others are computed in between; without others it ends as well, and the
    engine is not started again at once meanwhile."""
    it = simulate(gpus=0).well()
    (hog,) = it.put(hog=True)
    began, good = it.clock.monotonic(), []
    while hog not in it.outcomes:
        good += it.put(others)
        it.run()
        it.check()
    assert it.outcomes[hog].reason is Reason.EXHAUSTS_MEMORY
    assert "accident" in it.outcomes[hog].detail
    assert it.devices_of(good) == [ON_CPU] * len(good)
    kills = len(it.events.named("engine.fault"))
    if others:
        assert KILLS <= kills <= 2 * KILLS  # one in company, and one before there were others
    else:
        seconds = it.clock.monotonic() - began
        assert 2 * BURST <= seconds <= 3 * BURST
        assert kills <= seconds / 5.0


@pytest.mark.parametrize(("plan", "pause"), [({}, 5.0), (SICK, 1.0)])
def test_an_idle_supervisor_sleeps_until_there_is_something_to_do(simulate, plan, pause):
    """The interval while its process is there; until the next start while it is down; it does not poll."""
    it = simulate(gpus=0, plan=plan)
    for _ in range(2):
        it.cpu.tick()
    assert it.cpu.pause == pause


def test_closing_asks_no_heartbeat_of_a_thread_that_ends(simulate):
    """The device's thread has said that it waits, and its silence after that is no stall."""
    it = simulate(gpus=0).well()
    heard = []
    worker = it.cpu_made[-1]
    close = worker.close
    worker.attach = lambda heartbeat, patience=None: heard.append(type(heartbeat))
    worker.close = lambda: (heard.append("closed"), close())
    it.cpu.close()
    assert heard == [NullHeartbeat, "closed"]


def test_limits_of_a_worker_are_events_each_emitted_once(simulate):
    it = simulate(gpus=0).well()
    limit = {"what": "pinned", "detail": "no memory is page-locked"}
    description = EngineDescription("cuda:0", {}, (1, 2), limits=[Limit(**limit)])
    for _ in range(2):
        it.cpu._adopt(it.cpu_made[-1], description, 0.0)
    assert it.events.named("engine.limited") == [{"device": "cuda:0"} | limit] * 2
