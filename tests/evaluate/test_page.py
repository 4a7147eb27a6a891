"""The page of an evaluation: whole, without a network, the worst first, safe whatever names hold."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from rmbgd.config.load import LimitSettings
from rmbgd.evaluate import page
from rmbgd.evaluate.pairs import MaskPair
from rmbgd.evaluate.run import Judge, JudgedPair
from rmbgd.evaluate.summary import Evaluation
from tests.evaluate.cases import NAMES, case
from tests.imaging.builders import saved
from tests.support.pages import Tags, whole_page

HOSTILE = "<script>alert(1)</script>&\"'\u202egpj\x1b[2J"
JUDGE = Judge(LimitSettings())


def evaluation(folder: Path, *, hostile: str = "x", limit: int = 9) -> tuple[Evaluation, str]:
    """Of all cases, and one image without a prediction; and its page."""
    pairs = []
    for number, name in enumerate(NAMES):
        paths = [folder / f"{name}-{side}.png" for side in ("found", "true")]
        for path, pixels in zip(paths, case(name), strict=True):
            path.write_bytes(saved(pixels, "PNG"))
        pairs.append(MaskPair(f"{hostile}/{name}", str(paths[1]), str(paths[0]), hostile if number % 2 else ""))
    pairs.append(MaskPair(f"{hostile}/gone", "gone", None))
    judged = [JUDGE.one(pair) for pair in pairs]
    found = Evaluation(f"found{hostile}", "true", "DIS-TE1", "birefnet", ("DIS-TE1",), judged, [])
    text = page.render(found, list(page.cards(found.worst(limit), JUDGE)))
    assert Tags(text).open == []
    return found, text


def test_the_worst_come_first_and_each_has_three_sides(tmp_path: Path) -> None:
    found, text = evaluation(tmp_path, limit=4)
    by_structure = sorted(found.usable, key=lambda each: each.figures["s_measure"])
    assert [each.pair.name for each in by_structure[:4]] == re.findall(r"<bdi>([^<]+)</bdi></b>", text)
    sides = [attrs["alt"] for tag, attrs in Tags(text).seen if tag == "img"]
    worst = by_structure[0].pair.name
    assert [f"{side} of {worst}" for side in ("prediction", "truth", "difference")] == sides[:3]
    words = Tags(text).text
    assert "4 of 6 images are shown" in words
    assert "x/gone : missing_prediction, there is no prediction of this name" in words
    assert "birefnet was trained on DIS-TE1: figures on DIS-TE1 say little" in words
    assert f"weighted F {found.groups()[0].figures['weighted_f'].mean:.4f}" in words


def test_the_page_needs_no_network_and_runs_nothing(tmp_path: Path) -> None:
    text = evaluation(tmp_path, hostile=HOSTILE + "\udcff")[1]
    tags = whole_page(text)
    assert r"\u202egpj\x1b[2J\udcff" in tags.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", text)


def test_too_much_is_red_and_too_little_blue(tmp_path: Path) -> None:
    half = np.zeros((40, 60), np.uint8)
    half[:20] = 255
    for name, pixels in (("a", half), ("b", half[::-1])):
        (tmp_path / name).write_bytes(saved(np.ascontiguousarray(pixels), "PNG"))
    judged = JUDGE.one(MaskPair("x", str(tmp_path / "b"), str(tmp_path / "a")))
    (card,) = page.cards([judged], JUDGE)
    shown = Image.open(io.BytesIO(base64.b64decode(card.sides["difference"].uri.partition(",")[2]))).convert("RGB")
    assert (60, 40) == shown.size
    for row, wanted in ((5, (255, 0, 0)), (35, (0, 0, 255))):
        assert np.abs(np.subtract(shown.getpixel((30, row)), wanted)).max() < 20


def test_what_is_gone_meanwhile_is_left_out_and_nothing_makes_a_page_too(tmp_path: Path) -> None:
    pair = MaskPair("x", "gone", "gone")
    assert [] == list(page.cards([JudgedPair(pair, 1, 1, {"s_measure": 0.1})], JUDGE))
    failed = JudgedPair(pair, reason="unreadable", detail="gone")
    words = Tags(page.render(Evaluation("a", "b", "b", None, (), [failed], []), [])).text
    assert "images 0 1 not counted" in words
    assert "The worst" not in words
