"""Devices with scripted faults keep every promise of traces.py, whatever the script and whoever comes first."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.engine.arena import Arena
from tests.engine.simulation import HOT, WELL, Simulation, context_of
from tests.engine.traces import check

TRIES = 3
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
            gpu.sick = "start" if name == "sick" else ""
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
            gpu.reading, gpu.sick = WELL, ""
        for index in range(len(it.threads)):
            it.end(index)
        it.serve()
        check(
            it.trace,
            it.arrived,
            poison=it.poison,
            tries=TRIES,
            fallback="cpu" if gpus else None,
            largest=16,
        )
        assert it.views.isolated == 0
        it.check()
        assert [gpu.view.usable for gpu in it.gpus] == [gpu._state.in_use for gpu in it.gpus]
        _check_edges(it)
        it.close()


def _check_edges(it: Simulation) -> None:
    """Work leaves a GPU and comes back to it in turns, and no process computes without a passed probe of its own."""
    for gpu in it.gpus:
        edges = [
            name
            for name, keys in it.events.events
            if (name == "engine.failover" and keys["from"] == gpu.device)
            or (name == "engine.failback" and keys["to"] == gpu.device)
            or (name == "engine.degraded" and keys["device"] == gpu.device and keys["reason"] == "gpu_not_ready")
        ]
        away = [name for name in edges if name != "engine.failback"]
        assert [name == "engine.failback" for name in edges] == [bool(n % 2) for n in range(len(edges))], edges
        assert len(away) >= len(edges) // 2
        passed = [each for each in it.events.named("engine.state") if each["reason"] == "probe_passed"]
        proved = [each for each in passed if each["device"] == gpu.device]
        used = [worker for worker in gpu.made if worker.backend is not None and worker.backend.batches]
        assert len(used) <= len(proved)
