"""Shadows: below the subject, away from the light, no part of its matte, the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from rmbgd.config.load import Recipe
from rmbgd.deliver.arrange import arrange
from rmbgd.deliver.shadow import shadow


def standing() -> np.ndarray:
    """RGBA of a grey bar that stands in the middle, rows 60 to 359 of 400, columns 170 to 229."""
    rgba = np.zeros((400, 400, 4), np.uint8)
    rgba[60:360, 170:230] = (90, 90, 90, 255)
    return rgba


@pytest.mark.parametrize("kind", ["contact", "cast"])
def test_a_shadow_is_no_part_of_the_matte_and_leaves_the_subject_as_it_is(kind: str) -> None:
    plain = arrange(standing(), None, Recipe(content="colour"))
    shaded = arrange(standing(), None, Recipe(content="colour", shadow=kind, shadow_opacity=0.5))
    assert np.array_equal(shaded.alpha, standing()[:, :, 3])
    assert np.array_equal(shaded.pixels[60:360, 170:230], plain.pixels[60:360, 170:230])
    assert 120 <= shaded.pixels.min(where=(shaded.alpha == 0)[:, :, None], initial=255) < 220
    again = arrange(standing(), None, Recipe(content="colour", shadow=kind, shadow_opacity=0.5))
    assert np.array_equal(again.pixels, shaded.pixels)


@pytest.mark.parametrize("kind", ["contact", "cast"])
def test_a_transparent_file_with_a_shadow_looks_the_same_on_its_background(kind: str) -> None:
    recipe = Recipe(shadow=kind, hidden_colours="keep")
    clear = arrange(standing(), None, recipe, last=False)
    flat = arrange(standing(), None, recipe.model_copy(update={"content": "colour", "background": "#c08040"}))
    share = clear.pixels[:, :, 3:] / 255
    laid = clear.pixels[:, :, :3] * share + (1 - share) * (0xC0, 0x80, 0x40)
    assert np.abs(laid - flat.pixels).max() <= 1.5
    assert np.array_equal(clear.alpha, standing()[:, :, 3])


@pytest.mark.parametrize(("light", "side"), [(60.0, "left"), (135.0, "right")])
def test_a_cast_shadow_falls_away_from_the_light(light: float, side: str) -> None:
    dark = shadow(standing()[:, :, 3], "cast", opacity=0.4, size=0.05, light=light)
    left, right = int(dark[:, :165].sum()), int(dark[:, 235:].sum())
    assert (left > 20 * right) if side == "left" else (right > 20 * left)


def test_a_contact_shadow_follows_the_lower_edge_and_fades_where_that_rises() -> None:
    alpha = standing()[:, :, 3]
    alpha[60:200, 230:330] = 255  # an arm, 160 rows above the ground
    dark = shadow(alpha, "contact", opacity=0.4, size=0.08, light=90.0)
    assert dark[360:370, 180:220].min() > 40
    assert dark[200:210, 250:330].max() < 0.1 * dark.max()
    assert dark[:200].max() == 0
    assert dark.max() <= round(0.4 * 255)


def test_where_nothing_stands_there_is_no_shadow() -> None:
    assert shadow(np.full((30, 30), 100, np.uint8), "cast", opacity=0.4, size=0.1, light=90.0) is None
    empty = np.zeros((30, 20, 4), np.uint8)
    assert not arrange(empty, None, Recipe(shadow="contact")).pixels.any()
    for kind in ("contact", "cast"):  # a single pixel, and an image that is all subject
        assert shadow(np.full((1, 1), 255, np.uint8), kind, opacity=1.0, size=0.1, light=0.0).shape == (1, 1)
