"""Presets: built in, extended, resolved under a file's own settings; and what they may not say."""

from __future__ import annotations

from typing import Any

import pytest

from rmbgd.config.load import parse
from rmbgd.config.presets import built_in, resolve
from rmbgd.config.settings import Look
from rmbgd.errors import ConfigError

FOLDER = {"name": "shop", "input": "/a/in", "output": "/a/out", "failed": "/a/failed", "done": "/a/done"}
FOLDER |= {"review": "/a/review", "recipe": "shop"}


def config_with(own: Any, **recipe: Any) -> Any:
    return parse({"preset": {"mine": own}, "recipe": {"shop": recipe or {"preset": "mine"}}, "folder": [FOLDER]})


@pytest.mark.parametrize("name", sorted(built_in()))
def test_each_built_in_preset_can_be_met(name: str) -> None:
    """What it makes does not contradict itself or its rules, and each rule of a marketplace says where it was read."""
    preset = built_in()[name]
    look = resolve(Look(preset=name), built_in())
    assert [] == list(look.faults())
    assert [] == list(preset.contradictions())
    assert len(preset.rule) == len({rule.kind for rule in preset.rule}) > 0
    if name in ("amazon-main", "ebay", "etsy", "google-merchant", "walmart"):
        assert all((rule.source or preset.source) for rule in preset.rule)
        assert all(source.date and source.url for rule in preset.rule if (source := rule.source or preset.source))


def test_own_settings_go_before_those_of_the_preset() -> None:
    config = config_with({"title": "x", "extends": "amazon-main"}, preset="mine", canvas="1000x1000", jpeg_quality=90)
    recipe = config.recipe_of(config.folder[0])
    assert (recipe.canvas, recipe.jpeg_quality, recipe.fill) == ("1000x1000", 90, 0.87)  # 90 is also the default


def test_a_file_of_several_has_its_preset() -> None:
    deliver = [{"path": "{stem}"}, {"path": "{stem}", "preset": "amazon-main"}]
    config = config_with({"title": "x"}, deliver=deliver)
    assert ["png", "jpeg"] == [look.format for look in config.recipe_of(config.folder[0]).looks]


def test_own_rules_replace_those_of_their_kind() -> None:
    rule = {"kind": "fill", "requirement": "more", "minimum": 0.9, "maximum": 0.95}
    preset = config_with({"title": "x", "extends": "amazon-main", "make": {"fill": 0.92}, "rule": [rule]}).presets[
        "mine"
    ]
    assert (preset.make.fill, preset.make.canvas) == (0.92, "2000x2000")
    assert 0.9 == next(rule.minimum for rule in preset.rule if rule.kind == "fill")
    assert len(preset.rule) == len(built_in()["amazon-main"].rule)
    assert preset.source == built_in()["amazon-main"].source


@pytest.mark.parametrize(
    ("preset", "told"),
    [
        ({"title": "x", "extends": "amazon-mian"}, "preset.mine.extends: extends 'amazon-mian', which is no preset"),
        ({"title": "x", "extends": "mine"}, "preset.mine.extends: extends itself"),
        ({"title": "x", "make": {"fil": 0.5}}, "preset.mine.make.fil: unknown setting; did you mean 'fill'?"),
        ({"title": "x", "make": {"preset": "etsy"}}, "preset.mine.make.preset: a preset is built on another"),
        ({"title": "x", "extends": "amazon-main", "make": {"fill": 0.5}}, "less than the rule's minimum = 0.85"),
        ({"title": "x", "extends": "walmart", "make": {"canvas": "900x900"}}, "less than the rule's minimum = 1500"),
        ({"title": "x", "make": {"fill": 0.5}}, "recipe.shop.preset: with preset 'mine': fill needs a frame"),
        ({}, "preset.mine.title: is missing"),
        ({"title": "x", "rule": [{"kind": "dpi", "requirement": "x"}]}, "preset.mine.rule.0.minimum: is missing"),
        ({"title": "x", "rule": [{"kind": "format", "requirement": "x"}]}, "preset.mine.rule.0.one_of: is missing"),
        (
            {"title": "x", "rule": [{"kind": "dpi", "requirement": "x", "minimum": 2.0, "maximum": 1.0}]},
            "preset.mine.rule.0.minimum: 2 is more than maximum = 1",
        ),
        ({"title": "x", "rule": [{"kind": "wit", "requirement": "x"}]}, "preset.mine.rule.0.kind: must be one of"),
        ({"title": "x", "rule": "none"}, "preset.mine.rule: must be a list"),
        ("none", "preset.mine: write [preset.NAME]"),
    ],
)
def test_presets_that_cannot_be(preset: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(preset)
    assert any(told in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        ({"format": "jpeg"}, {"kind": "transparency", "one_of": ["some"]}),
        ({"content": "rgba", "format": "png"}, {"kind": "background"}),
        ({"content": "colour", "shadow": "cast"}, {"kind": "background"}),
        ({"canvas": "1000x1000", "fill": 0.9}, {"kind": "margin", "minimum": 0.2}),
        ({"canvas": "1000x1000", "margins": [0.1, 0.1, 0.1, 0.1]}, {"kind": "margin", "minimum": 0.2}),
        ({"canvas": "9000x9000"}, {"kind": "pixels", "maximum": 64_000_000.0}),
        ({"longest_side": 400}, {"kind": "longest_side", "minimum": 500.0}),
        ({"format": "jpeg", "bytes_maximum": 9000}, {"kind": "bytes", "maximum": 100.0}),
        ({"dpi": 72}, {"kind": "dpi", "minimum": 300.0}),
    ],
)
def test_a_rule_that_nothing_made_can_keep(make: dict[str, Any], rule: dict[str, Any]) -> None:
    preset = {"title": "x", "make": make, "rule": [rule | {"requirement": "x"}]}
    with pytest.raises(ConfigError, match=r"preset\.mine\.rule\.0\.kind"):
        config_with(preset)


def test_a_built_in_name_is_taken() -> None:
    with pytest.raises(ConfigError, match="comes with rmbgd"):
        parse({"preset": {"etsy": {"title": "x"}}})
