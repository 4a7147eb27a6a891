"""Derived names: legal, unique, and reversible where they have to be."""

from __future__ import annotations

import posixpath

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
