"""The batching policy: who goes, with whom, and when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine.types import DeviceView
from rmbgd.pipeline.batching import HEAD_START, Limits, Share, Waiting, batch_size, choose, share, table

SIZES = (1, 2, 4, 8, 16)


def bulk(since: float = 0.0, model: str = "a") -> Waiting:
    return Waiting(model, realtime=False, suspect=False, since=since)


def realtime(since: float = 0.0) -> Waiting:
    return Waiting("a", realtime=True, suspect=False, since=since)


def suspect(since: float = 0.0) -> Waiting:
    return Waiting("a", realtime=False, suspect=True, since=since)


@st.composite
def queues(draw) -> list[Waiting]:
    """Up to 24 waiting images of two models, oldest first."""
    ages = sorted(draw(st.lists(st.floats(0, 10), min_size=1, max_size=24)))
    flags = st.sampled_from([(False, False)] * 6 + [(True, False), (False, True), (True, True)])
    images = []
    for age in ages:
        is_realtime, is_suspect = draw(flags)
        latency = draw(st.sampled_from([math.inf, 0.01, 0.13, 1.0]))
        images.append(Waiting(draw(st.sampled_from("ab")), is_realtime, is_suspect, age, latency))
    return images


@st.composite
def limits(draw) -> Limits:
    """Any allowed set of sizes, with times measured for some of them."""
    sizes = (1, *sorted(draw(st.sets(st.sampled_from(SIZES[1:])))))
    seconds = draw(st.dictionaries(st.sampled_from(sizes), st.floats(0.001, 1.0)))
    return Limits(sizes, draw(st.floats(0, 0.003)), seconds)


@given(queues(), limits(), st.floats(0, 11) | st.just(math.inf))
def test_whoever_waits_is_served_within_the_limits(waiting, limits, now):
    """The answer is a batch of an allowed size, or a moment that lies ahead by no more than the wait allowed."""
    choice = choose(waiting, limits, now)

    if isinstance(choice, float):
        assert now < choice <= waiting[0].since + limits.wait
        assert not any(image.realtime for image in waiting)
    else:
        assert len(choice) in limits.sizes
        assert len(set(choice)) == len(choice)
        assert all(0 <= index < len(waiting) for index in choice)


@given(queues(), limits())
def test_a_batch_has_one_model_and_its_suspects_and_realtime_images_are_alone(waiting, limits):
    """Images of one batch ask for one model; one that is realtime or suspect has no company."""
    batch = [waiting[index] for index in choose(waiting, limits, math.inf)]

    assert len({image.model for image in batch}) == 1
    if any(image.realtime or image.suspect for image in batch):
        assert len(batch) == 1


@given(queues(), limits())
def test_the_oldest_goes_unless_a_realtime_image_is_there(waiting, limits):
    """First come, first served; only realtime overtakes, the oldest realtime first."""
    choice = choose(waiting, limits, math.inf)

    hurried = [index for index, image in enumerate(waiting) if image.realtime]
    assert choice[0] == (hurried[0] if hurried else 0)
    assert choice == sorted(choice)


@given(queues(), limits())
def test_everybody_is_served_in_the_end(waiting, limits):
    """Asked again and again, the policy empties the queue."""
    left = list(waiting)
    while left:
        taken = set(choose(left, limits, math.inf))
        left = [image for index, image in enumerate(left) if index not in taken]


@given(st.integers(1, 40), limits())
def test_a_realtime_image_never_waits(count, limits):
    """However many came before it, a realtime image goes at once and alone, also when a wait is allowed."""
    waiting = [bulk(since=0.0) for _ in range(count)] + [realtime(since=0.0)]

    assert choose(waiting, limits, now=0.0) == [count]


def test_a_suspect_never_waits_for_company():
    """A suspect at the head goes at once, alone."""
    assert choose([suspect(), bulk(), bulk()], Limits(SIZES, wait=0.003), now=0.0) == [0]


def test_five_go_as_four_and_one():
    """Only full sizes: no place is computed for nobody."""
    five = [bulk() for _ in range(5)]

    assert choose(five, Limits(SIZES), now=1.0) == [0, 1, 2, 3]
    assert choose(five[4:], Limits(SIZES), now=1.0) == [0]


def test_images_of_another_model_are_passed_over():
    """The batch takes the head's model from all over the queue."""
    waiting = [bulk(model="a"), bulk(model="b"), bulk(model="a"), suspect(), bulk(model="b")]

    assert choose(waiting, Limits(SIZES), now=1.0) == [0, 2]


def test_a_batch_that_cannot_grow_does_not_wait():
    """With the largest size waiting there is nothing to wait for."""
    limits = Limits((1, 2), wait=0.003)

    assert choose([bulk(), bulk(), bulk()], limits, now=0.0) == [0, 1]
    assert choose([bulk()], limits, now=0.0) == 0.003
    assert choose([bulk()], limits, now=0.003) == [0]


MEASURED = {1: 0.020, 2: 0.030, 4: 0.050, 8: 0.090}


def test_two_batches_fit_into_the_latency_target():
    """Sizes whose measured time takes more than half of the target are not used; nor are larger ones, unmeasured."""
    limits = Limits(SIZES, seconds=MEASURED)

    assert batch_size([0.130] * 16, limits) == 4
    assert batch_size([0.180] * 16, limits) == 8
    assert batch_size([0.130] * 16, Limits(SIZES, seconds={1: 0.5})) == 1
    assert batch_size([0.130] * 16, Limits(SIZES, seconds={1: 0.01, 8: 0.06})) == 8


def test_an_image_that_is_in_no_hurry_is_not_in_the_way_of_one_that_is():
    """In one batch the shortest target of those that would be in it counts, not that of those behind."""
    limits = Limits(SIZES, seconds=MEASURED)

    assert batch_size([math.inf] * 7 + [0.130], limits) == 4
    assert batch_size([math.inf] * 3 + [0.070] + [math.inf] * 4, limits) == 2
    assert batch_size([math.inf] * 8 + [0.070], limits) == 8


@given(queues(), limits())
def test_no_batch_takes_longer_than_half_of_what_its_images_should_take(waiting, limits):
    """Unless it is an image alone, for which there is nothing quicker."""
    batch = choose(waiting, limits, math.inf)

    if len(batch) > 1 and len(batch) in limits.seconds:
        assert 2 * limits.seconds[len(batch)] <= min(waiting[index].latency for index in batch)


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 7), st.floats(0, 20), st.booleans()), min_size=1, max_size=80),
    limits=limits(),
    places=st.integers(1, 24),
)
def test_no_folder_starves_another(arrivals, limits, places):
    """Eight folders, one flooding: whoever waits sees nobody served who came later, but realtime images that came
    within their head start; so an image waits for no more than what was there before it."""
    order = sorted(arrivals, key=lambda arrival: arrival[1])
    realtime = {0}  # one of the folders
    queue = [
        (number, Waiting("ab"[suspect], folder in realtime, False, 10 * at))
        for number, (folder, at, suspect) in enumerate(order)
    ]
    line, rest = queue[:places], queue[places:]
    rounds = dict.fromkeys(range(len(queue)), 0)
    overtaken = dict.fromkeys(range(len(queue)), 0)
    while line:
        taken = choose([image for _, image in line], limits, math.inf)
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


def test_who_has_waited_for_long_is_not_overtaken_any_more():
    """A realtime image counts as a minute older than it is, not as older than everything."""
    assert choose([bulk(since=0.0), realtime(since=HEAD_START - 1)], Limits(SIZES), now=99.0) == [1]
    assert choose([bulk(since=0.0), realtime(since=HEAD_START + 1)], Limits(SIZES), now=99.0) == [0]


def test_a_larger_batch_must_save_time():
    """Where four take four times as long as one, everybody goes alone; where company saves time, they go together."""
    no_gain = Limits(SIZES, seconds={1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8, 16: 1.6})
    gain = Limits(SIZES, seconds={1: 0.1, 2: 0.2, 4: 0.3, 8: 0.6, 16: 1.2})

    assert batch_size([math.inf] * 16, no_gain) == 1
    assert batch_size([math.inf] * 16, gain) == 4


def test_the_table_tells_how_many_go_for_every_number_that_waits():
    """One line for the log."""
    assert table(Limits((1, 2, 4)), math.inf) == {1: 1, 2: 2, 3: 2, 4: 4}
    assert table(Limits(SIZES, seconds=MEASURED), 0.13) == {n: 1 if n == 1 else 2 if n < 4 else 4 for n in range(1, 17)}


@pytest.mark.parametrize("sizes", [(), (2, 4), (1, 4, 2), (1, 1)])
def test_sizes_that_make_no_sense_are_refused(sizes):
    """Sizes ascend and one image alone can always go."""
    with pytest.raises(ValueError, match="batch sizes"):
        Limits(sizes)


GPU, OTHER, CPU = (
    DeviceView("cuda:0", usable=True),
    DeviceView("cuda:1", usable=True),
    DeviceView("cpu", is_fallback=True, usable=True),
)
AWAY, BACK_AWAY = replace(GPU, usable=False), replace(CPU, usable=False)
MISSING = replace(BACK_AWAY, missing=True)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([GPU], [(True, True)]),
        ([GPU, OTHER], [(True, True), (True, True)]),
        ([GPU, CPU], [(True, False), (False, True)]),
        ([GPU, BACK_AWAY], [(True, False), (False, False)]),
        ([GPU, MISSING], [(True, True), (False, False)]),
        ([AWAY, CPU], [(False, False), (True, True)]),
        ([AWAY, OTHER, CPU], [(False, False), (True, False), (False, True)]),
        ([AWAY, BACK_AWAY], [(False, False), (False, False)]),
    ],
)
def test_a_device_takes_images_only_while_it_is_well(devices, expected):
    """The fallback takes them while no GPU is well, and always those that have met a fault, if it is to be had."""
    found = [share(device, devices, stopping=False) for device in devices]

    assert [(each.ordinary, each.isolated) for each in found] == expected


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([GPU, CPU], [(True, False), (False, True)]),
        ([GPU, BACK_AWAY], [(True, False), (False, True)]),
        ([AWAY, CPU], [(False, False), (True, True)]),
        ([AWAY, BACK_AWAY], [(True, True), (True, True)]),
    ],
)
def test_when_the_service_stops_what_no_device_will_take_is_given_back(devices, expected):
    """By any thread whose device is not usable; what is usable works on."""
    found = [share(device, devices, stopping=True) for device in devices]

    assert [(each.ordinary, each.isolated) for each in found] == expected


@given(queues(), limits(), st.booleans(), st.booleans(), st.lists(st.booleans(), min_size=80, max_size=80))
def test_only_what_is_for_the_device_is_taken(waiting, limits, ordinary, isolated, marks):
    """An isolated image is a suspect, and goes alone; None means that nothing that waits is for this device."""
    waiting = [
        replace(image, isolated=mark, suspect=image.suspect or mark)
        for image, mark in zip(waiting, marks, strict=False)
    ]
    chosen = choose(waiting, limits, math.inf, Share(ordinary, isolated))
    own = [index for index, image in enumerate(waiting) if (isolated if image.isolated else ordinary)]

    assert (chosen is None) == (not own)
    if chosen is not None:
        assert set(chosen) <= set(own)
        assert len(chosen) == 1 or not any(waiting[index].isolated for index in chosen)
