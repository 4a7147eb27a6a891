"""The retry policy: what a fault makes of an image's history, and when that history is poison."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine import retry
from rmbgd.engine.retry import GROW_AFTER, NEW, MemoryLimit, is_poison

EVENTS = st.lists(
    st.tuples(st.sampled_from(["fault", "shortage", "interruption"]), st.sampled_from(["gpu", "cpu"]), st.booleans()),
    max_size=12,
)


@given(events=EVENTS, tries=st.integers(1, 4), fallback=st.sampled_from([None, "cpu"]))
def test_poison_needs_its_faults_and_one_alone_where_it_counts(events, tries, fallback):
    """Every run is counted, and only faults that an image may have caused count against it. One that failed alone lines
    up behind what came before, and its rejection will say what happened last."""
    history, faults, alone_on, behind = NEW, 0, set(), -1
    for number, (kind, device, alone) in enumerate(events):
        blamed = kind == "fault" or (kind == "shortage" and alone)
        if kind == "fault":
            history = retry.after_fault(history, device=device, detail=str(number), alone=alone, now=number)
        elif kind == "shortage":
            history = retry.after_shortage(history, device=device, detail=str(number), alone=alone, now=number)
        else:
            history = retry.after_interruption(history, now=number)
        faults += blamed
        if blamed and alone:
            alone_on, behind = alone_on | {device}, number
        assert history.put_back_at == number
    proved = alone_on if fallback is None else alone_on & {fallback}
    assert history.runs == len(events)
    assert history.faults == faults
    assert history.isolated == (faults > 0)
    assert history.failed_alone_on == alone_on
    assert (max(history.behind, -1), history.detail) == (behind, str(behind) if behind >= 0 else "")
    assert is_poison(history, tries=tries, fallback=fallback) == (faults >= tries and bool(proved))


def test_memory_limit_is_halved_by_a_shortage_and_grows_again():
    """Down to one; after GROW_AFTER batches twice as much is tried, and a fresh process begins without a limit."""
    limit = MemoryLimit()

    def after(batches: int) -> int:
        for _ in range(batches):
            limit.passed()
        return limit.of(16)

    assert after(GROW_AFTER) == 16
    limit.halve(16)
    assert after(0) == 8
    limit.halve(1)
    assert [after(n) for n in (0, GROW_AFTER - 1, 1, GROW_AFTER - 1, 1)] == [1, 1, 2, 2, 4]
    assert limit.of(3) == 3
    limit.lift()
    assert after(0) == 16
