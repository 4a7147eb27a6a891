"""Presets of marketplaces: settings of a file, and the rules that it must keep; built in, or of the configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar

from rmbgd.config.settings import Look, Settings, setting

Kind = Literal[
    "format", "longest_side", "shortest_side", "pixels", "aspect", "fill", "margin", "centred", "border", "background",
    "transparency", "profile", "dpi", "bytes", "enlargement",
]  # fmt: skip
LookT = TypeVar("LookT", bound=Look)


class RuleSource(Settings):
    """Where a rule was read."""

    title: str = setting(reason="of the page, as it calls itself")
    date: str = setting(unit="YYYY-MM-DD", reason="when that page was written or last changed, as far as it says so")
    url: str = setting("", reason="where it was")


class Rule(Settings):
    """One thing that a finished file must keep; `rmbgd presets show` lists them."""

    kind: Kind = setting(reason="what is measured")
    requirement: str = setting(reason="in the words of people")
    minimum: float | None = setting(None, unit="of the kind", ge=0, le=1e12, reason="least value that passes")
    maximum: float | None = setting(None, unit="of the kind", ge=0, le=1e12, reason="largest value that passes")
    one_of: list[str] = setting([], unit="words", reason="values that pass, where they are words")
    source: RuleSource | None = setting(None, reason="where this rule was read, if not where the preset's others were")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            yield [("minimum",), ("maximum",)], f"{self.minimum:g} is more than maximum = {self.maximum:g}"
        if self.kind in ("format", "profile", "transparency") and not self.one_of:
            yield [("one_of",), ("kind",)], f"is missing: say which values a rule of kind {self.kind} accepts"
        needs = self.kind not in ("format", "profile", "transparency", "border", "background")
        if needs and self.minimum is None and self.maximum is None:
            yield [("minimum",), ("kind",)], f"is missing, and so is maximum: a rule of kind {self.kind} needs one"


class Make(Look):
    """Settings that a preset brings; what they contradict is looked at where they meet those of a file."""

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        return iter(())


class Preset(Settings):
    """Settings and rules of a marketplace; a recipe or one of its files takes them by name."""

    title: str = setting(reason="what it is for")
    extends: str = setting(
        "", reason="take settings and rules of another preset first; own rules replace those of their kind"
    )
    source: RuleSource | None = setting(None, reason="where its rules were read; none: rules of our own")
    make: Make = setting(Make(), reason="settings of a file, as in a recipe")
    rule: list[Rule] = setting([], reason="what the finished file must keep, one [[preset.NAME.rule]] for each")

    def contradictions(self) -> Iterator[tuple[Sequence[tuple[int | str, ...]], str]]:
        if self.make.preset:
            yield [("make", "preset")], "a preset is built on another by `extends`; use that"
        for number, rule in enumerate(self.rule):
            if isinstance(rule, Rule) and (text := _impossible(rule, self.make)):
                yield [("rule", number, "kind")], text

    def rule_of(self, kind: Kind) -> Rule | None:
        return next((rule for rule in self.rule if rule.kind == kind), None)


def _impossible(rule: Rule, make: Look) -> str:
    """Why no file that `make` describes keeps the rule."""
    if rule.kind == "format" and rule.one_of and make.format not in rule.one_of and "format" in make.model_fields_set:
        return f"make.format = {make.format} is none of {', '.join(rule.one_of)}"
    if rule.kind == "transparency" and rule.one_of == ["some"] and (make.flat or make.content != "rgba"):
        return f"make.format = {make.format} and make.content = {make.content} leave nothing transparent"
    if rule.kind == "background" and make.shadow != "off":
        return "make.shadow darkens the background; leave one of them out"
    if rule.kind == "background" and "content" in make.model_fields_set and not make.flat:
        return f"make.content = {make.content} in {make.format} lays nothing on the background"
    value = _made(rule.kind, make)
    if value is None:
        return ""
    if rule.minimum is not None and value < rule.minimum:
        return f"make gives {value:g}, less than the rule's minimum = {rule.minimum:g}"
    if rule.maximum is not None and value > rule.maximum:
        return f"make gives {value:g}, more than the rule's maximum = {rule.maximum:g}"
    return ""


def _made(kind: Kind, make: Look) -> float | None:
    """What `make` is sure to give of what the rule measures; None where that depends on the image."""
    if make.canvas and kind in ("longest_side", "shortest_side", "pixels", "aspect"):
        width, height = (int(side) for side in make.canvas.split("x"))
        sides = {"longest_side": max(width, height), "shortest_side": min(width, height), "pixels": width * height}
        return sides.get(kind, width / height)
    if kind == "margin" and (make.fill or make.margins):
        return min(make.margins) if make.margins else (1 - make.fill) / 2
    settings = {"fill": make.fill, "dpi": make.dpi, "bytes": make.bytes_maximum, "longest_side": make.longest_side}
    return settings.get(kind) or None


@cache
def built_in() -> Mapping[str, Preset]:
    """Those that come with the package, by name, each with what it extends."""
    files = sorted(resources.files("rmbgd.deliver").joinpath("presets").iterdir(), key=lambda file: file.name)
    found = {
        file.name.removesuffix(".toml"): Preset.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        for file in files
        if file.name.endswith(".toml")
    }
    return {name: extended(name, found) for name in found}


def extended(name: str, presets: Mapping[str, Preset], below: tuple[str, ...] = ()) -> Preset:
    """The preset with everything of those that it extends. Raises KeyError with a sentence."""
    preset = presets[name]
    if not preset.extends:
        return preset
    if preset.extends == name or preset.extends in below:
        raise KeyError(f"extends itself, by way of {' and '.join(map(repr, (*below, name)))}")
    if preset.extends not in presets:
        raise KeyError(f"extends '{preset.extends}', which is no preset; there is {', '.join(sorted(presets))}")
    base = extended(preset.extends, presets, (*below, name))
    kinds = {rule.kind for rule in preset.rule}
    rules = [*(rule for rule in base.rule if rule.kind not in kinds), *preset.rule]
    make = Make.model_validate(own_settings(base.make) | own_settings(preset.make))
    return Preset(title=preset.title, source=preset.source or base.source, make=make, rule=rules)


def own_settings(look: Look) -> dict[str, Any]:
    """What was set, not what is default."""
    return {name: getattr(look, name) for name in look.model_fields_set}


def resolve(look: LookT, presets: Mapping[str, Preset]) -> LookT:
    """The look with the settings of its preset under its own. Raises KeyError, ValidationError."""
    if not look.preset:
        return look
    return type(look).model_validate(own_settings(presets[look.preset].make) | own_settings(look))
