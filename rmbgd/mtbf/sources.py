"""Which files hold the log of which machine, oldest first: from what was named on the command line.

Does not open them. A machine's own name, where its lines carry one, is found out later, in ingest.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmbgd.errors import RmbgdError

STANDARD_INPUT = Path("-")

LOG_NAME = re.compile(r"\.(jsonl|ndjson|json|log)([-._][\w.-]*)?$", re.IGNORECASE)
COMPRESSION = re.compile(r"\.(gz|bz2|xz|lzma)$", re.IGNORECASE)
EXTENSION = re.compile(r"\.(jsonl|ndjson|json|log|txt)$", re.IGNORECASE)
NUMBER = re.compile(r"\.(\d{1,4})$")
DATE = re.compile(r"[-._](\d{4}-?\d{2}-?\d{2}(?:[-T_.]?\d{2,6}(?::\d{2})*)?)(?=$|\.)")

NAMES_OF_NOBODY = frozenset({"rmbgd", "events", "event", "log", "logs", "messages", "journal", "export"})
"""File names that say nothing of the machine: its folder's name is taken instead."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one machine, oldest first. `given`: the operator named it, so what the lines say does not count."""

    device: str
    given: bool
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a file's name says: the log it is a part of, and its place among the parts, oldest first."""

    stem: str
    place: tuple[int, int, str]


def rotation(name: str) -> Rotation:
    """rmbgd.jsonl.2.gz, rmbgd.jsonl-20260131.gz, rmbgd-20260131.jsonl are parts of `rmbgd`; the bare one is newest."""
    bare = COMPRESSION.sub("", name)
    if number := NUMBER.search(bare):
        stem, place = bare[: number.start()], (0, -int(number[1]), "")
    elif date := DATE.search(bare):
        stem, place = bare[: date.start()] + bare[date.end() :], (0, 0, re.sub(r"\D", "", date[1]))
    else:
        stem, place = bare, (1, 0, "")
    return Rotation(EXTENSION.sub("", stem), place)


def gather(arguments: Sequence[str], pattern: str | None = None) -> list[Source]:
    """The sources that the arguments name. Raises RmbgdError for what is not there or matches nothing.

    An argument is a file, a folder (searched whole), or `-` for standard input; `NAME=` before it names the machine.
    `pattern` is a regular expression: its first group, or the whole match, found in a file's path, names the machine.
    """
    expression = _compiled(pattern)
    found: dict[tuple[str, bool], list[Path]] = {}
    for argument in arguments:
        given, path = _split(argument)
        for file, guess in _files(path):
            name = given or (_named(expression, file) if expression else guess)
            files = found.setdefault((name, bool(given or expression)), [])
            if file not in files:
                files.append(file)
    return [Source(device, given, tuple(_oldest_first(files))) for (device, given), files in found.items()]


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RmbgdError(f"--device '{pattern}' is no regular expression: {error}") from error


def _split(argument: str) -> tuple[str, Path]:
    """(name or "", path). A path that exists is a path, whatever it holds."""
    name, equals, rest = argument.partition("=")
    if equals and name and "/" not in name and not os.path.exists(argument):
        return name, Path(rest)
    return "", Path(argument)


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, the machine's name as far as the path tells)."""
    if path == STANDARD_INPUT:
        return [(path, "standard input")]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and LOG_NAME.search(file.name)]
        if not files:
            raise RmbgdError(f"{path}: no log in this folder; logs end in .jsonl, .json or .log, rotated or compressed")
        return [(file, _guess(file, path)) for file in files]
    if not path.exists():
        raise RmbgdError(f"{path}: no such file; name the log_file of the configuration, or a folder of such files")
    return [(path, _guess(path, None))]


def _guess(file: Path, root: Path | None) -> str:
    """A folder per machine, or a file per machine, whichever the path looks like."""
    if root is not None and len(below := file.relative_to(root).parts) > 1:
        return below[0]
    stem = rotation(file.name).stem
    if stem.lower() not in NAMES_OF_NOBODY:
        return stem
    return file.resolve().parent.name or stem


def _named(expression: re.Pattern[str], file: Path) -> str:
    match = expression.search(str(file))
    if match is None or not (name := match[1] if expression.groups else match[0]):
        raise RmbgdError(f"{file}: --device '{expression.pattern}' finds no name in this path")
    return name


def _oldest_first(files: list[Path]) -> list[Path]:
    """Parts of one log in order; different logs one after the other, by name."""

    def place(file: Path) -> tuple[str, str, tuple[int, int, str]]:
        parts = rotation(file.name)
        return str(file.parent), parts.stem, parts.place

    return sorted(files, key=place)
