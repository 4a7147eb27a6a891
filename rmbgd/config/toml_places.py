"""Finds line and column of every table, key and value in TOML text, which tomllib does not keep.

Reads text that tomllib has accepted. Where the two disagree, a place is left out: no place is better than a wrong one.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Location = tuple[int | str, ...]  # keys and list indices from the top: ("folder", 0, "input")
Span = tuple[int, int]  # offsets of the first character and behind the last

EXCERPT = 100  # characters of a line that are shown
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|' + r"'''.*?'''(?:'{0,2})|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'", re.DOTALL
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[^,\[\]{}#\r\n\"']+")  # numbers, booleans, dates


@dataclass(frozen=True, slots=True)
class Places:
    text: str
    headings: dict[Location, Span] = field(default_factory=dict)
    keys: dict[Location, Span] = field(default_factory=dict)
    values: dict[Location, Span] = field(default_factory=dict)

    def find(self, location: Location, *, key: bool = False) -> Span | None:
        """The value at `location`, or its key; else the closest table around it."""
        if not key and location in self.values:
            return self.values[location]
        for length in range(len(location), 0, -1):
            for found in (self.keys, self.headings, self.values):
                if location[:length] in found:
                    return found[location[:length]]
        return None

    def position(self, offset: int) -> tuple[int, int]:
        """(line, column), both from 1."""
        return self.text.count("\n", 0, offset) + 1, offset - self.text.rfind("\n", 0, offset)

    def excerpt(self, span: Span) -> tuple[str, str]:
        """The line in which `span` begins, and carets below as much of it as is there."""
        begin = self.text.rfind("\n", 0, span[0]) + 1
        line = self.text[begin:].split("\n", 1)[0].rstrip()
        start = min(span[0] - begin, len(line))
        end = min(max(span[1] - begin, start + 1), max(len(line), start + 1))
        cut = max(len(line) - len(line.lstrip()), start - EXCERPT // 2) if start else 0
        shown = "".join(c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)
        before, marked = shown[cut:start], shown[start : min(end, cut + EXCERPT)]
        return shown[cut : cut + EXCERPT], " " * _width(before) + "^" * max(_width(marked), 1)


def _width(text: str) -> int:
    """Columns on a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def locate(text: str, tables: Mapping[str, Any]) -> Places:
    """Places in `text`, whose content tomllib read as `tables`."""
    scanner = _Scanner(text)
    with contextlib.suppress(_LostError, RecursionError):  # what was found before is right
        scanner.document()
    found = scanner.places
    for spans in (found.headings, found.keys, found.values):
        for location in [location for location in spans if not _is_in(tables, location)]:
            del spans[location]
    return found


def _is_in(content: Any, location: Location) -> bool:
    try:
        for part in location:
            content = content[part]
    except (LookupError, TypeError):
        return False
    return True


class _LostError(Exception):
    """The text is not what this scanner expects here."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.places = Places(text)
        self._text, self._at = text, 0
        self._table: Location = ()
        self._last: dict[Location, int] = {}  # index of the newest element of each [[array of tables]]

    def _take(self, pattern: re.Pattern[str]) -> str:
        if (match := pattern.match(self._text, self._at)) is None:
            raise _LostError
        self._at = match.end()
        return match[0]

    def _next_is(self, mark: str) -> bool:
        """Whether `mark` stands here; takes it."""
        there = self._text.startswith(mark, self._at)
        self._at += len(mark) if there else 0
        return there

    def document(self) -> None:
        self._take(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                self._heading()
            else:
                self._pair(self._table)
            self._take(_BLANK)

    def _heading(self) -> None:
        start, array = self._at, self._next_is("[[")
        self._next_is("[" if not array else "")
        here: Location = ()
        parts = self._key()
        for number, (part, _) in enumerate(parts, 1):
            here = (*here, part)
            if array and number == len(parts):
                self._last[here] = self._last.get(here, -1) + 1
            if here in self._last:
                here = (*here, self._last[here])
        if not self._next_is("]]" if array else "]"):
            raise _LostError
        self._table = here
        self.places.headings[here] = start, self._at

    def _pair(self, table: Location) -> None:
        start = self._at
        for part, end in self._key():
            table = (*table, part)
            self.places.keys.setdefault(table, (start, end))
        if not self._next_is("="):
            raise _LostError
        self._take(_SPACE)
        self._value(table)

    def _key(self) -> list[tuple[str, int]]:
        """Each part of a dotted key, with the offset behind it."""
        parts: list[tuple[str, int]] = []
        while not parts or self._next_is("."):
            self._take(_SPACE)
            quoted = self._text[self._at : self._at + 1] in ("'", '"')
            word = self._take(_STRING if quoted else _BARE)
            parts.append((tomllib.loads(f"key = {word}")["key"] if quoted else word, self._at))
            self._take(_SPACE)
        return parts

    def _value(self, location: Location) -> None:
        start = end = self._at
        if self._next_is("["):
            index = 0
            while not self._closed("]"):
                self._value((*location, index))
                index += 1
                self._take(_BLANK)
                self._next_is(",")
            end = self._at
        elif self._next_is("{"):
            while not self._closed("}"):
                self._pair(location)
                self._take(_BLANK)
                self._next_is(",")
            end = self._at
        elif self._text[self._at : self._at + 1] in ("'", '"'):
            self._take(_STRING)
            end = self._at
        else:
            end = start + len(self._take(_PLAIN).rstrip())
        self.places.values[location] = start, end

    def _closed(self, mark: str) -> bool:
        self._take(_BLANK)
        return self._next_is(mark)
