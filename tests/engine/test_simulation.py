"""Devices with scripted faults keep every promise, whatever the script and whoever comes first."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.engine.arena import Arena
from rmbgd.engine.retry import ALONE, BURST, KILLS, RESTARTS
from rmbgd.errors import Reason
from tests.engine.simulation import HOT, WELL, Answered, Began, Ended, SelfTested, Simulation, context_of

LARGEST = 16  # images in a batch
FAULTS = st.sampled_from(["ok", "ok", "ok", "lost", "nonsense", "memory"])
ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 6)),
    st.tuples(st.sampled_from(["poison", "hog"]), st.just(1)),
    st.tuples(st.sampled_from(["kill", "flake"]), st.integers(1, 6)),
    st.tuples(st.sampled_from(["begin", "end", "step"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["hot", "cool", "die", "sick", "cured"]), st.integers(0, 2)),
    st.tuples(st.just("check"), st.integers(1, 40)),
)


def act(it: Simulation, name: str, value: int) -> None:
    gpu = it.gpus[value % len(it.gpus)] if it.gpus else None
    match name:
        case "put":
            it.put(value)
        case "poison" | "hog":
            it.put(**{name: True})
        case "kill":
            it.kills += value
        case "flake":
            it.flakes += value
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
    tries=st.integers(1, 4),
)
def test_images_on_devices_with_scripted_faults(gpus, warm, scripts, actions, tries):
    """GPUs fail as scripted, get hot, die and come back while batches are in hand; the CPU's process fails for no
    reason; all are killed from outside, in bursts; one marked image ends every worker that computes it, another brings
    the OOM killer. In the end everything that was put in has come out, as it must."""
    with Arena(1 << 20) as arena:
        it = Simulation(context_of(arena, tries=tries), gpus=gpus, warm=warm, plan={"poison": "lost"})
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
        check_runs(it, tries=max(tries, ALONE), fallback="cpu" if gpus else None)
        assert it.views.isolated == 0
        it.check()
        assert [gpu.view.usable for gpu in it.gpus] == [gpu._state.in_use for gpu in it.gpus]
        check_edges(it)
        it.close()


def check_verdicts(it: Simulation) -> None:
    """An image is poison that ends every worker that computes it, and no other is; nor is one computed."""
    verdicts = [event for event in it.trace if isinstance(event, Answered)]
    assert sorted(it.arrived) == sorted(event.image for event in verdicts), "every image is answered exactly once"
    by_reason = {why: {event.image for event in verdicts if event.reason == why} for why in (None, *Reason)}
    assert by_reason[Reason.POISON] <= it.poison, "an innocent image is rejected"
    assert by_reason[None].isdisjoint(it.poison | it.hogs), "it cannot have been computed"
    assert list(dict.fromkeys(it.taken)) == it.arrived, "images are first taken in the order in which they came"


def check_runs(it: Simulation, tries: int, fallback: str | None) -> None:
    """`fallback`: the device of last resort, which is there all the time. Images are isolated after a kill, too."""
    busy: dict[str, tuple[int, ...]] = {}
    isolated: set[int] = set()
    shortages: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    faults: defaultdict[int, list[tuple[int, str, int]]] = defaultdict(list)  # image -> (when, device, size of batch)
    kills: defaultdict[int, list[tuple[int, str, float]]] = defaultdict(list)  # of it alone -> (when, device, time)
    others: list[tuple[int, str, tuple[int, ...]]] = []  # batches that ended, but for kills: (when, outcome, images)
    for when, event in enumerate(it.trace):
        match event:
            case Began(device, images):
                assert device not in busy, f"two users of {device}"
                assert 0 < len(images) <= LARGEST
                suspects = isolated.intersection(images)
                assert len(images) == 1 or not suspects, "a suspect is not alone"
                assert not suspects or fallback in (None, device), "a suspect runs where it can do more harm"
                busy[device] = images
                runs.update(images)
            case Ended(device, outcome, at):
                images = busy.pop(device)
                others.append((when, f"{outcome} on {device}", images))
                if outcome == "memory":
                    shortages.update(images)
                for image in images:
                    if outcome == "fault" or (outcome == "memory" and len(images) == 1):
                        faults[image].append((when, device, len(images)))
                    elif outcome == "killed" and len(images) == 1:
                        kills[image].append((when, device, at))
                if outcome in ("fault", "killed") or (outcome == "memory" and len(images) == 1):
                    isolated.update(images)
            case Answered(image, reason, said):
                assert not any(image in images for images in busy.values()), "answered while it is computed"
                assert said == runs[image], "the runs that are told are those that were"
                own, most = faults[image], (RESTARTS + 1) * tries + 1
                assert len(own) <= most, "a poison image is found too late"
                if reason is Reason.POISON:
                    assert len(own) >= tries, "rejected after too few faults"
                    (first, *_), (last, device, _) = own[-ALONE:]
                    assert {(device, 1)} == {(each, size) for _, each, size in own[-ALONE:]}, "it did not fail alone"
                    assert fallback in (None, device), "rejected before the fallback has tried it"
                    between = {what: True for at, what, images in others if first < at < last and image not in images}
                    calm = f"fault on {device}" not in between and f"memory on {device}" not in between
                    assert calm or len(own) > RESTARTS + 1, "rejected while others failed, too"
                    tested = any(isinstance(each, SelfTested) for each in it.trace[last:when])
                    assert tested or fallback is None, "rejected by a device that may be sick itself"
                elif reason is not None:
                    assert (reason, len(counted(kills[image], others))) == (Reason.EXHAUSTS_MEMORY, KILLS)
                bound = most + 1 + LARGEST.bit_length() * (shortages[image] > 0) + shortages[image]
                killed = sum(image in images for _, what, images in others if what.startswith("killed"))
                assert runs[image] <= bound + killed, "it runs again and again"
    assert not busy, "a batch was never ended"


def counted(kills: list[tuple[int, str, float]], ended: list[tuple[int, str, tuple[int, ...]]]) -> list[int]:
    """Of kills with an image alone, those before which another image was computed there, or a minute went by."""
    found: list[int] = []
    for number, (when, device, at) in enumerate(kills):
        before, _, then = kills[found[-1]] if found else (0, "", -BURST)
        passed = any(before < each < when and what == f"ok on {device}" for each, what, _ in ended)
        if not found or passed or at - then >= BURST:
            found.append(number)
    return found


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
