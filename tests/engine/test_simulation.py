"""Devices with scripted faults keep every promise, whatever the script and whoever comes first."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.engine.arena import Arena
from tests.engine.simulation import HOT, WELL, Answered, Began, Ended, SelfTested, Simulation, context_of

TRIES, LARGEST = 3, 16  # faults after which an image is rejected; images in a batch
FAULTS = st.sampled_from(["ok", "ok", "ok", "lost", "nonsense", "memory"])
ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 6)),
    st.tuples(st.just("poison"), st.just(1)),
    st.tuples(st.sampled_from(["begin", "end", "step"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["hot", "cool", "die", "sick", "cured"]), st.integers(0, 2)),
    st.tuples(st.just("check"), st.integers(1, 40)),
)


def act(it: Simulation, name: str, value: int) -> None:
    gpu = it.gpus[value % len(it.gpus)] if it.gpus else None
    match name:
        case "put":
            it.put(value)
        case "poison":
            it.put(poison=True)
        case "begin" | "end" | "step":
            getattr(it, name)(value % len(it.threads))
        case "hot" | "cool" if gpu is not None:
            gpu.reading = HOT if name == "hot" else WELL
        case "sick" | "cured" if gpu is not None:
            gpu.plan |= {"start": "lost" if name == "sick" else "ok"}
        case "die" if gpu is not None and gpu.made:
            gpu.made[-1].abort()
        case "check":
            it.check(value)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    gpus=st.integers(0, 3),
    warm=st.booleans(),
    scripts=st.lists(st.lists(FAULTS, max_size=6), min_size=3, max_size=3),
    actions=st.lists(ACTIONS, max_size=40),
)
def test_images_on_devices_with_scripted_faults(gpus, warm, scripts, actions):
    """GPUs fail as scripted, get hot, die and come back while batches are in hand; a marked image ends every worker
    that computes it. In the end everything that was put in has come out, as it must."""
    with Arena(1 << 20) as arena:
        it = Simulation(context_of(arena, tries=TRIES), gpus=gpus, warm=warm, plan={"poison": "lost"})
        for gpu, script in zip(it.gpus, scripts, strict=False):
            gpu.plan = {"script": script, "poison": "lost"}
        it.check(3)
        for name, value in actions:
            act(it, name, value)
        for gpu in it.gpus:
            gpu.reading = WELL
            gpu.plan |= {"start": "ok"}
        for index in range(len(it.threads)):
            it.end(index)
        it.serve()
        check_verdicts(it)
        check_runs(it, fallback="cpu" if gpus else None)
        assert it.views.isolated == 0
        it.check()
        assert [gpu.view.usable for gpu in it.gpus] == [gpu._state.in_use for gpu in it.gpus]
        check_edges(it)
        it.close()


def check_verdicts(it: Simulation) -> None:
    """An image is poison that ends every worker that computes it; the fallback has no fault without one of them."""
    verdicts = [event for event in it.trace if isinstance(event, Answered)]
    assert sorted(it.arrived) == sorted(event.image for event in verdicts), "every image is answered exactly once"
    assert {event.image for event in verdicts if event.poison} <= it.poison, "an innocent image is rejected"
    assert list(dict.fromkeys(it.taken)) == it.arrived, "images are first taken in the order in which they came"


def check_runs(it: Simulation, fallback: str | None) -> None:
    """`fallback`: the device of last resort, which is there all the time."""
    busy: dict[str, tuple[int, ...]] = {}
    faults: Counter[int] = Counter()
    shortages: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    last_fault: dict[int, tuple[int, str, int]] = {}  # image -> (when, device, size of the batch)
    for when, event in enumerate(it.trace):
        match event:
            case Began(device, images):
                assert device not in busy, f"two users of {device}"
                assert 0 < len(images) <= LARGEST
                suspects = [image for image in images if faults[image]]
                assert len(images) == 1 or not suspects, "a suspect is not alone"
                assert not suspects or fallback in (None, device), "a suspect runs where it can do more harm"
                busy[device] = images
                runs.update(images)
            case Ended(device, outcome):
                images = busy.pop(device)
                if outcome == "memory":
                    shortages.update(images)
                if outcome == "fault" or (outcome == "memory" and len(images) == 1):
                    faults.update(images)
                    last_fault.update({image: (when, device, len(images)) for image in images})
            case Answered(image, rejected, said):
                assert not any(image in images for images in busy.values()), "answered while it is computed"
                assert said == runs[image], "the runs that are told are those that were"
                if rejected:
                    assert faults[image] == TRIES, "rejected after another number of faults"
                    failed_at, device, size = last_fault[image]
                    assert size == 1, "rejected although it never failed alone"
                    assert fallback in (None, device), "rejected before the fallback has tried it"
                    tested = any(isinstance(each, SelfTested) for each in it.trace[failed_at:when])
                    assert tested or fallback is None, "rejected by a device that may be sick itself"
                bound = TRIES + 1 + LARGEST.bit_length() * (shortages[image] > 0) + shortages[image]
                assert runs[image] <= bound, "it runs again and again"
    assert not busy, "a batch was never ended"


def check_edges(it: Simulation) -> None:
    """Work leaves a GPU and comes back to it in turns, and no process computes without a passed probe of its own."""
    passed = [event["device"] for event in it.events.named("engine.state") if event["reason"] == "probe_passed"]
    for gpu in it.gpus:
        came_back = [
            name == "engine.failback"
            for name, keys in it.events.events
            if (name == "engine.failover" and keys["from"] == gpu.device)
            or (name == "engine.failback" and keys["to"] == gpu.device)
            or (name == "engine.degraded" and keys["device"] == gpu.device and keys["reason"] == "gpu_not_ready")
        ]
        assert came_back == [bool(n % 2) for n in range(len(came_back))]
        used = [worker for worker in gpu.made if worker.backend is not None and worker.backend.batches]
        assert len(used) <= passed.count(gpu.device)
