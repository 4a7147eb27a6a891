"""Devices with scripted faults keep every promise of traces.py, whatever the script."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmbgd.engine.arena import Arena
from rmbgd.engine.types import Answer, EngineDescription, Poisoned
from rmbgd.errors import EngineFault, EngineLost, EngineMemory
from rmbgd.testing.engine import POISON_COLOUR, FakeBackend
from tests.engine import fleet
from tests.engine.fleet import Child, Fleet, Gpu
from tests.engine.image_store import ImageStore
from tests.engine.traces import Answered, Began, Ended, SelfTested, Trace, check

STEPS = st.sampled_from(["ok", "ok", "ok", "lost", "nonsense", "memory", "no_device"])
TRIES = 3


def outcome(fault: EngineFault) -> str:
    if isinstance(fault, EngineMemory):
        return "memory"
    return "withdrawn" if isinstance(fault, EngineLost) and fault.cause else "fault"


class Recorded:
    """Mixed into a fake backend: writes what it does into `trace`."""

    trace: Trace
    name: str

    def start(self) -> EngineDescription:
        description = super().start()  # type: ignore[misc]
        self.trace.append(SelfTested(self.name))
        return description

    def segment(self, batch):
        self.trace.append(Began(self.name, tuple(work.image_id for work in batch)))
        try:
            report = super().segment(batch)  # type: ignore[misc]
        except EngineFault as fault:
            self.trace.append(Ended(self.name, outcome(fault)))
            raise
        self.trace.append(Ended(self.name, "ok"))
        return report


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(
    scripts=st.lists(st.lists(STEPS, max_size=6), min_size=1, max_size=3),
    batches=st.lists(st.tuples(st.integers(0, 2), st.lists(st.booleans(), min_size=1, max_size=5)), max_size=6),
)
def test_images_on_devices_with_scripted_faults(scripts, batches):
    """One to three GPUs and the CPU behind them; a marked image ends every worker that computes it."""
    trace: Trace = []
    with Arena(1 << 20) as arena, ImageStore(arena) as images:

        class TracedChild(Recorded, Child):
            def __init__(self, gpu: Gpu, **options: object) -> None:
                super().__init__(gpu, **options)
                self.trace, self.name = trace, gpu.device

        class TracedFallback(Recorded, FakeBackend):
            def __init__(self, *given: object, **options: object) -> None:
                super().__init__(*given, **options)  # type: ignore[arg-type]
                self.trace, self.name = trace, "cpu"

        children, fallbacks = fleet.Child, fleet.FakeBackend
        fleet.Child, fleet.FakeBackend = TracedChild, TracedFallback
        try:
            workspace = Fleet(images, len(scripts), tries=TRIES)
            workspace.standby_plan = {"poison": "lost"}
            for gpu, script in zip(workspace.gpus, scripts, strict=True):
                gpu.plan = {"script": script, "poison": "lost"}
            workspace.well()
            trace.clear()
            arrived, poison = [], set()
            for index, marks in batches:
                works = [workspace.put(corner=POISON_COLOUR if mark else None) for mark in marks]
                arrived += [work.image_id for work in works]
                poison |= {work.image_id for work, mark in zip(works, marks, strict=True) if mark}
                answers = workspace.run(index % len(scripts), works)
                for answer in answers:
                    assert isinstance(answer, (Answer, Poisoned))
                    trace.append(Answered(answer.image_id, isinstance(answer, Poisoned), answer.tries))
            workspace.close()
        finally:
            fleet.Child, fleet.FakeBackend = children, fallbacks
    check(trace, arrived, poison=poison, tries=TRIES, fallback="cpu", largest=16)
