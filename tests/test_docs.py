"""README.md says what the source says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rmbgd import configdoc
from rmbgd.cli import main as cli
from rmbgd.events import EVENTS

README = Path(__file__).parents[1] / "README.md"


def test_tables_are_those_of_the_source() -> None:
    """Events, reasons, exit statuses and settings: renew them with `python -m rmbgd.configdoc --readme README.md`."""
    text = README.read_text(encoding="utf-8")

    assert configdoc.renewed(text) == text


def test_missing_marker_is_told() -> None:
    """A table cannot vanish from the README unnoticed."""
    with pytest.raises(LookupError, match="<!-- events -->"):
        configdoc.renewed("no markers here")


def test_every_verb_is_in_the_readme() -> None:
    """Who reads it finds every command that there is."""
    text = README.read_text(encoding="utf-8")

    there = [verb for verb, (module, _) in cli.VERBS.items() if cli._exists(module)]
    assert [] == [verb for verb in there if f"`rmbgd {verb}" not in text]


def test_every_drop_in_is_in_the_readme() -> None:
    """And the README names none that does not exist."""
    there = {path.name for path in (README.parent / "systemd" / "drop-ins").iterdir()}

    assert there == set(re.findall(r"`(\d\d-[a-z-]+\.conf)`", README.read_text(encoding="utf-8")))


def test_operators_are_told_what_to_do_at_every_event() -> None:
    """docs/operations.md has a row for each event of the vocabulary, in its order, and for no other."""
    page = (README.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("## Every event, and what to do\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \|$", table, re.MULTILINE)

    assert [event for event, _, _ in rows] == list(EVENTS)
    assert all(meaning and action for _, meaning, action in rows)
