"""Images that are equal are computed once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rmbgd.config.load import Recipe
from rmbgd.deliver import confidence
from rmbgd.fs import FileVersion
from rmbgd.imaging.formats import SourceFacts
from rmbgd.pipeline.dedup import Deduplicator, Follower, recipe_hash
from rmbgd.pipeline.items import Timing
from rmbgd.store.records import ContentKey, Job

pytestmark = pytest.mark.timeout(10)

KEY = ContentKey("00", "recipe")


def image(number: int) -> Follower:
    job = Job(number, "shop", f"{number}.jpg", f"/in/{number}.jpg", FileVersion(number, 1, 1, 1), 1, 0.0, 0.0, True)
    facts = SourceFacts("JPEG", "RGB", (1, 1), 1, None, None, {}, "00")
    return Follower(job, facts, Timing())


def test_the_first_computes_and_the_others_wait_for_it():
    in_flight = Deduplicator(followers_maximum=8)
    first, second, third = image(1), image(2), image(3)
    entered = [in_flight.enter(KEY, each) for each in (first, second, third)]
    assert [True, False, False] == entered
    assert [second, third] == in_flight.leave(KEY, first.job)
    assert 0 == in_flight._parked


def test_only_the_leader_releases_the_followers_whose_number_is_bounded():
    in_flight = Deduplicator(followers_maximum=1)
    first, second, surplus = image(1), image(2), image(3)
    assert [True, False, True] == [in_flight.enter(KEY, each) for each in (first, second, surplus)]
    assert [] == in_flight.leave(KEY, surplus.job)
    assert [second] == in_flight.leave(KEY, first.job)


def test_every_twin_comes_back_once_under_contention():
    in_flight = Deduplicator(followers_maximum=4)
    answered: list[int] = []

    def work(numbers: range) -> None:
        for number in numbers:
            mine = image(number)
            if in_flight.enter(ContentKey(str(number % 3), "r"), mine):
                answered.append(number)
                answered.extend(each.job.job_id for each in in_flight.leave(ContentKey(str(number % 3), "r"), mine.job))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [range(start, 2000, 4) for start in range(4)]))
    assert list(range(2000)) == sorted(answered)


def test_another_recipe_or_model_is_another_key():
    keys = [recipe_hash(*of) for of in ((Recipe(), {"sha256": "a"}), (Recipe(), {"sha256": "b"}))]
    assert 3 == len({*keys, recipe_hash(Recipe(format="webp"), {"sha256": "a"})})


def test_refining_is_part_of_the_key_only_where_it_is_done():
    small, large = ({"sha256": "a", "input_size": [side, side]} for side in (320, 1024))
    off, auto = Recipe(refine="off"), Recipe()
    assert recipe_hash(off, small) != recipe_hash(auto, small)
    assert recipe_hash(off, large) == recipe_hash(auto, large)
    assert recipe_hash(off, large) == "cd317437290b70fa5485f825c1040c40"  # as before there was the setting


def test_another_score_is_part_of_the_key_only_where_it_counts(monkeypatch):
    facts = {"sha256": "a"}
    of = [recipe_hash(Recipe(review_below=share), facts) for share in (0.0, 0.5)]
    monkeypatch.setattr(confidence, "coefficients", lambda: {"version": -1})
    after = [recipe_hash(Recipe(review_below=share), facts) for share in (0.0, 0.5)]
    assert of[0] == after[0]
    assert of[1] != after[1]


def test_another_start_of_the_same_model_keeps_the_key():
    measured = {"sha256": "a", "seconds": 0.2, "path": "/b"}
    assert recipe_hash(Recipe(), {"sha256": "a"}) == recipe_hash(Recipe(), measured)
