"""Says in words what is wrong with a setting, and where in the file it stands."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from rmbgd.config.toml_places import Location, Places, Span
from rmbgd.errors import ConfigProblem
from rmbgd.wording import did_you_mean

NOTATION = "`rmbgd check --print-default` shows how to write it"
VALUE_SHOWN = 60  # characters
BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("more than", "gt"),
    "less_than": ("less than", "lt"),
}
TYPES = {  # pydantic's names for a value of another type -> what it must be
    "bool_type": "must be true or false, without quotes",
    "string_type": "must be a text, in quotes",
    "path_type": "must be a path, in quotes",
    "finite_number": "must be a number, and not infinite",
}
NUMBERS: dict[str, tuple[Callable[[str], float], str]] = {
    "int_type": (int, "a whole number"),
    "float_type": (float, "a number"),
}
SYNTAX = {  # what tomllib says of common mistakes -> what to do
    "Invalid value": "this is no value; write texts and paths in quotes",
    "Cannot overwrite a value": "this is set twice; keep one of them",
    "Expected newline or end of document after a statement": "this does not belong here; write one setting a line",
}
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One problem with what stands at `location`; of its key rather than its value when `key` is true."""

    location: Location
    text: str
    key: bool = False


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file as it was read: `tables` are what tomllib made of it."""

    path: Path
    tables: dict[str, Any]
    places: Places

    def problems(self, mistakes: Iterable[Mistake]) -> list[str]:
        """Each mistake with its line, in the order of the file; those of no line last."""
        spans = [(self.places.find(each.location, key=each.key), each) for each in mistakes]
        spans.sort(key=lambda pair: pair[0][0] if pair[0] else len(self.places.text))
        return [self._problem(each, span) for span, each in spans]

    def _problem(self, mistake: Mistake, span: Span | None) -> ConfigProblem:
        table, setting = _names(mistake.location, self.tables)
        return located(self.path, self.places, span, mistake.text, table=table, setting=setting)


def located(path: Path, places: Places, span: Span | None, text: str, **names: str) -> ConfigProblem:
    """`names` are the table and the setting."""
    line, column = places.position(span[0]) if span else (None, None)
    parts = {"file": str(path), "line": line, "column": column, "table": None, "setting": None} | names
    return ConfigProblem(parts | {"problem": text}, places.excerpt(span) if span else ())


def syntax_problem(path: Path, text: str, error: Exception) -> ConfigProblem:
    """What tomllib said of `text`."""
    at, reason, offset = _AT.search(str(error)), _AT.sub("", str(error)), max(len(text.rstrip()) - 1, 0)
    if at and at[1]:
        offset = sum(len(line) + 1 for line in text.split("\n")[: int(at[1]) - 1]) + int(at[2]) - 1
    reason = re.sub(r"\('([^)]*)',?\)", lambda match: f"[{match[1].replace(chr(39) + ', ' + chr(39), '.')}]", reason)
    reason = SYNTAX.get(reason, f"{reason[:1].lower()}{reason[1:]}")
    return located(path, Places(text), (offset, offset + 1), f"not TOML: {reason}; {NOTATION}")


def _names(location: Location, tables: Mapping[str, Any]) -> tuple[str, str]:
    """(heading, setting) as a person finds them in the file."""
    match location:
        case ("folder" | "bucket" as kind, int(number), *rest):
            content = tables.get(kind)
            name = content[number].get("name") if isinstance(content, list) and _is_table(content, number) else None
            table = f'[[{kind}]] "{name}"' if isinstance(name, str) else f"[[{kind}]] number {number + 1}"
        case ("recipe" | "preset" as kind, name, str(array), int(number), *rest):
            table = f"[[{kind}.{name}.{array}]] number {number + 1}"
        case ("recipe" | "preset" as kind, name, *rest):
            table = f"[{kind}.{name}]"
        case (name, *rest):
            table = f"[{name}]"
        case _:
            return "", ""
    return table, ".".join(str(part) for part in rest if isinstance(part, str))


def _is_table(content: list[Any], number: int) -> bool:
    return number < len(content) and isinstance(content[number], Mapping)


def dotted(mistake: Mistake) -> str:
    """For settings that come from no file."""
    where = ".".join(str(part) for part in mistake.location)
    return f"{where}: {mistake.text}" if where else mistake.text


def unknown(location: Location, known: Collection[str]) -> Mistake:
    hint = did_you_mean(str(location[-1]), known) or f"known here: {', '.join(sorted(known))}"
    return Mistake(location, f"unknown setting; {hint}", key=True)


def no_table(location: Location) -> Mistake:
    """How to write the table at `location`, where something else stands."""
    text = f"write [{location[0]}], with one bracket and once, above its settings"
    match location:
        case ("folder" | "bucket" as kind, *_):
            text = f"write [[{kind}]] with two brackets above the settings of each {kind}: there may be several"
        case ("recipe" | "preset" as kind, name, str(array), *_):
            text = f"write [[{kind}.{name}.{array}]] with two brackets above the settings of each: there may be several"
        case ("preset", *_):
            text = "write [preset.NAME] above the settings of a preset"
        case ("recipe", *_):
            text = "write [recipe.NAME] above the settings of a recipe, such as [recipe.default]"
    return Mistake(location, text, key=True)


def mistakes_of(entry: ErrorDetails, table: Location, fields: Mapping[str, FieldInfo]) -> list[Mistake]:
    """What pydantic found in one setting of `table`, in our words: not one of its own sentences is passed on."""
    location = (*table, *entry["loc"])
    if entry["type"] == "extra_forbidden":
        return [unknown(location, fields)]
    name = str(entry["loc"][0])
    field = fields[name]
    if entry["type"] == "missing":
        return [Mistake(location, f'is missing; write {name} = "..." ({field.description})')]
    if entry["type"] == "value_error":
        return [Mistake(location, line) for line in str(entry["ctx"]["error"]).splitlines()]
    shown = f" (is {_shown(entry['input'])})" if not isinstance(entry["input"], (dict, list)) else ""
    text, hint = _must(entry, name, field)
    return [Mistake(location, f"{text}{shown}{hint and f'; {hint}'}")]


def _must(entry: ErrorDetails, name: str, field: FieldInfo) -> tuple[str, str]:
    """(what it must be, a hint)."""
    kind, value = entry["type"], entry["input"]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unit, hint = str(extra.get("unit", "")), ""
    if kind in BOUNDS:
        words, key = BOUNDS[kind]
        bound = entry["ctx"][key]
        number = f"{int(bound) if bound == int(bound) else bound:_}"
        return f"must be {words} {number}{f' {unit}' if unit in ('s', 'bytes', '°C') else ''}", ""
    if kind in NUMBERS:
        make, what = NUMBERS[kind]
        if isinstance(value, str) and len(value) < VALUE_SHOWN:
            with contextlib.suppress(ValueError):
                hint = f"write {name} = {make(value):_}"
        like = ', like 0.1 or "10%"' if unit.startswith(("share", "of ")) else ", without quotes"
        return f"must be {what}{like}", hint
    if kind == "list_type":
        default = field.default if field.default not in (None, PydanticUndefined, []) else ["..."]
        return "must be a list in brackets", f"write it like {name} = {json.dumps(default)}"
    if choices := [str(choice) for choice in _choices(field.annotation)]:
        return f"must be one of {', '.join(choices)}", did_you_mean(str(value).lower(), choices)
    return TYPES.get(kind, "cannot be used"), "" if kind in TYPES else NOTATION


def _choices(annotation: Any) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _shown(value: object) -> str:
    """As TOML has it, and short."""
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}..."
