"""What the driver of a Ray backfill does about hosts and images that fail, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from rmbgd.errors import RmbgdError
from rmbgd.fleet.root import Entry
from tests.support.simulated_ray import SPEED, Actor, Answers, AwayTask, RayError, SimulatedRay, Work, works

IMAGES = 5000


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimulatedRay:
    return SimulatedRay(monkeypatch)


def gets(kind: str, why: str, speed: float = SPEED) -> Work:
    return lambda entries: (len(entries) / speed, [(kind, why)] * len(entries))


def is_away(_: Sequence[Entry]) -> Answers:
    return 0.05, AwayTask("root 'shop': away")


def dies(_: Sequence[Entry]) -> Answers:
    return 1.0, RayError("its process died")


@pytest.mark.parametrize("actors", [2, 8])
@pytest.mark.parametrize(
    "bad",
    [gets("", "denied"), gets("", "no file can be opened", 1000), gets("gone", "it is gone", 3000), is_away],
    ids=["cannot store", "cannot read", "sees nothing", "away"],
)
def test_a_bad_host_costs_no_image(cluster: SimulatedRay, bad: Work, actors: int) -> None:
    found = cluster.backfill(lambda number: Actor(works if number else bad), actors, IMAGES)
    assert (found.done, found.why) == (IMAGES, {})


def test_a_host_on_which_all_die_costs_no_image(cluster: SimulatedRay) -> None:
    found = cluster.backfill(lambda number: Actor(works if number % 2 else dies), 4, IMAGES)
    assert (found.done, found.why) == (IMAGES, {})


def test_a_host_on_which_no_actor_starts_costs_nothing(cluster: SimulatedRay) -> None:
    fails = RayError("no model here")
    found = cluster.backfill(lambda number: Actor(works, fails=fails if number else None), 2, IMAGES)
    assert (found.done, found.trouble) == (IMAGES, "an actor cannot start: no model here")


@pytest.mark.parametrize("bad", [gets("", "disk_full"), is_away])
def test_trouble_of_all_that_passes_costs_no_image(cluster: SimulatedRay, bad: Work) -> None:
    def work(entries: Sequence[Entry]) -> Answers:
        return bad(entries) if 30 < cluster.began < 150 else works(entries)

    found = cluster.backfill(lambda _: Actor(work), 2, IMAGES)
    assert (found.done, found.why) == (IMAGES, {})


@pytest.mark.parametrize("actors", [1, 2, 8])
@pytest.mark.parametrize(
    "is_denied", [lambda key: 1000 <= key < 1300, lambda key: key % 100 == 0], ids=["folder", "spread"]
)
def test_images_that_cannot_be_stored_are_named_and_the_others_done(
    cluster: SimulatedRay, is_denied: Callable[[int], bool], actors: int
) -> None:
    def work(entries: Sequence[Entry]) -> Answers:
        return 1.0, [("", "denied") if is_denied(int(entry.key)) else ("done", "") for entry in entries]

    found = cluster.backfill(lambda _: Actor(work), actors, IMAGES)
    denied = {f"{key:06}": "denied" for key in range(IMAGES) if is_denied(key)}
    assert (found.done, found.why) == (IMAGES - len(denied), denied)


def test_only_the_image_that_kills_is_missing(cluster: SimulatedRay) -> None:
    def work(entries: Sequence[Entry]) -> Answers:
        return dies(entries) if "000777" in {entry.key for entry in entries} else works(entries)

    found = cluster.backfill(lambda _: Actor(work), 3, IMAGES)
    assert found.done == IMAGES - 1
    assert found.why == {"000777": "an actor died of it 2 times: its process died"}


def test_many_actors_lost_at_once_cost_no_image(cluster: SimulatedRay) -> None:
    def lost(entries: Sequence[Entry]) -> Answers:
        return dies(entries) if cluster.began > 20 else works(entries)

    found = cluster.backfill(lambda number: Actor(lost if number < 120 else works), 160, 100_000)
    assert (found.done, found.why) == (100_000, {})


@pytest.mark.parametrize(
    ("actor", "why"),
    [
        (lambda: Actor(is_away), "root 'shop': away"),
        (lambda: Actor(gets("", "disk_full")), "disk_full"),
        (lambda: Actor(works, fails=RayError("no model here")), "an actor cannot start: no model here"),
        (lambda: Actor(works, start=1e9), "no actor has started; see `ray status`"),
    ],
    ids=["away", "full", "no start", "no room"],
)
@pytest.mark.parametrize("has_room", [True, False])
def test_it_ends_with_the_reason_when_nothing_was_done_for_ten_minutes(
    cluster: SimulatedRay, actor: Callable[[], Actor], why: str, *, has_room: bool
) -> None:
    def new(number: int) -> Actor:
        return Actor(works, start=1e9) if number == 2 and not has_room else actor()

    with pytest.raises(RmbgdError, match="nothing was done for 10 minutes: ") as ended:
        cluster.backfill(new, 3, 100_000)
    assert str(ended.value).endswith(why)
    assert 600 <= cluster.now < 700


def test_a_cluster_on_which_all_die_ends_it(cluster: SimulatedRay) -> None:
    with pytest.raises(RmbgdError, match="100 actors died, and no image was done between; the last one: its process"):
        cluster.backfill(lambda _: Actor(dies), 2, IMAGES)


@pytest.mark.parametrize("seed", range(20))
def test_every_image_is_counted_once(cluster: SimulatedRay, seed: int) -> None:
    chance = random.Random(seed)

    def work(entries: Sequence[Entry]) -> Answers:
        drawn = chance.random()
        if drawn < 0.05:
            return dies(entries) if drawn < 0.02 else is_away(entries)
        return works(entries)[0], [(chance.choice(["done"] * 60 + ["failed", "gone", ""]), "why") for _ in entries]

    found = cluster.backfill(lambda _: Actor(work, start=chance.choice([1.0, 3.0, 30.0])), 3, 900)
    assert found.done + found.failed + len(found.why) == 900
