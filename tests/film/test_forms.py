"""What a film may be: limits on its header, and its end."""

from __future__ import annotations

import pytest

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.film.forms import check_end, check_length, check_size, check_streams
from rmbgd.naming import FILM_EXTENSIONS, FILM_FORMATS, PLAIN, is_film

LIMITS = LimitSettings(pixels=10_000, side=200, film_seconds=60, film_frames=1000, film_streams=3)


@pytest.mark.parametrize(
    ("check", "arguments", "reason"),
    [
        (check_streams, (4,), Reason.TOO_MANY_STREAMS),
        (check_size, (200, 51), Reason.TOO_LARGE),
        (check_size, (201, 10), Reason.TOO_LARGE),
        (check_size, (0, 10), Reason.CORRUPT),
        (check_length, (10, 61.0), Reason.TOO_LONG),
        (check_length, (1001, 0.0), Reason.TOO_LONG),
    ],
)
def test_what_is_beyond_a_limit_is_refused_and_says_which(check, arguments, reason) -> None:
    with pytest.raises(ImageError) as caught:
        check(*arguments, LIMITS)
    assert caught.value.reason is reason
    assert reason is Reason.CORRUPT or "limits." in caught.value.detail


def test_what_is_at_a_limit_passes() -> None:
    check_streams(3, LIMITS)
    check_size(200, 50, LIMITS)
    check_length(1000, 60.0, LIMITS)


@pytest.mark.parametrize(
    ("last", "seconds", "ends_early"),
    [(9.5, 10, False), (9.4, 10, True), (998.6, 1000, False), (998.4, 1000, True), (5, 0, False)],
)
def test_a_film_that_ends_before_its_header_says_is_cut_off(last: float, seconds: float, ends_early: bool) -> None:
    if not ends_early:
        check_end(last, seconds)
        return
    with pytest.raises(ImageError, match="ends after") as caught:
        check_end(last, seconds)
    assert caught.value.maybe_incomplete


def test_names_of_films() -> None:
    assert [is_film(name) for name in ("a.mp4", "b/c.MOV", "d.png", "mp4", ".mp4x")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert set(FILM_EXTENSIONS.values()) <= PLAIN
    assert FILM_FORMATS[".webm"] == "vp9"
