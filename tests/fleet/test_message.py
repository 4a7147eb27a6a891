"""Announcements: what is encoded is decoded, what is bad is refused with why, and names stay apart in subjects."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.fleet.message import (
    BULK,
    BYTES_MAXIMUM,
    FINGERPRINT_MAXIMUM,
    HOT,
    LATELY,
    QUEUES,
    Announcement,
    BadMessage,
    consumer,
    decode,
    queue_for,
    token,
    unusable,
)

PARTS = st.binary(min_size=1, max_size=60).filter(lambda part: not set(part) & {0, ord("/")} and part.strip(b"."))
KEYS = st.lists(PARTS, min_size=1, max_size=5).map(lambda parts: os.fsdecode(b"/".join(parts)))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FINGERPRINTS = st.text(min_size=1, max_size=FINGERPRINT_MAXIMUM).filter(str.isprintable)
VALID = {"v": 1, "root": "shop", "key": "a.png", "fingerprint": "1-2", "recipe": "default"}


@given(root=NAMES, key=KEYS, fingerprint=FINGERPRINTS, recipe=TEXTS)
def test_what_is_encoded_is_decoded(root: str, key: str, fingerprint: str, recipe: str) -> None:
    announced = Announcement(root, key, fingerprint, recipe)
    assert decode(announced.encode()) == announced
    assert decode(announced.encode()).identity == announced.identity


@pytest.mark.parametrize("part", ["e", "\u00e9", "\u65e5", "\U0001f4f7", "\udcff"])
def test_every_path_that_a_file_system_has_fits(part: str) -> None:
    """As long as paths may be, in whatever script, or none."""
    name = part * (255 // len(os.fsencode(part)))
    key = "/".join([name] * 16)
    assert unusable(key) == ""
    announced = Announcement("shop", key, "1-2", "default")
    assert decode(announced.encode()) == announced


@given(st.lists(st.tuples(NAMES, KEYS, TEXTS, TEXTS), min_size=2, max_size=6, unique=True))
def test_other_versions_have_other_identities(told: list[tuple[str, str, str, str]]) -> None:
    assert len({Announcement(*each).identity for each in told}) == len(told)


@given(st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_other_roots_have_other_words(roots: list[str]) -> None:
    assert len({token(root) for root in roots}) == len(roots)
    assert len({consumer(root) for root in roots}) == len(roots)
    assert all(re.fullmatch(r"[A-Za-z0-9_=-]+", token(root)) for root in roots)


def test_names_on_the_broker() -> None:
    assert token("Shop_1-a") == "Shop_1-a"
    assert token("b\u00e9 =.>*") == "b=C3=A9=20=3D=2E=3E=2A"
    announced = Announcement("my shop", "a.png", "1-2", "default")
    assert [announced.subject(stream) for stream in QUEUES] == ["rmbgd.jobs.hot.my=20shop", "rmbgd.jobs.bulk.my=20shop"]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("..", "'..'"),
        ("../x", "'..'"),
        ("a/../x", "'..'"),
        ("a/..", "'..'"),
        (".", "'.'"),
        ("./a", "'.'"),
        ("a/./b", "'.'"),
        ("a//b", "empty"),
        ("a/", "empty"),
        ("a\0b", "NUL"),
        ("x" * 4097, "too long"),
        ("\ud800", "characters"),
        ("a\udfff", "characters"),
    ],
)
def test_keys_that_are_no_paths_are_refused(key: str, why: str) -> None:
    assert why in unusable(key)
    with pytest.raises(BadMessage, match=re.escape(why)):
        decode(json.dumps(VALID | {"key": key}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 5_000,
        b"null",
        b"[1]",
        b'"text"',
        b"{}",
        b"1" * 6_000,
        json.dumps({**VALID, "v": 2}).encode(),
        json.dumps({**VALID, "v": "1"}).encode(),
        json.dumps({**VALID, "more": 1}).encode(),
        *(json.dumps({**VALID, name: 1}).encode() for name in VALID if name != "v"),
        *(json.dumps({key: value for key, value in VALID.items() if key != name}).encode() for name in VALID),
        json.dumps({**VALID, "recipe": "x" * BYTES_MAXIMUM}).encode(),
        *(json.dumps({**VALID, "fingerprint": text}).encode() for text in ("", "etag:\ud800", "1-2\n", "1" * 201)),
    ],
)
def test_what_is_no_announcement_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage) as refused:
        decode(data)
    assert str(refused.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_announcement_or_refused(data: bytes) -> None:
    try:
        found = decode(data)
    except BadMessage:
        return
    assert unusable(found.key) == ""


def test_what_came_long_ago_waits_behind_what_comes_now() -> None:
    assert [queue_for(age) for age in (-60.0, 0.0, LATELY - 1, LATELY, 1e9)] == [HOT, HOT, HOT, BULK, BULK]
