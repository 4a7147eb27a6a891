"""Tables and progress on the terminal: the one way in which tools show figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import track
from rich.table import Table


@dataclass(frozen=True)
class Report:
    """What a bench found: tables and sentences to be printed in turn, and everything for JSON."""

    shown: Sequence[RenderableType]
    found: Mapping[str, object]
    status: int = 0

    def text(self) -> str:
        stream = io.StringIO()
        Console(file=stream, width=150, highlight=False).print(*self.shown, sep="\n")
        return stream.getvalue()


def table(title: str, *heads: str, rows: Sequence[Sequence[object]] = ()) -> Table:
    """The first column is words, the others are figures; of a cell None is empty."""
    made = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(heads):
        made.add_column(head, justify="right" if number else "left")
    for row in rows:
        made.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    return made


def values(title: str, found: Mapping[str, object]) -> Table:
    """A row for each value."""
    return table(title, "measure", "value", rows=[(key.replace("_", " "), _words(each)) for key, each in found.items()])


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key} {_words(each)}" for key, each in value.items())
    return f"{round(value, 3):,}" if isinstance(value, (int, float)) else str(value)


def steps(count: int, what: str) -> Iterable[int]:
    """0 up to `count`, with a bar on standard error."""
    return track(range(count), what, console=Console(stderr=True))
