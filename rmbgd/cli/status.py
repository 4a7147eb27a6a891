"""`rmbgd status`: shows the status file of the running service, and whether it can be believed.

Reads a file instead of asking the service: that cannot disturb it, and works when it hangs.
"""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from rmbgd.cli.main import add_config
from rmbgd.cli.parser import between
from rmbgd.errors import RmbgdError
from rmbgd.paths import DEFAULT_CONFIG, DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
from rmbgd.store.ledger_lock import LEDGER
from rmbgd.telemetry.jsonl import to_json

INTERVAL, INTERVALS = 2.0, (0.2, 86_400.0)  # s between two looks of --watch; the service writes every 2 s by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, json=True)
    text = "show it again and again, until Ctrl-C: over the whole terminal, or in a pipe one after the other"
    parser.add_argument("--watch", action="store_true", help=text)
    text = f"s between two looks of --watch (default: %(default)s, at least {INTERVALS[0]})"
    parser.add_argument("--interval", metavar="S", type=between(*INTERVALS), default=INTERVAL, help=text)


def run(options: argparse.Namespace) -> int:
    from rmbgd.cli.status_file import look

    runtime, state_directory = directories(options.config)
    if options.watch:
        from rmbgd.cli import status_watch

        return status_watch.run(runtime, state_directory, options)
    seen = look(runtime, state_directory)
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


def ledger_of(config: Path) -> str:
    """The ledger's path. Raises RmbgdError where there is none, or none for this user."""
    path = directories(config)[1] / LEDGER
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RmbgdError(f"{path}: there is no ledger; the service makes one when it starts") from None
    except OSError as error:
        raise RmbgdError(f"{path}: {error.strerror}; be root, or the service's user") from error
    if not os.access(path, os.R_OK, effective_ids=True):
        raise RmbgdError(f"{path}: {os.strerror(errno.EACCES)}; be root, or the service's user")
    return str(path)
