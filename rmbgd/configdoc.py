"""The reference made from the source: the commented default configuration, and the tables of README.md.

`python -m rmbgd.configdoc` prints the configuration; with `--readme FILE` it renews what stands between the markers of
that file. Does not load or check a configuration: config.py does.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rmbgd import errors, events
from rmbgd.config import load as config
from rmbgd.errors import EXIT_TEXT

WIDTH = 118
SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

HEADER = """\
rmbgd: every setting at its default, with its unit, its bounds and its reason. Leave out what you do not change.
`rmbgd check --config FILE` tells everything that is wrong with a file, at once.
"""

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
    for name, field in config.Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, f"[{name}]", field.annotation
    yield "recipe", "[recipe.default]", config.Recipe
    yield "folder", "[[folder]]", config.Folder


def default_toml() -> str:
    """The whole configuration as a commented TOML file."""
    blocks = [_comment(line) for line in HEADER.splitlines()]
    for name, heading, model in sections():
        blocks += ["", _comment(_first_paragraph(model)), heading]
        for setting, field in model.model_fields.items():
            blocks += [_comment(_reason(field)), _assignment(name, setting, field)]
    return "\n".join(blocks) + "\n"


def _assignment(table: str, setting: str, field: FieldInfo) -> str:
    value = EXAMPLES.get(f"{table}.{setting}", field.default)
    if value is PydanticUndefined:
        raise LookupError(f"{table}.{setting} has no default: add an example to EXAMPLES")
    if value is None:
        return f"# {setting} ="  # not set, and TOML has no word for that
    return f"{setting} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _reason(field: FieldInfo) -> str:
    bounds = ", ".join(part for part in (_unit(field), _bounds(field)) if part)
    return f"{field.description} [{bounds}]" if bounds else str(field.description)


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def _bounds(field: FieldInfo) -> str:
    """The allowed values, in words: "1 to 60", "png, webp or tiff"."""
    low = high = ""
    for constraint in field.metadata:
        for key, form in (("ge", "{}"), ("gt", "more than {}")):
            if (bound := getattr(constraint, key, None)) is not None:
                low = form.format(_number(bound, field))
        for key, form in (("le", "{}"), ("lt", "less than {}")):
            if (bound := getattr(constraint, key, None)) is not None:
                high = form.format(_number(bound, field))
    if low or high:
        return f"{low} to {high}" if low and high else low or high
    choices = _choices(field.annotation)
    if choices:
        several = "any of " if get_origin(field.annotation) is list else ""
        return several + ", ".join(choices[:-1]) + (" or " if len(choices) > 1 else "") + choices[-1]
    return ""


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _number(value: float, field: FieldInfo) -> str:
    if _unit(field) == "bytes":
        for size, name in SIZES:
            if value >= size and value % size == 0:
                return f"{int(value) // size} {name}"
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"


# --- README


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _events() -> str:
    rows = []
    for name, kind in events.EVENTS.items():
        keys = ", ".join(f"`{key}`" for key in kind.keys)
        rows.append((f"`{name}`", kind.level, kind.meaning, keys or "none"))
    every = ", ".join(f"`{key}`" for key in events.ENVELOPE)
    return f"Every line has {every}. Keys with `?` may be absent.\n\n" + _table(
        ("event", "level", "meaning", "keys"), rows
    )


def _reasons() -> str:
    return _table(("reason", "meaning"), [(f"`{reason}`", text) for reason, text in errors.REASON_TEXT.items()])


def _exit_codes() -> str:
    return _table(("exit status", "meaning"), [(str(int(code)), text) for code, text in EXIT_TEXT.items()])


def _settings() -> str:
    rows = []
    for _, heading, model in sections():
        for setting, field in model.model_fields.items():
            default = field.default
            shown = "none" if default is None else "required" if default is PydanticUndefined else f"`{_toml(default)}`"
            bounds = ", ".join(part for part in (_unit(field), _bounds(field)) if part)
            rows.append((f"`{heading}` `{setting}`", shown, bounds, str(field.description)))
    return _table(("setting", "default", "unit, bounds", "reason"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "events": _events,
    "reasons": _reasons,
    "exit codes": _exit_codes,
    "settings": _settings,
}


def renewed(readme: str) -> str:
    """`readme` with every table between `<!-- NAME -->` and `<!-- end NAME -->` made anew.

    Raises LookupError when the markers of a table are missing.
    """
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        readme, count = pattern.subn(partial(_between, make()), readme)
        if count != 1:
            raise LookupError(f"README needs '<!-- {name} -->' and '<!-- end {name} -->' once; found {count}")
    return readme


def _between(table: str, markers: re.Match[str]) -> str:
    return f"{markers[1]}{table}\n{markers[2]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rmbgd.configdoc", description=__doc__)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="renew the tables of this file instead")
    options = parser.parse_args(arguments)
    if options.readme is None:
        sys.stdout.write(default_toml())
    else:
        options.readme.write_text(renewed(options.readme.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
