"""The page of images: whole, without a network, failures first, safe whatever names and texts hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from rmbgd.errors import ImageError, Reason
from rmbgd.report import page
from rmbgd.store.reading import Ending, counts_of_kinds, oddest, reading
from tests.imaging.builders import photo, saved
from tests.support.pages import Tags, whole_page
from tests.support.workspace import Workspace, done, torn

HOSTILE = "<script>alert(1)</script>&\"'\u202egpj\x1b[2J"
TITLE = {"place": "shop<b>", "begin": "2026-01-01 00:00", "end": "2026-01-02 00:00"}


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    page.prepare(workspace.config.limits)
    yield workspace
    workspace.close()


def endings(it: Workspace) -> list[Ending]:
    with reading(it.ledger.path) as db:
        return oddest(db, 0, 99)


def drawn(it: Workspace, images: list[Ending] | None = None, done: int | None = None) -> str:
    with reading(it.ledger.path) as db:
        counts = counts_of_kinds(db, 0)
    counts["done"] = counts["done"] if done is None else done
    text = page.render(counts, list(page.cards(endings(it) if images is None else images, it.config)), TITLE)
    assert Tags(text).open == []
    return text


def work(it: Workspace, path: str, verdict: str = "ok") -> None:
    it.drop(path, saved(photo(60, 80), "PNG"))
    job = it.claim(path)
    outcome = done(job)
    outcome.add(verdict=verdict, width=80, height=60)
    it.publish(job, saved(np.zeros((60, 80, 4), np.uint8), "PNG"), outcome=outcome)


def refuse(it: Workspace, path: str, detail: str = "torn") -> None:
    it.drop(path, b"no image")
    outcome = torn(job := it.claim(path))
    outcome.add(detail=detail)
    it.publisher.quarantine.set_aside(job, outcome)


def test_failures_come_first_and_each_image_stands_beside_its_cutout(it: Workspace) -> None:
    for path, verdict in (("good.png", "ok"), ("wall.png", "empty"), ("close.png", "full")):
        work(it, path, verdict)
    refuse(it, "broken.jpg")
    text = drawn(it)
    tags = Tags(text)
    assert re.findall(r"<h2>([^<]+)", text) == ["Rejected", "Without a subject", "Filling the frame", "Published"]
    assert re.findall(r"<b><bdi>([^<]+)", text) == ["broken.jpg", "wall.png", "close.png", "good.png"]
    sides = [attrs["alt"] for tag, attrs in tags.seen if tag == "img"]
    assert sides[:2] == ["original of wall.png", "cutout of wall.png"]
    assert len(sides) == 6
    assert "corrupt the decoder found damaged data: torn" in tags.text
    assert "80 × 60 px · 0.0 s · cpu ·" in tags.text
    assert "Published 1 Rejected 1 Waiting for review 0 Without a subject 1 Filling the frame 1" in tags.text


def test_the_page_needs_no_network_and_runs_nothing(it: Workspace) -> None:
    """Names of files are hostile: neither markup, nor turned writing, nor controls, nor bytes that are no UTF-8."""
    work(it, HOSTILE.replace("/", "") + "\udcff.png")
    refuse(it, "x.png", HOSTILE)
    text = drawn(it)
    tags = whole_page(text)
    assert r"<script>alert(1)<script>&" in tags.text
    assert r"\u202egpj\x1b[2J\udcff.png" in tags.text
    assert text.encode().isascii() or not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", text)


def test_light_and_dark_define_the_same_colours(it: Workspace) -> None:
    text = drawn(it)
    light, dark = set(), set()
    for scheme, colours in re.findall(r"(dark\) \{ )?:root \{([^}]+)\}", text):
        (dark if scheme else light).update(re.findall(r"(--\w+):", colours))
    assert light == dark
    assert set(re.findall(r"var\((--\w+)\)", text)) <= light


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (ImageError(Reason.TOO_LARGE, "bomb"), "original: too large to be shown"),
        (ImageError(Reason.CORRUPT, "torn"), "original: cannot be shown"),
        (PermissionError(13, "Permission denied"), "original: this user may not read it"),
        (OSError(5, "Input/output error"), "original: Input/output error"),
        (None, "original: not there any more"),
    ],
)
def test_what_cannot_be_shown_is_told_in_its_place(it: Workspace, trouble: Exception | None, said: str) -> None:
    work(it, "a.png")
    with mock.patch.object(page, "of_original", side_effect=trouble, return_value=None):
        text = drawn(it)
    assert said in text
    assert "cutout of a.png" in text


def test_an_image_of_a_former_folder_is_told_without_its_sides(it: Workspace) -> None:
    work(it, "a.png")
    gone = [replace(image, folder="former") for image in endings(it)]
    assert "its folder is not configured any more" in drawn(it, gone)


def test_originals_that_are_deleted_leave_the_cutout_alone(tmp_path: Path) -> None:
    it = Workspace(tmp_path, originals="delete")
    work(it, "a.png")
    text = drawn(it)
    assert 1 == text.count("<img")
    assert "not there any more" not in text
    it.close()


def test_a_row_without_facts_is_told_without_them(it: Workspace) -> None:
    work(it, "a.jpg")
    unknown = dict.fromkeys(("verdict", "width", "height", "device", "seconds"))
    old = [replace(image, ended_at=0.0, **unknown) for image in endings(it)]
    text = Tags(drawn(it, old, done=300)).text
    assert "a.jpg 1 Jan 00:00" in text
    assert "None" not in text
    assert "The newest 1 of 300 are shown." in text


def test_a_time_without_images_says_so(it: Workspace) -> None:
    assert "No image ended in this time." in drawn(it)
