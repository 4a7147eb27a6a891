"""Images to measure with; figures from lists of times: percentiles, and the stage that the others wait for."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rmbgd.bench import samples as images
from rmbgd.bench.samples import HAND_OVER, bottleneck, busy, means, ranked, spread, stages_of, waited
from rmbgd.config.load import LimitSettings
from rmbgd.errors import ConfigError


def test_drawn_images_are_the_same_everywhere() -> None:
    first, second = images.drawn(2, 64), images.drawn(2, 64)
    assert [each.data for each in first] == [each.data for each in second]
    assert first[0].data != first[1].data
    assert (64, 64, 3) == first[0].rgb.shape


def test_versions_differ_as_files_and_not_as_images() -> None:
    """Each is computed, since no two files are equal, and every decoder sees the same pixels."""
    (image,) = images.drawn(1, 64)
    made = list(islice(images.versions([image]), 3))
    assert 3 == len({data for _, data in made}) == len({name for name, _ in made})
    for _, data in made:
        with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(image.data)) as original:
            assert np.array_equal(np.asarray(opened), np.asarray(original))


def test_folder_gives_what_the_service_would_take(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    (tmp_path / "deep").mkdir()
    Image.new("RGBA", (20, 10), "blue").save(tmp_path / "deep" / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = images.from_folder(tmp_path, LimitSettings())
    assert [("a.jpg", "JPEG", (30, 40, 3)), ("deep/b.png", "PNG", (10, 20, 3))] == [
        (each.name, each.form, each.rgb.shape) for each in found
    ]


def test_folder_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand photographs are no reason to decode them all."""
    monkeypatch.setattr(images, "FOLDER_MAXIMUM", 2)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert ["0.png", "1.png"] == [each.name for each in images.from_folder(tmp_path, LimitSettings())]


@pytest.mark.parametrize(("content", "why"), [(None, "it holds no files"), (b"no image", "a: unidentified")])
def test_folder_without_images_is_told_with_its_reason(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match=f"no image to measure with; {why}"):
        images.from_folder(tmp_path, LimitSettings())


def test_formats_that_cannot_be_varied_are_said(tmp_path: Path) -> None:
    """Equal files would be copied, not computed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp")
    with pytest.raises(ConfigError, match=r"a\.webp: measuring needs JPEG or PNG files, this is WEBP"):
        images.from_folder(tmp_path, LimitSettings())


# --- figures

THREADS = {"decode": 2, "finish": 2}


def test_percentiles_are_ranks() -> None:
    """Of 1 to 1000 ms the ranks are known, and the jitter is p99 - p50."""
    found = spread([float(n) for n in range(1000, 0, -1)])
    assert (1000, 500.5, 500, 950, 990, 490, 1000) == (
        found.count, found.mean, found.p50, found.p95, found.p99, found.jitter, found.longest,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "p95", "p99"), [(19, False, False), (20, True, False), (99, True, False), (100, True, True)]
)
def test_percentile_of_too_few_is_left_out(count: int, p95: bool, p99: bool) -> None:
    """The slowest of a handful is no 99th percentile, and without one there is no jitter."""
    found = spread([1.0] * count)
    assert (p95, p99, p99) == (found.p95 is not None, found.p99 is not None, found.jitter is not None)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_is_one_of_the_values_and_covers_its_share(values: list[float], share: float) -> None:
    ordered = sorted(values)
    value = ranked(ordered, share)
    assert value in ordered
    assert sum(each <= value for each in ordered) >= share * len(ordered) - 1e-9


def test_hand_over_is_what_the_stages_leave() -> None:
    """And never negative, though clocks of two processes are compared."""
    assert {"network": 7.0, HAND_OVER: 3.0} == stages_of(10.0, {"network": 7.0})
    assert 0.0 == stages_of(10.0, {"network": 11.0})[HAND_OVER]


def test_stage_that_an_image_did_not_have_counts_as_nothing() -> None:
    assert {"a": 3.0, "b": 1.0} == means([{"a": 2.0}, {"a": 4.0, "b": 2.0}])


@pytest.mark.parametrize(
    ("decode", "engine", "finish", "sync", "bound"),
    [
        (0.0, 8.0, 18.0, 1.0, "decode"),  # engine and finishers wait for something to come
        (19.0, 0.0, 18.0, 1.0, "device"),  # decoders cannot get rid of their frames, finishers wait
        (19.0, 9.0, 0.0, 1.0, "encode"),  # the engine cannot get rid of its results, the decoders not of their frames
        (19.0, 9.0, 0.0, 3.0, "disk"),
    ],
)
def test_who_waits_least_holds_the_others_up(
    decode: float, engine: float, finish: float, sync: float, bound: str
) -> None:
    """Ten seconds of two decoders, one engine and two finishers; of these the longer half."""
    after = {"decode": decode, "engine": engine, "finish": finish}
    shares = busy(dict.fromkeys(after, 0.0), after, 10.0, THREADS)
    assert bound == bottleneck(shares, {"encode": 2.0, "sync": sync})


def test_busy_counts_between_two_readings_only() -> None:
    """What was waited before the first reading, such as for the engine to load, does not count."""
    before = waited({"jobs": 100.0, "frames": 50.0, "arrivals": 100.0}, {"frames": 0.0, "arrivals": 0.0})
    after = waited({"jobs": 104.0, "frames": 54.0, "arrivals": 110.0}, {"frames": 6.0, "arrivals": 1.0})
    assert {"decode": 0.5, "engine": 0.5, "finish": 0.5} == busy(before, after, 10.0, THREADS)
