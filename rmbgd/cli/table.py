"""Print tables: fitted to a terminal; in a pipe one line a row, neither wrapped nor padded."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from rmbgd.cli.status_file import SeenStatus, ServiceState
from rmbgd.cli.status_text import StatusLine
from rmbgd.wording import printable

UNWRAPPED = 100_000  # columns


def print_table(table: RenderableType) -> None:
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    text = io.StringIO()
    Console(file=text, width=UNWRAPPED, highlight=False).print(table)
    for line in text.getvalue().splitlines():
        print(line.rstrip())


def rows_table(rows: Iterable[StatusLine]) -> Table:
    table = Table(
        Column(style="bold", no_wrap=True), Column(overflow="fold"), show_header=False, box=None, pad_edge=False
    )
    for row in rows:
        table.add_row(Text(printable(row.label)), Text(printable(row.text), row.mood))
    return table


def headline(seen: SeenStatus) -> Text:
    fine = seen.state is ServiceState.RUNNING and seen.headline == seen.state
    style = "bold green" if fine else "bold yellow" if seen.state is ServiceState.RUNNING else "bold red"
    return Text.assemble("rmbgd is ", (printable(seen.headline), style), f": {printable(seen.why)}")


def print_status(seen: SeenStatus) -> None:
    print_table(headline(seen))
    if seen.shown:
        print_table(rows_table(seen.shown))
