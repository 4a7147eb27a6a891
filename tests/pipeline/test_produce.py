"""The files of an image: several, parted, checked, and put before people; through the real pipeline."""

from __future__ import annotations

import errno
import json
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from rmbgd.pipeline import infer
from rmbgd.pipeline.produce import names_of
from rmbgd.store.records import PublishedFile
from tests.pipeline.test_pipeline import Works
from tools import fit_confidence

SQUARE = {"title": "square", "make": {"format": "jpeg", "content": "colour", "canvas": "64x64", "fill": 0.8}}
RULES = {
    "fill": {"kind": "fill", "requirement": "fills it", "minimum": 0.75},
    "border": {"kind": "border", "requirement": "whole"},
    "background": {"kind": "background", "requirement": "white"},
}
THREE = [
    {"path": "{dir}/{stem}"},
    {"path": "shop/{dir}/{stem}.jpg", "preset": "square"},
    {"path": "{dir}/{stem}-mask.tif", "content": "mask"},
]


def subjects(*boxes: tuple[int, int, int, int], height: int = 48, width: int = 96) -> np.ndarray:
    """An image whose alpha, as the fake engine sees it in the green channel, is 1 in these boxes."""
    array = np.zeros((height, width, 3), np.uint8)
    array[..., 0] = 40
    for top, bottom, left, right in boxes:
        array[top:bottom, left:right, 1] = 255
    return array


INSIDE, CUT = (10, 40, 20, 50), (10, 48, 20, 50)


def works(base: Path, *rules: str, **recipe: Any) -> Works:
    preset = SQUARE | {"rule": [RULES[name] for name in rules]}
    return Works(base, own_preset=preset, **recipe)


def outputs(it: Works) -> list[str]:
    return sorted(str(path.relative_to(it.output)) for path in it.output.rglob("*") if path.is_file())


def reviews(it: Works) -> list[str]:
    return sorted(str(path.relative_to(it.review)) for path in it.review.rglob("*") if path.is_file())


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def done(it: Works) -> dict[str, Any]:
    (event,) = it.events.named("image.done")
    return event


def test_three_files_of_one_image(tmp_path: Path) -> None:
    it = works(tmp_path, *RULES, deliver=THREE)
    it.run(a=subjects(INSIDE))
    assert outputs(it) == ["a-mask.tif", "a.png", "shop/a.jpg"]
    told = done(it)
    assert ["a.png", "shop/a.jpg", "a-mask.tif"] == [each["path"] for each in told["outputs"]]
    assert told["output"] == "a.png"
    assert "fail" not in [each["outcome"] for each in told["outputs"][1]["compliance"]]
    assert (64, 64, 3) == read(it.output / "shop/a.jpg").shape
    mask, cutout = (read(it.output / name) for name in ("a-mask.tif", "a.png"))
    assert np.array_equal(mask, cutout[:, :, 3])
    assert told["notes"] == ["enlarged"]
    assert told["verdict"] == "ok"


def test_an_equal_image_gets_the_whole_set(tmp_path: Path) -> None:
    it = works(tmp_path, *RULES, deliver=THREE)
    it.run(a=subjects(INSIDE), b=subjects(INSIDE))
    assert outputs(it) == ["a-mask.tif", "a.png", "b-mask.tif", "b.png", "shop/a.jpg", "shop/b.jpg"]
    first, second = it.events.named("image.done")
    assert second["reused"]
    assert [each["sha256"] for each in first["outputs"]] == [each["sha256"] for each in second["outputs"]]
    assert second["notes"] == ["enlarged"]


@pytest.mark.parametrize(
    ("boxes", "rule", "told"),
    [((CUT,), "border", "cut by the bottom of the photograph"), ((), "fill", "0.0%")],
    ids=["cut", "empty"],
)
def test_what_fails_a_rule_is_put_before_people(tmp_path: Path, boxes: Any, rule: str, told: str) -> None:
    it = works(tmp_path, *RULES, deliver=THREE)
    it.run(a=subjects(*boxes))
    assert outputs(it) == []
    assert reviews(it) == ["a-mask.tif", "a.png", "a.png.json", "a.review.jpg", "shop/a.jpg"]
    event, beside = done(it), json.loads((it.review / "a.png.json").read_text())
    assert event["verdict"] == beside["verdict"] == "review"
    (table,) = beside["compliance"]
    (failed,) = [each for each in table["rules"] if each["rule"] == rule]
    assert failed["outcome"] == "fail"
    assert told in failed["measured"]
    assert any(told in reason for reason in event["reasons"])
    assert (it.review / "a.review.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_equal_images_in_review_are_judged_each_by_itself(tmp_path: Path) -> None:
    it = works(tmp_path, *RULES, deliver=THREE)
    it.run(a=subjects(CUT), b=subjects(CUT))
    assert outputs(it) == []
    waiting, back = {event["path"] for event in it.events.named("image.done")}, dict(it.returned)
    assert waiting  # whichever came first, and the other one too unless it had been parked behind that
    assert waiting | back.keys() == {"a.png", "b.png"}
    assert set(back.values()) <= {"review"}


def test_a_plain_recipe_may_have_a_preset(tmp_path: Path) -> None:
    it = works(tmp_path, "background", preset="square")
    it.run(a=subjects(INSIDE))
    assert outputs(it) == ["a.jpg"]
    assert done(it)["outputs"][0]["preset"] == "square"


def test_subjects_are_parted_and_add_up(tmp_path: Path) -> None:
    it = works(tmp_path, subjects="split", coco=True)
    it.run(a=subjects((4, 20, 4, 20), (24, 44, 60, 90)))
    assert outputs(it) == ["a.coco.json", "a.subjects.json", "a~1.png", "a~2.png"]
    parts = [read(it.output / f"a~{number}.png")[:, :, 3] for number in (1, 2)]
    whole = subjects((4, 20, 4, 20), (24, 44, 60, 90))[:, :, 1]
    assert np.array_equal(sum(part.astype(int) for part in parts), whole)
    told = json.loads((it.output / "a.subjects.json").read_text())["subjects"]
    assert [1, 2] == [each["number"] for each in told]
    assert all(0 < each["confidence"] <= 1 for each in told)
    assert 2 == len(json.loads((it.output / "a.coco.json").read_text())["annotations"])


def test_one_file_of_each_subject_beside_one_of_all(tmp_path: Path) -> None:
    it = works(tmp_path, subjects="split", deliver=[{"path": "{stem}"}, {"path": "parts/{stem}-{subject}"}])
    it.run(a=subjects((4, 20, 4, 20), (24, 44, 60, 90)))
    assert outputs(it) == ["a.png", "a.subjects.json", "parts/a-1.png", "parts/a-2.png"]
    whole = read(it.output / "a.png")[:, :, 3]
    assert np.array_equal(whole, subjects((4, 20, 4, 20), (24, 44, 60, 90))[:, :, 1])


def test_without_a_subject_there_is_one_empty_file(tmp_path: Path) -> None:
    it = works(tmp_path, subjects="split")
    it.run(a=subjects())
    assert outputs(it) == ["a.subjects.json", "a~1.png", "a~1.png.json"]
    assert not read(it.output / "a~1.png")[:, :, 3].any()


def test_the_largest_subject_alone(tmp_path: Path) -> None:
    it = works(tmp_path, subjects="largest")
    it.run(a=subjects((4, 20, 4, 20), (24, 44, 60, 90)))
    alpha = read(it.output / "a.png")[:, :, 3]
    assert np.array_equal(alpha, subjects((24, 44, 60, 90))[:, :, 1])


def test_a_disk_that_refuses_changes_nothing_of_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planes are used once more: the score is that of the whole image again, and the file the same."""
    image, found = subjects((4, 20, 4, 20), (24, 44, 60, 90)), []
    for refused in (0, 1):
        (base := tmp_path / str(refused)).mkdir()
        it = works(base, subjects="largest", review_below=1e-9)
        publish, left = it.line._context.publisher.publish, [OSError(errno.ENOSPC, "no space left")] * refused

        def once(*given: Any, publish: Any = publish, left: list[OSError] = left, **known: Any) -> Any:
            if not left:
                return publish(*given, **known)
            job, write, outcome = given

            def writes(files: Any) -> None:
                write(files)
                raise left.pop()

            return publish(job, writes, outcome, **known)

        monkeypatch.setattr(it.line._context.publisher, "publish", once)
        it.run(a=image)
        found.append((done(it)["score"], done(it)["sha256_out"]))
    assert found[0] == found[1]


def test_seeds_beside_the_image_part_what_touches(tmp_path: Path) -> None:
    it = works(tmp_path, subjects="split")
    seeds = {"boxes": [[20, 10, 34, 40], [36, 10, 50, 40]]}
    (it.input / "a.png.seeds.json").write_text(json.dumps(seeds))
    it.save("a.png", subjects(INSIDE))
    it.work(it.claim("a.png"))
    assert outputs(it) == ["a.subjects.json", "a~1.png", "a~2.png"]


def test_seeds_that_cannot_be_used_are_a_note(tmp_path: Path) -> None:
    it = works(tmp_path, subjects="split", canvas="200x200")
    (it.input / "a.png.seeds.json").write_text("{")
    it.save("a.png", subjects(INSIDE))
    it.work(it.claim("a.png"))
    assert outputs(it) == ["a.subjects.json", "a~1.png"]
    assert ["seeds_unusable", "enlarged"] == done(it)["notes"]


def test_a_doubtful_matte_is_put_before_people(tmp_path: Path) -> None:
    it = works(tmp_path, review_below=1.0)
    it.run(a=subjects(INSIDE))
    assert reviews(it) == ["a.png", "a.png.json", "a.review.jpg"]
    event = done(it)
    assert 0 <= event["score"] < 1
    assert "confidence" in event["reasons"][0]
    label = {"label": "approved", "score": event["score"]} | event["review"]  # as `rmbgd review export` writes it
    (path := tmp_path / "labels.jsonl").write_text(json.dumps(label) + '\n{"label": "rejected", "score": null}\n')
    (measured,) = fit_confidence.read([path])
    assert measured.right


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_only_who_asks_for_reviews_pays_for_a_second_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    monkeypatch.setattr(infer, "Work", asked := Mock(wraps=infer.Work))
    works(tmp_path, review_below=least).run(a=subjects(INSIDE))
    assert [call.args[5] for call in asked.call_args_list] == [least > 0]


def test_a_sure_one_is_published_with_its_score(tmp_path: Path) -> None:
    it = works(tmp_path, review_below=1e-9)
    it.run(a=subjects(INSIDE))
    assert outputs(it) == ["a.png"]
    assert "score" in done(it)


def test_names_of_a_copied_set() -> None:
    facts = {"format": "jpeg", "width": 30, "height": 40}
    files = [
        PublishedFile("{dir}/{stem}-{size}#2", "x", "", 0, facts),
        PublishedFile("{dir}/{stem}.subjects.json", "x", "", 0, {"format": "json"}),
    ]
    found = [(each.slot, each.plain) for each in names_of(files, "s/a.gif", date(2026, 1, 1))]
    assert found == [
        ("{dir}/{stem}-{size}#2", "s/a-30x40.jpg"),
        ("{dir}/{stem}.subjects.json", "s/a.subjects.json"),
    ]
    assert [] == names_of([PublishedFile(".png", "x.png", "", 0)], "s/a.gif", date(2026, 1, 1))
