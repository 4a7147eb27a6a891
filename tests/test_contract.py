"""The contract with users, frozen in tests/contract/: what scripts, dashboards and upgrades depend on stays as it is.

`python -m tests.test_contract` writes the files anew. Whoever changes the contract on purpose does that, and the diff
shows a reviewer what users will meet. `sentences.json` holds prose (meanings, reasons, help), which may be reworded.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic_core import PydanticUndefined

from rmbgd.cli import main as cli
from rmbgd.clock import SystemClock
from rmbgd.errors import EXIT_TEXT, REASON_TEXT, Exit, Reason
from rmbgd.events import ENVELOPE, EVENTS
from rmbgd.store.ledger import Ledger
from tools import gen_reference

REPOSITORY = Path(__file__).parents[1]
FROZEN = REPOSITORY / "tests" / "contract"
COMMANDS = [["run"], ["once"], ["check"], ["status"], ["doctor"], ["bench"], ["mtbf"], ["models"]]
COMMANDS += [["models", action] for action in ("list", "fetch", "accept", "verify", "optimize")]


def events() -> dict[str, Any]:
    return {
        "envelope": list(ENVELOPE),
        "events": {name: {"level": kind.level, "keys": list(kind.keys)} for name, kind in EVENTS.items()},
    }


def settings() -> dict[str, Any]:
    return {
        f"{name}.{key}": _setting(field)
        for name, _, model in gen_reference.sections()
        for key, field in model.model_fields.items()
    }


def _setting(field: Any) -> dict[str, Any]:
    default = "required" if field.default is PydanticUndefined else field.default
    return {
        "default": default if isinstance(default, (bool, int, float, str, list, type(None))) else str(default),
        "type": _type(field.annotation),
        "unit": field.json_schema_extra["unit"],
        "bounds": [
            f"{key} {getattr(each, key)}"
            for each in field.metadata
            for key in ("ge", "gt", "le", "lt")
            if hasattr(each, key)
        ],
    }


def _type(annotation: Any) -> str:
    if get_origin(annotation) is None:
        return annotation.__name__ if isinstance(annotation, type) else repr(annotation)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:  # the validators behind it are functions, and refuse what tests try
        return _type(arguments[0])
    return f"{get_origin(annotation).__name__}[{', '.join(_type(argument) for argument in arguments)}]"


def reasons() -> list[str]:
    return [str(reason) for reason in Reason]


def exit_statuses() -> dict[str, int]:
    return {status.name: int(status) for status in Exit}


def command_line() -> dict[str, Any]:
    """Options, metavars, choices and defaults of every command, from the parsers that print its help."""
    return {" ".join(command): [_option(action) for action in actions] for command, actions in _parsers()}


def _option(action: argparse.Action) -> dict[str, Any]:
    choices = action.choices if action.choices is None else [str(choice) for choice in action.choices]
    default = (
        action.default if isinstance(action.default, (bool, int, float, list, type(None))) else str(action.default)
    )
    return {
        "names": list(action.option_strings) or action.dest,
        "metavar": str(action.metavar) if action.metavar else None,
        "choices": choices,
        "default": default,
        "required": action.required,
        "nargs": action.nargs,
    }


def _parsers() -> list[tuple[list[str], list[argparse.Action]]]:
    found: list[tuple[list[str], list[argparse.Action]]] = []
    with pytest.MonkeyPatch.context() as patch:
        seen: list[argparse.ArgumentParser] = []
        patch.setattr(argparse.ArgumentParser, "print_help", lambda parser, _file=None: seen.append(parser))
        for command in ([], *COMMANDS):
            with pytest.raises(SystemExit):
                cli.main([*command, "--help"])
            found.append((command, seen.pop()._actions))
    return found


def ledger_schema() -> dict[str, Any]:
    """Tables and indexes as SQLite keeps them, without comments and spaces."""
    ledger = Ledger(Path(":memory:"), SystemClock())
    try:
        connection = ledger._database._connection
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        ledger.close()
    return {"version": version, "tables": {name: " ".join(re.sub(r"--[^\n]*", "", sql).split()) for name, sql in rows}}


def unit_files() -> dict[str, list[str]]:
    """What systemd, logrotate and their like read, without comments."""
    folder = REPOSITORY / "systemd"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): [
            line
            for raw in path.read_text(encoding="utf-8").splitlines()
            if (line := raw.strip()) and line[0] not in "#;"
        ]
        for path in files
    }


def sentences() -> dict[str, Any]:
    """Prose: may be reworded, here and in the source together."""
    fields = {
        f"{name}.{key}": field
        for name, _, model in gen_reference.sections()
        for key, field in model.model_fields.items()
    }
    return {
        "events": {name: {"meaning": kind.meaning, "keys": kind.keys} for name, kind in EVENTS.items()},
        "settings": {name: field.description for name, field in fields.items()},
        "reasons": {str(reason): text for reason, text in REASON_TEXT.items()},
        "exit_statuses": {status.name: text for status, text in EXIT_TEXT.items()},
        "help": {
            " ".join(command): {action.dest: action.help for action in actions} for command, actions in _parsers()
        },
    }


PARTS: dict[str, Callable[[], Any]] = {
    "events": events,
    "settings": settings,
    "reasons": reasons,
    "exit_statuses": exit_statuses,
    "command_line": command_line,
    "ledger_schema": ledger_schema,
    "unit_files": unit_files,
    "sentences": sentences,
}


def _text(part: str) -> str:
    return json.dumps(PARTS[part](), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("part", PARTS)
def test_contract_is_kept(part: str) -> None:
    """What users see under these names does not change by accident."""
    assert (FROZEN / f"{part}.json").read_text(encoding="utf-8") == _text(part)


if __name__ == "__main__":
    for each in PARTS:
        (FROZEN / f"{each}.json").write_text(_text(each), encoding="utf-8")
