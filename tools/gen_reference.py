"""Generates config/rmbgd.toml, docs/reference.md and docs/schema/ from the source; --check says if they are up to date.

The reference lists settings, commands with their options, events, rejection reasons and exit statuses.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rmbgd.cli.main import COMMANDS, build_parser
from rmbgd.config.load import Config
from rmbgd.config.presets import Preset, Rule
from rmbgd.config.settings import Bucket, Deliverable, Folder, Look, Recipe
from rmbgd.errors import EXIT_TEXT, REASON_TEXT
from rmbgd.events import ENVELOPE, EVENTS
from tools import schema

REPOSITORY = Path(__file__).parents[1]
COMMAND = "python -m tools.gen_reference"
WIDTH = 118
SIZES = ((1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
HEADER = (
    "rmbgd: every setting at its default, with its unit, its bounds and its reason. Leave out what you do not change.",
    "`rmbgd check --config FILE` reports every problem of a file at once.",
)
# What has no default, or none that serves a service under systemd: the folders that systemd/tmpfiles.d makes.
EXAMPLES: dict[str, Any] = {
    "service.log_file": "/var/log/rmbgd/events.jsonl",
    "folder.name": "main",
    "folder.input": "/srv/rmbgd/in",
    "folder.output": "/srv/rmbgd/out",
    "folder.failed": "/srv/rmbgd/failed",
    "folder.done": "/srv/rmbgd/done",
}


def sections() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """(name in tables, heading in TOML, model) of every table, in the order of the file."""
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, f"[{name}]", field.annotation
    yield "recipe", "[recipe.default]", Recipe
    yield "preset", "[preset.NAME]", Preset
    yield "folder", "[[folder]]", Folder
    yield "bucket", "[[bucket]]", Bucket


def default_toml() -> str:
    blocks = [_comment(line) for line in HEADER]
    for name, heading, model in sections():
        if "NAME" in heading or model is Bucket:  # there is none by default
            continue
        blocks += ["", _comment(first_paragraph(model)), heading]
        for setting, field in model.model_fields.items():
            bounds = unit_and_bounds(field)
            blocks += [_comment(f"{field.description} [{bounds}]" if bounds else str(field.description))]
            if is_array_of_tables(field):
                blocks += [f"# [[{heading.strip('[]')}.{setting}]]"]
                continue
            value = EXAMPLES.get(f"{name}.{setting}", field.default)
            if value is PydanticUndefined:
                raise LookupError(f"{name}.{setting} has no default: add an example to EXAMPLES")
            # None is not set, and TOML has no word for that.
            blocks += [f"# {setting} =" if value is None else f"{setting} = {toml_value(value)}"]
    return "\n".join(blocks) + "\n"


def is_array_of_tables(field: FieldInfo) -> bool:
    return any(isinstance(each, type) and issubclass(each, BaseModel) for each in get_args(field.annotation))


def toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    if type(value) is int:
        return f"{value:_}"
    return json.dumps(value if isinstance(value, (bool, float)) else str(value), ensure_ascii=False)


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def unit_and_bounds(field: FieldInfo) -> str:
    return ", ".join(filter(None, (unit_of(field), bounds_of(field))))


def unit_of(field: FieldInfo) -> str:
    return str(field.json_schema_extra.get("unit", "")) if isinstance(field.json_schema_extra, dict) else ""


def bounds_of(field: FieldInfo) -> str:
    """The allowed values, in words: "1 to 60", "png, webp or tiff"."""
    forms = {"ge": "{}", "gt": "more than {}", "le": "{}", "lt": "less than {}"}
    pairs = [(key, getattr(constraint, key, None)) for key in forms for constraint in field.metadata]  # lower first
    if found := [forms[key].format(_number(bound, field)) for key, bound in pairs if bound is not None]:
        return " to ".join(found)
    *most, last = _choices(field.annotation) or [""]
    several = "any of " if last and get_origin(field.annotation) is list else ""
    return several + " or ".join(filter(None, (", ".join(most), last)))


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _number(value: float, field: FieldInfo) -> str:
    if unit_of(field) == "bytes":
        for size, name in SIZES:
            if value >= size and value % size == 0:
                return f"{int(value) // size} {name}"
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"


def reference() -> str:
    contents = "\n".join(f"- [{title}](#{title.lower().replace(' ', '-')})" for title in PARTS)
    parts = ["# Reference", f"Generated by `{COMMAND}`; a test compares it with the source.", contents]
    for title, make in PARTS.items():
        parts += [f"## {title}", *make()]
    return "\n\n".join(parts) + "\n"


def _settings() -> Iterator[str]:
    yield (
        "One TOML file, `/etc/rmbgd/rmbgd.toml`; [config/rmbgd.toml](../config/rmbgd.toml) holds every setting at its "
        "default. `[recipe.NAME]` and `[[folder]]` may be repeated. An unknown setting is an error."
    )
    nested: dict[str, type[BaseModel]] = {"[[recipe.NAME.deliver]]": Deliverable, "[[preset.NAME.rule]]": Rule}
    tables = [*sections(), *(("", heading, model) for heading, model in nested.items())]
    for _, heading, model in tables:
        yield f"### `{heading}`" + (", advanced" if heading == "[health]" else "")
        yield first_paragraph(model)
        rows = []
        for setting, field in model.model_fields.items():
            if model is Deliverable and setting in Look.model_fields:
                continue
            default = field.default
            shown = (
                "none"
                if default is None
                else "required"
                if default is PydanticUndefined
                else f"`{toml_value(default)}`"
            )
            rows.append((f"`{setting}`", shown, unit_and_bounds(field), str(field.description)))
        yield _table(("setting", "default", "unit, bounds", "reason"), rows)


def _commands() -> Iterator[str]:
    for name, text in COMMANDS.items():
        yield from _command(f"rmbgd {name}", text, subcommands(build_parser(name))[name])


def _command(name: str, text: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"### `{name}`"
    yield f"{text[0].upper()}{text[1:]}."
    rows = [
        (_spelling(action), (action.help or "") % {**vars(action), "prog": parser.prog})
        for action in parser._actions  # noqa: SLF001, argparse has no public list
        if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))  # noqa: SLF001, likewise
    ]
    if rows:
        yield _table(("option", "meaning"), rows)
    for each, sub in subcommands(parser).items():
        yield from _command(f"{name} {each}", (sub.description or "").removesuffix("."), sub)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))  # noqa: SLF001, likewise
    return next((dict(each.choices) for each in found), {})


def _spelling(action: argparse.Action) -> str:
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else ""
    value = choices or action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{value}`" + (" ..." if action.nargs in ("+", "*") else "")
    return ", ".join(f"`{flag}`" for flag in action.option_strings) + ("" if action.nargs == 0 else f" `{value}`")


def _events() -> Iterator[str]:
    yield (
        "One JSON object a line, to the journal (or standard output) and to `service.log_file`. "
        f"Every line has {_code(ENVELOPE)}. Keys with `?` may be absent. What to do about each event: "
        "[operations](operations.md#every-event-and-what-to-do). For programs: JSON Schema of "
        "[events](schema/event.schema.json), [status.json](schema/status.schema.json), "
        "[`<output>.json`](schema/cutout.schema.json) and [`<name>.error.json`](schema/failure.schema.json)."
    )
    events = [(f"`{name}`", kind.level, kind.meaning, _code(kind.keys) or "none") for name, kind in EVENTS.items()]
    yield _table(("event", "level", "meaning", "keys"), events)
    yield "Keys, with their meaning where the name does not say it:"
    meanings: dict[tuple[str, str], list[str]] = {}
    for name, kind in EVENTS.items():
        for key, meaning in kind.keys.items():
            if meaning:
                meanings.setdefault((f"`{key}`", meaning), []).append(name)
    rows = [(key, text, _code(names)) for (key, text), names in meanings.items()]
    yield _table(("key", "meaning", "of"), sorted(rows))


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


REASONS = "Why an image is rejected: `reason` of `image.failed`, of the sidecar `<name>.error.json`, and in the ledger."
PARTS: dict[str, Callable[[], Iterable[str]]] = {
    "Settings": _settings,
    "Commands": _commands,
    "Events": _events,
    "Reasons": lambda: [REASONS, _table(("reason", "meaning"), [(f"`{r}`", text) for r, text in REASON_TEXT.items()])],
    "Exit statuses": lambda: [_table(("exit status", "meaning"), [(str(int(n)), t) for n, t in EXIT_TEXT.items()])],
}
FILES: dict[str, Callable[[], str]] = {
    "config/rmbgd.toml": default_toml,
    "docs/reference.md": reference,
    **{f"docs/schema/{name}.schema.json": partial(schema.text, name) for name in schema.DOCUMENTS},
}


def outdated(root: Path = REPOSITORY) -> list[str]:
    """The generated files below `root` that differ from the source or are missing."""
    there = {name: (root / name).read_text(encoding="utf-8") for name in FILES if (root / name).exists()}
    return [name for name, make in FILES.items() if there.get(name) != make()]


def main(arguments: Sequence[str] | None = None, root: Path = REPOSITORY) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    check, names = parser.parse_args(arguments).check, outdated(root)
    for name in names:
        if check:
            print(f"{name} is out of date: run `{COMMAND}` and commit the result", file=sys.stderr)
        else:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(FILES[name](), encoding="utf-8")
    return int(check and bool(names))


if __name__ == "__main__":
    sys.exit(main())
