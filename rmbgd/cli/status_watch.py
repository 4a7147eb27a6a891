"""`rmbgd status --watch`: the status again and again, over the whole terminal, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from rmbgd.cli.status_file import SeenStatus, look
from rmbgd.cli.status_text import outcomes
from rmbgd.cli.table import headline, print_status, rows_table
from rmbgd.errors import Exit, RmbgdError
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable


def run(runtime: Path, state_directory: Path, options: argparse.Namespace) -> int:
    """Ctrl-C is how one leaves, so it is no failure; other signals end it as they end every command."""
    console = Console(highlight=False)
    try:
        if options.json or not console.is_terminal or console.is_dumb_terminal:
            _print(runtime, state_directory, options)
        else:
            _draw(console, runtime, state_directory, options.interval)
    except KeyboardInterrupt as interrupt:
        if interrupt.args and interrupt.args[0] != signal.SIGINT:
            raise
    return Exit.OK


def _print(runtime: Path, state_directory: Path, options: argparse.Namespace) -> None:
    while True:
        try:
            seen = look(runtime, state_directory)
            if options.json:
                print(to_json(seen.as_dict()))
            else:
                print_status(seen)
                print()
        except RmbgdError as error:
            print(f"rmbgd status: {error}", file=sys.stderr)
        sys.stdout.flush()
        time.sleep(options.interval)


def _draw(console: Console, runtime: Path, state_directory: Path, interval: float) -> None:
    resized = {signal.SIGWINCH}  # taken while waiting, so that the new size is used at once
    former = signal.pthread_sigmask(signal.SIG_BLOCK, resized)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                try:
                    page = view(look(runtime, state_directory), interval)
                except RmbgdError as error:
                    page = Text(str(error), "bold red")
                live.update(page, refresh=True)
                signal.sigtimedwait(resized, interval)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def view(seen: SeenStatus, interval: float) -> RenderableType:
    """One screen: the state, what the service does, the last outcomes."""
    now = datetime.now(UTC)
    parts: list[RenderableType] = [headline(seen), ""]
    if seen.shown:
        recent = list(outcomes(seen.record or {}, now))
        parts.append(rows_table(seen.shown[: len(seen.shown) - len(recent)]))
        table = Table(
            Column("when", no_wrap=True), Column("image", ratio=1, no_wrap=True), Column("outcome", no_wrap=True)
        )
        table.box, table.pad_edge, table.expand, table.header_style = None, False, True, "dim"
        for path, line in recent:
            table.add_row(line.label, Text(printable(path)), Text(printable(line.text), line.mood))
        parts += ["", table] if recent else []
    else:
        parts.append("The page comes back with the service.")
    parts += ["", Text(f"{now.astimezone():%H:%M:%S}, every {interval:g} s; Ctrl-C ends", "dim")]
    return Group(*parts)
