"""The retry policy: every image gets one verdict, and only those that fail alone are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine.retry import Attempts, delay
from rmbgd.engine.types import Answer, MatteReport, OutputPlane, Poisoned, Region, Work


def work(image_id: int) -> Work:
    return Work(image_id, Region(0, 1, 1, source_alpha=False, output=OutputPlane.RGBA8), "m")


def answer(work: Work, batch: int) -> Answer:
    return Answer(MatteReport(work.image_id, 0.5, 1.0, 0.5, 0.1), "cpu", work.model, batch)


@given(
    count=st.integers(1, 16),
    poison=st.sets(st.integers(0, 15)),
    memory=st.integers(1, 16),
    tries=st.integers(1, 4),
    limit=st.integers(1, 16),
)
def test_every_image_gets_its_verdict_and_nobody_innocent_is_refused(count, poison, memory, tries, limit):
    """With any poison and any shortage of memory: poison is refused after `tries` faults, at last alone."""
    attempts = Attempts([work(n) for n in range(count)], tries)
    faults_alone, faults = dict.fromkeys(range(count), 0), dict.fromkeys(range(count), 0)
    faults_together = 0
    while group := attempts.next_group(limit):
        assert len(group) <= limit
        ids = [image.image_id for image in group]
        if len(group) > memory:
            attempts.too_large(group, "memory")
        elif poison & set(ids):
            for each in ids:
                faults[each] += 1
            if len(ids) == 1:
                faults_alone[ids[0]] += 1
            else:
                faults_together += 1
            attempts.failed(group, "lost")
        else:
            attempts.answered([answer(image, len(group)) for image in group])
    verdicts = attempts.verdicts()

    assert not attempts.open
    assert [verdict.image_id for verdict in verdicts] == list(range(count))
    for verdict in verdicts:
        guilty = verdict.image_id in poison
        assert isinstance(verdict, Poisoned) == guilty
        if guilty:
            assert faults_alone[verdict.image_id] >= 1
            assert faults[verdict.image_id] == max(
                tries, 1 + (faults[verdict.image_id] > faults_alone[verdict.image_id])
            )
        else:
            assert faults_alone[verdict.image_id] == 0
    assert faults_together <= len(poison)  # who failed in company runs alone from then on


@given(
    count=st.integers(1, 16), poison=st.sets(st.integers(0, 15)), tries=st.integers(1, 4), first_on_gpu=st.booleans()
)
def test_with_a_fallback_only_what_fails_there_alone_is_refused(count, poison, tries, first_on_gpu):
    """Whatever the GPU did, what the CPU answers is answered; the fault in company saves one of its deaths."""
    attempts = Attempts([work(n) for n in range(count)], tries)
    alone_on_cpu = dict.fromkeys(range(count), 0)
    gpu_is_there = first_on_gpu
    while True:
        on_gpu = gpu_is_there and not attempts.accused_next()
        if not (group := attempts.next_group(16, fallback=True)):
            break
        ids = {image.image_id for image in group}
        if on_gpu:  # it kills whatever it is given
            gpu_is_there = False
            attempts.failed(group, "GPU")
        elif poison & ids:
            if len(group) == 1:
                alone_on_cpu[group[0].image_id] += 1
            attempts.failed(group, "CPU", on_fallback=True)
        else:
            attempts.answered([answer(image, len(group)) for image in group])

    for verdict in attempts.verdicts():
        assert isinstance(verdict, Poisoned) == (verdict.image_id in poison)
        before = 1 if first_on_gpu or count > 1 else 0  # in company, or on the GPU
        expected = max(tries - before, 1) if isinstance(verdict, Poisoned) else 0
        assert alone_on_cpu[verdict.image_id] == expected


@given(count=st.integers(1, 8), outcomes=st.lists(st.booleans(), max_size=60))
def test_faults_at_random_lose_nobody(count, outcomes):
    """Whatever the order of luck, the bookkeeping ends and holds one verdict for each."""
    attempts = Attempts([work(n) for n in range(count)], 3)
    luck = iter(outcomes)
    while group := attempts.next_group(16):
        if next(luck, True):
            attempts.answered([answer(image, len(group)) for image in group])
        else:
            attempts.failed(group, "lost")

    assert [verdict.image_id for verdict in attempts.verdicts()] == list(range(count))


def test_an_answer_tells_how_often_its_image_ran():
    """An image that ran in a failed batch and then alone has two tries."""
    attempts = Attempts([work(1), work(2)], 3)
    attempts.failed(attempts.next_group(8), "lost")
    first = attempts.next_group(8)
    attempts.answered([answer(first[0], 1)])
    second = attempts.next_group(8)
    attempts.failed(second, "lost")
    attempts.answered([answer(attempts.next_group(8)[0], 1)])

    assert [verdict.tries for verdict in attempts.verdicts()] == [2, 3]


def test_an_image_that_failed_alone_goes_behind_the_others():
    """The innocent are answered before the suspect has its next try."""
    attempts = Attempts([work(1), work(2), work(3)], 3)
    attempts.failed(attempts.next_group(8), "lost")
    attempts.failed(attempts.next_group(8), "lost")

    assert [image.image_id for image in attempts.next_group(8)] == [2]


def test_a_conviction_says_what_happened_last():
    """The refusal carries the last fault's text and the number of runs."""
    attempts = Attempts([work(7)], 2)
    attempts.failed(attempts.next_group(1), "first")
    attempts.failed(attempts.next_group(1), "killed by SIGSEGV")
    group = attempts.next_group(1)

    assert group == []
    assert attempts.verdicts() == [Poisoned(7, "killed by SIGSEGV", 2)]


def test_an_image_too_large_for_memory_alone_is_accused_like_any_other():
    """When nothing is left to halve, shortage of memory counts."""
    attempts = Attempts([work(7)], 1)
    attempts.too_large(attempts.next_group(1), "out of memory")
    attempts.next_group(1)

    assert attempts.verdicts() == [Poisoned(7, "out of memory", 1)]


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_an_image_is_not_refused_before_the_fallback_has_tried_it(tries):
    """However often it failed alone on the GPU; one failure there is enough then."""
    attempts = Attempts([work(7)], tries)
    for _ in range(tries + 2):
        attempts.failed(attempts.next_group(1, fallback=True), "GPU")
    attempts.failed(attempts.next_group(1, fallback=True), "CPU", on_fallback=True)

    assert attempts.next_group(1, fallback=True) == []
    assert attempts.verdicts() == [Poisoned(7, "CPU", tries + 3)]


def test_where_the_fallback_is_missing_repeated_faults_alone_refuse():
    """Nothing is left that could try it: as where there never was a fallback."""
    attempts = Attempts([work(7)], 2)
    attempts.failed(attempts.next_group(1, fallback=True), "once")
    attempts.failed(attempts.next_group(1, fallback=True), "twice")

    assert attempts.next_group(1) == []
    assert attempts.verdicts() == [Poisoned(7, "twice", 2)]


def test_a_device_that_is_taken_away_accuses_nobody():
    """The group runs again as it was, in company, however often that happens."""
    attempts = Attempts([work(1), work(2)], 1)
    for _ in range(5):
        attempts.interrupted(attempts.next_group(8))
        assert not attempts.accused_next()
    group = attempts.next_group(8)
    attempts.answered([answer(image, 2) for image in group])

    assert [(type(verdict), verdict.tries) for verdict in attempts.verdicts()] == [(Answer, 6)] * 2


def test_a_fault_in_company_makes_suspects_of_all():
    """They are better tried where another fault costs the least."""
    attempts = Attempts([work(1), work(2)], 3)
    assert not attempts.accused_next()
    attempts.failed(attempts.next_group(8), "lost")

    assert attempts.accused_next()


def test_one_image_twice_in_a_batch_is_a_bug():
    """Verdicts are found by number, so numbers are unique."""
    with pytest.raises(ValueError, match="twice"):
        Attempts([work(1), work(1)], 3)


def test_the_delay_doubles_up_to_its_maximum():
    """The first restart comes at once, then 1, 2, 4 ... seconds, and the maximum for ever."""
    assert [delay(n, 10.0) for n in range(7)] == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert delay(10_000, 60.0) == 60.0
