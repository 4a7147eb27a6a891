"""What is given up, one after the other, when processes of a GPU fail before they have passed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine.degradation import FAILED, Degradation
from rmbgd.engine.types import Limit

STATES = st.builds(Degradation, st.booleans(), st.booleans())
STEPS = st.lists(st.sampled_from(["fault", "fault", "fault", "pass", "unclean"]), max_size=30)


def course_of(state: Degradation, steps: list[str]):
    """(step, before, after, limit) of each."""
    for taken in steps:
        before, limit = state, None
        if taken == "pass":
            state = state.after_pass()
        elif taken == "fault":
            state, limit = state.after_fault("why")
        elif state.graphs:
            state, limit = state.after_unclean_capture("why")
        yield taken, before, state, limit


@given(STATES, STEPS)
def test_what_is_given_up_stays_so_and_is_said_once(state, steps):
    said = []
    for _, before, after, limit in course_of(state, steps):
        assert before.options.items() <= after.options.items()
        assert (limit is not None) == (before.options != after.options)
        assert limit is None or "why" in limit.detail
        said += [limit.what] if limit else []
    assert len(said) == len(set(said))


@given(STATES, STEPS)
def test_kernels_go_first_after_two_faults_in_a_row_and_graphs_after_two_more(state, steps):
    in_a_row = 0
    for taken, before, after, _ in course_of(state, steps):
        in_a_row = in_a_row + 1 if taken == "fault" else 0 if taken == "pass" else in_a_row
        assert before.kernels == after.kernels or (taken, in_a_row) == ("fault", FAILED)
        if taken == "fault" and before.graphs != after.graphs:
            assert in_a_row == FAILED
            assert not before.kernels
        if taken == "fault" and before.options != after.options:
            in_a_row = 0


def test_a_card_that_bears_nothing_is_given_plain_launches_of_plain_kernels():
    """And what is switched off in the configuration is no step."""
    steps = list(course_of(Degradation(), ["fault"] * 6))
    assert [after.options for _, _, after, _ in steps] == [
        {}, {"kernels": "off"}, {"kernels": "off"}, *[{"kernels": "off", "graphs": False}] * 3,
    ]  # fmt: skip
    said = "2 processes in a row ended before they had passed their self-test, the last one with: why"
    assert [limit for *_, limit in steps if limit] == [
        Limit("kernels", f"plain kernels from now on: {said}"),
        Limit("graphs", f"no graphs are recorded from now on: {said}"),
    ]
    assert Degradation(kernels=False, failed=1).after_fault("")[0].options == {"kernels": "off", "graphs": False}
