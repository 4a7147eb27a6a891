"""Derived names: legal, unique, and reversible where they have to be."""

from __future__ import annotations

import posixpath
import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd import naming as names

# Every byte name a Linux file system can hold, as text.
COMPONENTS = (
    st.binary(min_size=1, max_size=255)
    .filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
    .map(lambda name: name.decode("utf-8", "surrogateescape"))
)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


@given(COMPONENTS, st.integers(16, 255))
def test_fit_keeps_names_legal(name: str, limit: int) -> None:
    """A fitted name is never longer than the limit, and a name that fits is left alone."""
    fitted = names.fit(name, limit) if size(posixpath.splitext(name)[1]) < 5 else names.fit(name)
    assert 0 < size(fitted) <= 255
    assert size(name) > limit or fitted == name


def test_fit_keeps_long_names_apart() -> None:
    first, second = (names.fit("x" * 250 + last + ".jpeg") for last in "ab")
    assert first != second
    assert first.endswith(".jpeg")
    assert size(first) == size(second) == 255


@given(PATHS, st.integers(1, 1 << 40))
def test_a_claimed_name_is_legal_and_gives_its_number_back(path: str, job_id: int) -> None:
    """A claimed name fits into a folder, and tells the job; where it fits also the whole path it came from."""
    name = names.claimed_name(job_id, path)
    found = names.unclaimed_path(name)
    assert found is not None
    assert found[0] == job_id
    assert size(name) <= 255
    assert "/" not in name
    if size(path) < 60:
        assert found[1] == path


def test_names_that_are_not_ours_are_not_taken_for_claimed() -> None:
    for name in ("x.jpg", "12_x.jpg", "12__", "__x", "1a__x", "3__..", "3__..%2F..%2Fetc", "3__%2Fetc", "²__x"):
        assert names.unclaimed_path(name) is None


def test_the_later_of_one_stem_carries_its_extension() -> None:
    """a.jpg and a.png, and files without extension, get output names that differ."""
    assert names.output_names("s/a.jpg", ".png") == ("s/a.png", "s/a_jpg.png")
    assert names.output_names("a", ".png") == ("a.png", "a_.png")


@given(PATHS, st.sampled_from(("", ".jpg", ".JPEG", ".tif")), st.integers(1, 1000))
def test_the_source_of_an_output_is_found(stem: str, suffix: str, number: int) -> None:
    """Whichever of its names it got: the short one, that of the later of one stem, or a version of either."""
    for name in names.output_names(stem + suffix, ".png"):
        output = names.version_of(name, number)
        if "~" not in stem and size(posixpath.basename(output)) < 250:  # else it may be cut
            assert posixpath.splitext(stem + suffix)[0] in names.sources_of(output)


def test_sources_are_tried_from_the_likeliest_on() -> None:
    assert ["s/a_jpg~2", "s/a_jpg", "s/a"] == names.sources_of("s/a_jpg~2.png")
    assert ["pet_cat"] == names.sources_of("pet_cat.webp")


@given(PATHS, st.integers(1, 1000))
def test_derived_names_are_legal(path: str, number: int) -> None:
    """Outputs, their versions, sidecars and reason files stay in their folder and within the length of a name."""
    for name in (*names.output_names(path, ".png"), names.version_of(path, number)):
        for derived in (name, names.sidecar_name(name), names.reason_name(name)):
            assert posixpath.dirname(derived) == posixpath.dirname(path)
            assert size(posixpath.basename(derived)) <= 255


TODAY = date(2026, 11, 29)


@pytest.mark.parametrize(
    ("template", "path", "plain", "later"),
    [
        ("{dir}/{stem}-shop.jpg", "s/a.png", "s/a-shop.jpg", "s/a_png-shop.jpg"),
        ("{dir}/{stem}-shop.jpg", "a.png", "a-shop.jpg", "a_png-shop.jpg"),
        ("shop/{dir}/{stem}", "a.png", "shop/a.webp", "shop/a_png.webp"),
        ("{date:%Y/%m}/{name}", "s/a.png", "2026/11/a.png.webp", "2026/11/a.png.webp"),
        ("{date}/{stem}", "a", "2026-11-29/a.webp", "2026-11-29/a_.webp"),
        ("{stem}~{subject}", "a.b.png", "a.b~2.webp", "a.b_png~2.webp"),
        ("{stem}_{size}", "a.png", "a_300x400.webp", "a_png_300x400.webp"),
        ("{{{stem}}}", "a.png", "{a}.webp", "{a_png}.webp"),
    ],
)
def test_templates_give_two_names(template: str, path: str, plain: str, later: str) -> None:
    names.check_template(template)
    given = names.expand(template, path, ".webp", when=TODAY, subject=2, size=(300, 400))
    assert (plain, later) == given


def test_a_name_that_a_template_makes_too_long_is_cut() -> None:
    plain, later = names.expand("{stem}-" + 9 * "x", 250 * "a" + ".png", ".jpg", when=TODAY)
    assert max(len(plain), len(later)) <= names.NAME_MAXIMUM
    assert plain != later


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("/x/{stem}", "below the output"),
        ("../{stem}", "must stay below"),
        ("{dir}/../{stem}", "must stay below"),
        ("{date:..}/{stem}", "must stay below"),
        ("{dir}//x/{stem}", "must stay below"),
        ("{dir}/cutout", "one name"),
        ("{stem", "is no template"),
        ("{stem:>9}", "only {date:...}"),
        ("{stem!r}", "only {date:...}"),
        ("{stem.__class__}", "no field"),
        ("{0}{stem}", "no field"),
        (".hidden/{stem}", "hidden"),
        ("{stem}.json", "not an image's suffix"),
        ("{stem}.tmp", "not an image's suffix"),
        ("{stem}\0", "below the output"),
    ],
)
def test_templates_that_are_refused(template: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        names.check_template(template)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (("{dir}/{stem}", "png"), ("{dir}/{stem}.png", "png"), True),
        (("{dir}/{stem}", "png"), ("{dir}/{stem}", "jpeg"), False),
        (("{stem}-{size}", "png"), ("{stem}-1x1", "png"), True),
        (("{stem}~{subject}", "png"), ("{stem}~2", "png"), True),
        (("{stem}", "png"), ("{stem}-b", "png"), False),
    ],
)
def test_templates_that_may_give_one_name(one: tuple[str, str], other: tuple[str, str], equal: bool) -> None:
    assert equal is names.may_be_equal(*one, *other)
