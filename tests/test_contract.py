"""The contract with users, frozen in tests/contract/: what scripts, dashboards and upgrades depend on stays as it is.

`python -m tests.test_contract` writes the files anew. Whoever changes the contract on purpose does that, and the diff
shows a reviewer what users will meet. `sentences.json` holds prose (meanings, reasons, help), which may be reworded.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from contextlib import closing
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
COMMANDS = ["init", "run", "watch", "service", "once", "check", "status", "list", "retry", "pause", "resume", "report"]
COMMANDS += ["review", "doctor", "ledger", "hooks", "models", "presets", "eval", "mtbf", "bench", "completion", "help"]
COMMANDS += ["announce", "backfill", "fleet"]
COMMANDS += [f"fleet {action}" for action in ("setup", "status", "drain", "resume", "sweep", "retry-dead")]
COMMANDS += ["fleet keys", "fleet check-broker"]
COMMANDS += [f"service {action}" for action in ("install", "uninstall")]
COMMANDS += [f"presets {action}" for action in ("list", "show", "check")]
COMMANDS += [f"models {action}" for action in ("list", "fetch", "accept", "verify", "optimize")]
COMMANDS += [f"review {action}" for action in ("list", "approve", "reject", "export")]
COMMANDS += [f"ledger {action}" for action in ("check", "backup", "restore")]
BOUNDS = ("ge", "gt", "le", "lt")


def events() -> dict[str, Any]:
    kinds = {name: {"level": kind.level, "keys": list(kind.keys)} for name, kind in EVENTS.items()}
    return {"envelope": list(ENVELOPE), "events": kinds}


def _fields() -> dict[str, Any]:
    models = {name: model for name, _, model in gen_reference.sections()}
    return {f"{name}.{key}": field for name, model in models.items() for key, field in model.model_fields.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else str(value)


def settings() -> dict[str, Any]:
    found = {}
    for name, field in _fields().items():
        bounds = [(key, getattr(each, key)) for each in field.metadata for key in BOUNDS if hasattr(each, key)]
        found[name] = {
            "default": "required" if field.default is PydanticUndefined else _plain(field.default),
            "type": _type(field.annotation),
            "unit": field.json_schema_extra["unit"],
            "bounds": [f"{key} {bound}" for key, bound in bounds],
        }
    return found


def _type(annotation: Any) -> str:
    if get_origin(annotation) is None:
        return annotation.__name__ if isinstance(annotation, type) else repr(annotation)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:  # the validators behind it are functions, and refuse what tests try
        return _type(arguments[0])
    return f"{get_origin(annotation).__name__}[{', '.join(_type(argument) for argument in arguments)}]"


def command_line() -> dict[str, Any]:
    """Options, metavars, choices and defaults of every command, from the parsers that print its help."""
    return {command: [_option(action) for action in actions] for command, actions in _parsers().items()}


def _option(action: argparse.Action) -> dict[str, Any]:
    return {
        "names": list(action.option_strings) or action.dest,
        "metavar": str(action.metavar) if action.metavar else None,
        "choices": action.choices and [str(choice) for choice in action.choices],
        "default": _plain(action.default),
        "required": action.required,
        "nargs": action.nargs,
    }


def _parsers() -> dict[str, list[argparse.Action]]:
    """Of each command, and of the program itself under no name."""
    seen: list[argparse.ArgumentParser] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", lambda parser, _file=None: seen.append(parser))
        for command in ("", *COMMANDS):
            with pytest.raises(SystemExit):
                cli.main([*command.split(), "--help"])
    return {command: parser._actions for command, parser in zip(("", *COMMANDS), seen, strict=True)}


def ledger_schema() -> dict[str, Any]:
    """Tables and indexes as SQLite keeps them, without comments and spaces."""
    with closing(Ledger(Path(":memory:"), SystemClock())) as ledger:
        connection = ledger.database._connection
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    return {"version": version, "tables": {name: " ".join(re.sub(r"--[^\n]*", "", sql).split()) for name, sql in rows}}


def unit_files() -> dict[str, list[str]]:
    """What systemd, logrotate and their like read, without comments."""
    folder = REPOSITORY / "systemd"
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
        found[str(path.relative_to(folder))] = [line for line in lines if line and line[0] not in "#;"]
    return found


def sentences() -> dict[str, Any]:
    return {
        "events": {name: {"meaning": kind.meaning, "keys": kind.keys} for name, kind in EVENTS.items()},
        "settings": {name: field.description for name, field in _fields().items()},
        "reasons": {str(reason): text for reason, text in REASON_TEXT.items()},
        "exit_statuses": {status.name: text for status, text in EXIT_TEXT.items()},
        "help": {command: {action.dest: action.help for action in actions} for command, actions in _parsers().items()},
    }


PARTS: dict[str, Callable[[], Any]] = {
    "reasons": lambda: [str(reason) for reason in Reason],
    "exit_statuses": lambda: {status.name: int(status) for status in Exit},
    **{part.__name__: part for part in (events, settings, command_line, ledger_schema, unit_files, sentences)},
}


def _text(part: str) -> str:
    return json.dumps(PARTS[part](), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("part", PARTS)
def test_contract_is_kept(part: str) -> None:
    assert (FROZEN / f"{part}.json").read_text(encoding="utf-8") == _text(part)


if __name__ == "__main__":
    for each in PARTS:
        (FROZEN / f"{each}.json").write_text(_text(each), encoding="utf-8")
