"""Means and their intervals, by category; the worst; JSON as its schema says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rmbgd.evaluate.metrics import figures
from rmbgd.evaluate.pairs import MaskPair
from rmbgd.evaluate.run import JudgedPair
from rmbgd.evaluate.summary import Evaluation, estimates, interval, shown
from rmbgd.telemetry.jsonl import to_json
from tests.evaluate.cases import case
from tests.support.schemas import problems


def judged(value: float, category: str = "", **more: float) -> JudgedPair:
    pair = MaskPair(f"{value}", "t.png", "p.png", category)
    return JudgedPair(pair, 4, 3, {"s_measure": value, **more})


def evaluation(*some: JudgedPair) -> Evaluation:
    return Evaluation("found", "true", "set", "birefnet", ("DIS-TE1",), list(some), ["found/x.png"])


def test_the_interval_is_that_of_the_mean() -> None:
    """For many images it is that of the normal distribution: 1.96 standard errors to both sides."""
    values = np.random.default_rng(1).random(400)
    found = estimates([judged(float(value)) for value in values])["s_measure"]
    reach = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)
    assert found == estimates([judged(float(value)) for value in values])["s_measure"], "the seed is fixed"


def test_a_figure_counts_the_images_that_have_it() -> None:
    some = [judged(0.5), judged(0.7, sad=3.0), judged(0.9, sad=5.0)]
    found = estimates(some)
    assert (0.7, 3) == (pytest.approx(found["s_measure"].mean), found["s_measure"].images)
    assert (4.0, 3.0, 5.0, 2) == (found["sad"].mean, found["sad"].low, found["sad"].high, found["sad"].images)
    assert {} == estimates([])


def test_one_image_has_no_interval() -> None:
    (found,) = estimates([judged(0.5)]).values()
    assert (0.5, None, None, 1) == (found.mean, found.low, found.high, found.images)
    assert "" == interval(found)


def test_groups_are_all_images_and_each_category() -> None:
    failed = JudgedPair(MaskPair("x", "x.png", None, "glass"), reason="missing_prediction", detail="none")
    found = evaluation(judged(0.2, "hair"), judged(0.4, "glass"), judged(0.6, "hair"), judged(0.8), failed)
    groups = {group.category: (group.images, group.figures["s_measure"].mean) for group in found.groups()}
    assert {None: (4, 0.5), "glass": (1, 0.4), "hair": (2, pytest.approx(0.4))} == groups
    assert ["0.2", "0.4"] == [each.pair.name for each in found.worst(2)]
    broken = JudgedPair(MaskPair("y", "y.png", "y.png"), reason="corrupt", detail="torn")
    assert [broken, failed] == evaluation(failed, judged(0.1), broken).unusable


def test_json_is_what_its_schema_says() -> None:
    real = JudgedPair(
        MaskPair("a", "t.png", "p.png"), 120, 90, figures(*(p.astype(np.float32) / 255 for p in case("soft")))
    )
    failed = JudgedPair(MaskPair("x\n", "x.png", None, "glass"), reason="missing_prediction", detail="none")
    for some in ([real, failed, judged(0.4, "hair")], [failed], []):
        document = json.loads(to_json(evaluation(*some).document()))
        assert [] == problems("evaluation", document)
        assert [each.pair.name for each in some] == [image["name"] for image in document["images"]]


def test_numbers_have_four_digits() -> None:
    assert ["0.1235", "9.0000", "12.35"] == [shown(value) for value in (0.12345678, 9.0, 12.345678)]
