"""`rmbgd status`: shows the status file of the running service, and whether it can be believed.

Reads a file instead of asking the service: that cannot disturb it, and works when it hangs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rmbgd.cli.main import add_config
from rmbgd.cli.status_file import look, unreadable
from rmbgd.errors import Exit
from rmbgd.paths import DEFAULT_CONFIG, DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
from rmbgd.telemetry.jsonl import to_json

INTERVAL, INTERVAL_LEAST = 2.0, 0.2  # s between two looks of --watch; the service writes every 2 s by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, json=True)
    text = "show it again and again, until Ctrl-C: over the whole terminal, or in a pipe one after the other"
    parser.add_argument("--watch", action="store_true", help=text)
    text = f"s between two looks of --watch (default: %(default)s, at least {INTERVAL_LEAST})"
    parser.add_argument("--interval", metavar="S", type=_interval, default=INTERVAL, help=text)


def _interval(word: str) -> float:
    seconds = float(word)
    if not INTERVAL_LEAST <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"'{word}' is not between {INTERVAL_LEAST} and 86400 s")
    return seconds


def run(options: argparse.Namespace) -> int:
    runtime, state_directory = directories(options.config)
    if options.watch:
        from rmbgd.cli import status_watch

        return status_watch.run(runtime, state_directory, options)
    try:
        seen = look(runtime, state_directory)
    except PermissionError:
        print(f"rmbgd: {unreadable(runtime)}", file=sys.stderr)
        return Exit.FAILED
    if options.json:
        print(to_json(seen.as_dict()))
    else:
        from rmbgd.cli.table import print_status

        print_status(seen)
    return seen.exit


def directories(path: Path) -> tuple[Path, Path]:
    """Runtime and state directory. Raises ConfigError when a configuration is named that cannot be used."""
    if path == DEFAULT_CONFIG and not path.exists():
        return DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
    from rmbgd.config.load import load

    service = load(path).service
    return service.runtime_directory, service.state_directory
