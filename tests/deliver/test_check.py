"""The checker reads the encoded bytes again; each rule on both sides of its limit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from rmbgd.config.presets import Preset, Rule, built_in
from rmbgd.deliver.check import EDGE_WHITE, RuleResult, background, borders, check

WHITE = b"\xff\xff\xff"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def disc(side: int = 256, share: float = 0.875) -> np.ndarray:
    """Alpha of a disc that takes `share` of the frame."""
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    return np.clip((share * side / 2 - np.hypot(y, x) + 0.5) * 255, 0, 255).astype(np.uint8)


def on_white(alpha: np.ndarray, colour: int = 40) -> np.ndarray:
    mixed = 255 - (255 - colour) * (alpha.astype(np.float64) / 255)
    return np.repeat(np.rint(mixed).astype(np.uint8)[:, :, None], 3, axis=2)


def encoded(pixels: np.ndarray, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    if form == "JPEG":
        options = {"quality": 98, "subsampling": "4:4:4"} | options
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def preset(kind: str, **bounds: Any) -> Preset:
    return Preset(title="x", rule=[Rule(kind=kind, requirement="so it must be", **bounds)])  # type: ignore[arg-type]


def one(data: bytes, rules: Preset, **known: Any) -> RuleResult:
    (finding,) = check(data, rules, **known)
    return finding


@pytest.mark.parametrize(
    ("kind", "passes", "fails"),
    [
        ("format", {"one_of": ["jpeg"]}, {"one_of": ["png", "tiff"]}),
        ("longest_side", {"minimum": 256, "maximum": 256}, {"minimum": 257}),
        ("shortest_side", {"minimum": 256}, {"maximum": 255}),
        ("pixels", {"maximum": 65_536}, {"maximum": 65_535}),
        ("aspect", {"minimum": 1, "maximum": 1}, {"minimum": 1.01}),
        ("fill", {"minimum": 0.87, "maximum": 0.88}, {"minimum": 0.88}),
        ("margin", {"minimum": 0.06}, {"minimum": 0.07}),
        ("centred", {"maximum": 0.01}, {"minimum": 0.01}),
        ("background", {}, {"minimum": 256}),
        ("transparency", {"one_of": ["none"]}, {"one_of": ["some"]}),
        ("profile", {"one_of": ["srgb"]}, {"one_of": ["adobe rgb"]}),
        ("dpi", {"minimum": 300}, {"minimum": 301}),
        ("bytes", {"maximum": 100_000}, {"maximum": 100}),
        ("enlargement", {"maximum": 2.0}, {"maximum": 1.4}),
    ],
)
def test_each_rule_has_two_sides(kind: str, passes: dict[str, Any], fails: dict[str, Any]) -> None:
    data, alpha = encoded(on_white(disc()), icc_profile=SRGB, dpi=(300, 300)), disc()
    for bounds, outcome in ((passes, "pass"), (fails, "fail")):
        found = one(data, preset(kind, **bounds), alpha=alpha, enlarged=1.5)
        assert (found.rule, found.outcome) == (kind, outcome), found
        assert found.measured
        assert found.required


def test_what_was_mended_says_how_and_what_fails_does_not() -> None:
    data, how = encoded(on_white(disc())), {"bytes": "quality 95 became 80"}
    mended = one(data, preset("bytes", maximum=100_000), fixed=how)
    assert ("fixed", "quality 95 became 80") == (mended.outcome, mended.how)
    assert "fail" == one(data, preset("bytes", maximum=9), fixed=how).outcome


@pytest.mark.parametrize(("cut", "outcome"), [((), "pass"), (("left", "bottom"), "fail")])
def test_a_subject_that_the_photograph_cuts_is_not_whole(cut: tuple[str, ...], outcome: str) -> None:
    found = one(encoded(on_white(disc())), preset("border"), alpha=disc(), cut=cut)
    assert outcome == found.outcome
    assert all(side in found.measured for side in cut)


def test_a_subject_at_the_frames_border() -> None:
    alpha = disc(share=1.1)
    found = one(encoded(on_white(alpha)), preset("border"), alpha=alpha)
    assert ("fail", "touches the top and the right and the bottom and the left of the frame") == (
        found.outcome,
        found.measured,
    )
    assert borders(alpha) == ("top", "right", "bottom", "left")
    assert borders(disc()) == ()
    assert borders(np.zeros((9, 9), np.uint8)) == ()


def test_specks_do_not_widen_the_box() -> None:
    alpha = disc(share=0.5)
    alpha[2:5, 2:5] = 255
    assert "50.0%" == one(encoded(on_white(alpha)), preset("fill", minimum=0.1), alpha=alpha).measured


def test_no_subject_fails_where_one_is_needed() -> None:
    empty = np.zeros((64, 64), np.uint8)
    found = check(encoded(on_white(empty)), built_in()["amazon-main"], alpha=empty)
    assert {"fill", "border"} <= {each.rule for each in found if each.outcome == "fail"}


@pytest.mark.parametrize(("quality", "outcome"), [(60, "fail"), (100, "pass")])
def test_ringing_beside_the_edge_is_found_and_counted(quality: int, outcome: str) -> None:
    found = one(encoded(on_white(disc()), quality=quality), preset("background"), alpha=disc())
    assert outcome == found.outcome
    assert ("pixels below 250" in found.measured) is (outcome == "fail")
    assert found.measured.startswith("0 of 1024 blocks stained")


def test_halved_chroma_has_larger_blocks() -> None:
    found = one(encoded(on_white(disc()), subsampling="4:2:0"), preset("background"), alpha=disc())
    assert " of 256 blocks" in found.measured


@pytest.mark.parametrize("shade", [254, 250, 0])
def test_one_stained_pixel_far_from_the_subject_fails(shade: int) -> None:
    pixels, alpha = on_white(disc(share=0.5)), disc(share=0.5)
    pixels[4, 4] = shade
    found = one(encoded(pixels, "PNG"), preset("background"), alpha=alpha)
    assert ("fail", "1 of 1024 blocks stained; beside the edge at least 255") == (found.outcome, found.measured)


@pytest.mark.parametrize(("shade", "outcome"), [(255, "pass"), (254, "fail"), (230, "fail")])
def test_without_known_alpha_the_subject_is_what_differs(shade: int, outcome: str) -> None:
    pixels = on_white(disc(share=0.5))
    pixels[pixels == 255] = shade
    found = {each.rule: each for each in check(encoded(pixels), built_in()["amazon-main"])}
    assert outcome == found["background"].outcome
    if shade == 255:
        assert "5" == found["fill"].measured[0]


def test_a_files_own_alpha_counts() -> None:
    rgba = np.dstack([on_white(disc()), disc()])
    data = encoded(rgba, "PNG")
    assert "some" == one(data, preset("transparency", one_of=["none"])).measured
    assert "87.5%" == one(data, preset("fill", minimum=0.1)).measured


@pytest.mark.parametrize("spoilt", [b"", b"no image", encoded(on_white(disc()))[:300], b"\xff\xd8\xff" * 100])
def test_bytes_that_are_no_image_fail_and_raise_nothing(spoilt: bytes) -> None:
    found = one(spoilt, built_in()["amazon-main"])
    assert ("readable", "fail") == (found.rule, found.outcome)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_file_of_any_format_cannot_be_read(form: str) -> None:
    whole = encoded(on_white(disc()), form)
    assert "pass" == one(whole, preset("longest_side", minimum=256)).outcome
    for part in (len(whole) * 9 // 10, len(whole) // 2):
        assert "readable" == one(whole[:part], preset("longest_side", minimum=256)).rule


def test_damage_inside_of_a_jpeg_is_found() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (256, 256, 3), np.uint8)
    spoilt = bytearray(encoded(noise))
    middle = len(spoilt) // 2
    spoilt[middle : middle + 400] = b"\xff\xd9" * 200
    assert "readable" == one(bytes(spoilt), preset("longest_side", minimum=256)).rule


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), st.data())
def test_spoilt_bytes_raise_nothing(form: str, data: st.DataObject) -> None:
    spoilt = bytearray(encoded(on_white(disc(64)), form))
    for _ in range(data.draw(st.integers(1, 8))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    assert check(bytes(spoilt), built_in()["amazon-main"])


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
planes = shapes.flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, (*shape, 3), elements=st.sampled_from([255, 254, 251, 249, 0]), fill=st.just(255)),
        arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 1, 255]), fill=st.just(0)),
    )
)


@given(planes, st.booleans())
def test_blocks_are_judged_as_by_a_plain_loop(both: tuple[np.ndarray, np.ndarray], halved: bool) -> None:
    pixels, alpha = both
    side, stained, blocks, edge = (16 if halved else 8), 0, 0, [255]
    for top in range(0, len(alpha), side):
        for left in range(0, alpha.shape[1], side):
            blocks += 1
            colours = pixels[top : top + side, left : left + side].reshape(-1, 3)
            inside = alpha[top : top + side, left : left + side].reshape(-1)
            if inside.any():
                edge += [int(colour.min()) for colour, each in zip(colours, inside, strict=True) if each == 0]
            else:
                stained += bool((colours != 255).any())
    found = background(pixels, alpha, WHITE, halved=halved)
    assert (blocks, stained, min(edge)) == (found.blocks, found.stained, found.least)
    assert found.below == sum(each < EDGE_WHITE for each in edge)
