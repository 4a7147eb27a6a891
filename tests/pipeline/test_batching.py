"""The batching policy: who goes, with whom, and when."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine.types import DeviceView
from rmbgd.pipeline.batching import HEAD_START, Limits, Share, Waiting, batch_size, choose, share, table

SIZES = (1, 2, 4, 8, 16)
ANY = math.inf


def image(since: float = 0.0, model: str = "a", **flags: bool) -> Waiting:
    return Waiting(model, **{"realtime": False, "suspect": False} | flags, since=since, latency=ANY, isolated=False)


def chosen(waiting: list[Waiting], limits: Limits, now: float) -> list[int] | float:
    return choose(waiting, limits, now, Share(ordinary=True, isolated=True))


def queues() -> st.SearchStrategy[list[Waiting]]:
    flags = st.sampled_from([(False, False)] * 6 + [(True, False), (False, True), (True, True)])
    several = st.tuples(st.sampled_from("ab"), flags, st.floats(0, 10), st.sampled_from([ANY, 0.01, 0.13, 1.0]))
    images = several.map(lambda drawn: Waiting(drawn[0], *drawn[1], *drawn[2:], isolated=False))
    return st.lists(images, min_size=1, max_size=24).map(lambda images: sorted(images, key=lambda each: each.since))


@st.composite
def limits(draw) -> Limits:
    sizes = (1, *sorted(draw(st.sets(st.sampled_from(SIZES[1:])))))
    seconds = draw(st.dictionaries(st.sampled_from(sizes), st.floats(0.001, 1.0)))
    return Limits(sizes, draw(st.floats(0, 0.003)), seconds)


@given(queues(), limits(), st.floats(0, 11) | st.just(math.inf))
def test_whoever_waits_is_served_within_the_limits(waiting, limits, now):
    choice = chosen(waiting, limits, now)
    if isinstance(choice, float):
        assert now < choice <= waiting[0].since + limits.wait
        assert not any(image.realtime for image in waiting)
    else:
        assert len(choice) in limits.sizes
        assert len(set(choice)) == len(choice)
        assert all(0 <= index < len(waiting) for index in choice)


@given(queues(), limits())
def test_a_batch_has_one_model_and_its_suspects_and_realtime_images_are_alone(waiting, limits):
    batch = [waiting[index] for index in chosen(waiting, limits, math.inf)]
    assert len({image.model for image in batch}) == 1
    if any(image.realtime or image.suspect for image in batch):
        assert len(batch) == 1


@given(queues(), limits())
def test_the_oldest_goes_unless_a_realtime_image_is_there(waiting, limits):
    choice = chosen(waiting, limits, math.inf)
    hurried = [index for index, image in enumerate(waiting) if image.realtime]
    assert choice[0] == (hurried[0] if hurried else 0)
    assert choice == sorted(choice)


@given(st.integers(1, 40), limits())
def test_a_realtime_image_never_waits(count, limits):
    assert chosen([image()] * count + [image(realtime=True)], limits, now=0.0) == [count]


PATIENT, PAIRS = Limits(SIZES, wait=0.003), Limits((1, 2), wait=0.003)
FIVE = [image()] * 5
TWO_MODELS = [image(), image(model="b"), image(), image(suspect=True), image(model="b")]
OLD = image(since=0.0)


@pytest.mark.parametrize(
    ("waiting", "limits", "now", "expected"),
    [
        pytest.param([image(suspect=True), *FIVE], PATIENT, 0.0, [0], id="a suspect goes at once, alone"),
        pytest.param(FIVE, Limits(SIZES), 0.0, [0, 1, 2, 3], id="only full sizes: no place is computed for nobody"),
        pytest.param(FIVE[4:], Limits(SIZES), 0.0, [0], id="the fifth goes then"),
        pytest.param(TWO_MODELS, Limits(SIZES), 0.0, [0, 2], id="the head's model is taken from all over the queue"),
        pytest.param(FIVE[:3], PAIRS, 0.0, [0, 1], id="a batch that cannot grow does not wait"),
        pytest.param(FIVE[:1], PAIRS, 0.0, 0.003, id="one that can waits"),
        pytest.param(FIVE[:1], PAIRS, 0.003, [0], id="until its time is up"),
        pytest.param([OLD, image(HEAD_START - 1, realtime=True)], PATIENT, 99.0, [1], id="a minute's head start"),
        pytest.param([OLD, image(HEAD_START + 1, realtime=True)], PATIENT, 99.0, [0], id="and no more than that"),
    ],
)
def test_who_goes_with_whom(waiting, limits, now, expected):
    assert chosen(waiting, limits, now) == expected


MEASURED = {1: 0.020, 2: 0.030, 4: 0.050, 8: 0.090}


@pytest.mark.parametrize(
    ("size", "targets", "seconds"),
    [
        # Two batches fit into the target: sizes that take more than half of it are not used, nor larger ones.
        (4, [0.130] * 16, MEASURED),
        (4, [0.100] * 16, MEASURED),
        (8, [0.180] * 16, MEASURED),
        (1, [0.130] * 16, {1: 0.5}),
        (1, [0.010] * 16, MEASURED),
        (8, [0.130] * 16, {1: 0.01, 8: 0.06}),
        (16, [0.100] * 16, {}),
        # Not measured: at most what smaller ones take in its place, at most what a larger one takes.
        (2, [0.090] * 4, {1: 0.02, 2: 0.03}),
        (4, [0.120] * 4, {1: 0.02, 2: 0.03}),
        (2, [0.100] * 2, {1: 0.05, 4: 0.04}),
        # The shortest target of those that would be in the batch counts, not that of those behind.
        (4, [ANY] * 7 + [0.130], MEASURED),
        (2, [ANY] * 3 + [0.070] + [ANY] * 4, MEASURED),
        (8, [ANY] * 8 + [0.070], MEASURED),
        # A larger batch must save two hundredths of the time per image.
        (1, [ANY] * 16, {1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8, 16: 1.6}),
        (4, [ANY] * 16, {1: 0.1, 2: 0.2, 4: 0.3, 8: 0.6, 16: 1.2}),
        (2, [ANY] * 2, {1: 0.1, 2: 0.1959}),
        (1, [ANY] * 2, {1: 0.1, 2: 0.1961}),
        (2, [ANY] * 2, {1: 1.0, 2: 1.96}),
    ],
)
def test_the_size_is_the_largest_that_is_full_in_time_and_worth_it(size, targets, seconds):
    """Targets in seconds, in the order in which the images wait; measured seconds by batch size."""
    assert batch_size(targets, Limits(SIZES, seconds=seconds)) == size


@given(queues(), limits())
def test_no_batch_takes_longer_than_half_of_what_its_images_should_take(waiting, limits):
    batch = chosen(waiting, limits, math.inf)
    if len(batch) > 1 and len(batch) in limits.seconds:
        assert 2 * limits.seconds[len(batch)] <= min(waiting[index].latency for index in batch)


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 7), st.floats(0, 20), st.booleans()), min_size=1, max_size=80),
    limits=limits(),
    places=st.integers(1, 24),
)
def test_no_folder_starves_another(arrivals, limits, places):
    """Whoever waits sees nobody served who came later, but realtime images that came within their head start."""
    order = sorted(arrivals, key=lambda arrival: arrival[1])
    queue = [  # the first folder is realtime
        (number, Waiting("ab"[other], folder == 0, False, 10 * at, ANY, isolated=False))
        for number, (folder, at, other) in enumerate(order)
    ]
    line, rest = queue[:places], queue[places:]
    rounds, overtaken = Counter(), Counter()
    while line:
        taken = chosen([image for _, image in line], limits, math.inf)
        served = [line[index] for index in taken]
        left = [entry for index, entry in enumerate(line) if index not in taken]
        for number, image in left:
            rounds[number] += 1
            hurried = [each for _, each in served if each.realtime]
            assert image.realtime or all(each.since < image.since + HEAD_START for each in hurried)
            overtaken[number] += sum(each.since >= image.since and not image.realtime for each in hurried)
        line, rest = left + rest[: len(served)], rest[len(served) :]
    for number, count in rounds.items():
        assert count <= number + overtaken[number]


def test_the_table_tells_how_many_go_for_every_number_that_waits():
    assert table(Limits((1, 2, 4)), math.inf) == [1, 2, 2, 4]
    assert table(Limits(SIZES, seconds=MEASURED), 0.13) == [1, 2, 2] + [4] * 13


@pytest.mark.parametrize("sizes", [(), (2, 4), (1, 4, 2), (1, 1)])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ValueError, match="batch sizes"):
        Limits(sizes)


GPU, OTHER = DeviceView("cuda:0", usable=True), DeviceView("cuda:1", usable=True)
CPU = DeviceView("cpu", is_fallback=True, usable=True)
AWAY, BACK_AWAY = replace(GPU, usable=False), replace(CPU, usable=False)
MISSING = replace(BACK_AWAY, missing=True)
WORKS_ON, STOPPING = False, True


@pytest.mark.parametrize(
    ("stopping", "devices", "expected"),
    [
        (WORKS_ON, [GPU], [(True, True)]),
        (WORKS_ON, [GPU, OTHER], [(True, True), (True, True)]),
        (WORKS_ON, [GPU, CPU], [(True, False), (False, True)]),
        (WORKS_ON, [GPU, BACK_AWAY], [(True, False), (False, False)]),
        (WORKS_ON, [GPU, MISSING], [(True, True), (False, False)]),
        (WORKS_ON, [AWAY, CPU], [(False, False), (True, True)]),
        (WORKS_ON, [AWAY, OTHER, CPU], [(False, False), (True, False), (False, True)]),
        (WORKS_ON, [AWAY, BACK_AWAY], [(False, False), (False, False)]),
        (STOPPING, [GPU, CPU], [(True, False), (False, True)]),
        (STOPPING, [GPU, BACK_AWAY], [(True, False), (False, True)]),
        (STOPPING, [AWAY, CPU], [(False, False), (True, True)]),
        (STOPPING, [AWAY, BACK_AWAY], [(True, True), (True, True)]),
    ],
)
def test_a_device_takes_images_only_while_it_is_well(stopping, devices, expected):
    """The fallback takes all while no GPU is well, and always those that have met a fault. Who stops gives back."""
    found = [share(device, devices, stopping=stopping) for device in devices]
    assert [(each.ordinary, each.isolated) for each in found] == expected


@given(queues(), limits(), st.booleans(), st.booleans(), st.lists(st.booleans(), min_size=80, max_size=80))
def test_only_what_is_for_the_device_is_taken(waiting, limits, ordinary, isolated, marks):
    pairs = zip(waiting, marks, strict=False)
    waiting = [replace(image, isolated=mark, suspect=image.suspect or mark) for image, mark in pairs]
    taken = choose(waiting, limits, math.inf, Share(ordinary, isolated))
    own = [index for index, image in enumerate(waiting) if (isolated if image.isolated else ordinary)]
    assert (taken is None) == (not own)
    if taken is not None:
        assert set(taken) <= set(own)
        assert len(taken) == 1 or not any(waiting[index].isolated for index in taken)
