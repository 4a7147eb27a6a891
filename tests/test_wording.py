"""Durations, escaped names, and the known word that was probably meant."""

from __future__ import annotations

import pytest

from rmbgd.wording import did_you_mean, duration, printable


def test_names_are_escaped() -> None:
    assert r"a\x1b[2J\u202eb\udcff\x9bc" == printable("a\x1b[2J\u202eb\udcff\x9bc")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.00002, "0 s"), (0.013, "0.013 s"), (4.26, "4.3 s"), (45.4, "45 s"), (99.7, "100 s"),
        (200, "3 min 20 s"), (600, "10 min"), (7199.8, "2 h"), (18_600, "5 h 10 min"), (47.5 * 3600, "47 h 30 min"),
        (4.1 * 86_400, "4 d 2 h"), (9 * 86_400, "9 d"),
    ],
)  # fmt: skip
def test_times_in_words(seconds: float, text: str) -> None:
    assert text == duration(seconds)


def test_the_nearest_word_is_named() -> None:
    known = ("status", "list")
    assert ("did you mean 'status'?", "") == (did_you_mean("stauts", known), did_you_mean("paint", known))
