"""Run `rmbgd mtbf`: read logs, print the report for people or programs, and write it as a page."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from rmbgd import fs
from rmbgd.errors import Exit, RmbgdError, explain
from rmbgd.mtbf import html, text
from rmbgd.mtbf.logs import gather, read
from rmbgd.mtbf.machine import machines
from rmbgd.mtbf.report import MtbfReport

ADVICE = "name the log_file of the configuration, or what `journalctl -u rmbgd -o json --all` writes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        nargs="+",
        metavar="LOG",
        help="event log to read, rotated and compressed parts too; a folder of them; - for standard input. "
        "NAME=LOG names the machine it came from",
    )
    parser.add_argument(
        "--device",
        metavar="REGEX",
        help="name each machine by what this finds in a file's path, or by its first group "
        "(default: the host that the log names, else the file's or the folder's name)",
    )
    parser.add_argument(
        "--claim", metavar="HOURS", type=_positive, help="show how sure one can be that the MTBF is at least this"
    )
    parser.add_argument(
        "--confidence",
        metavar="SHARE",
        type=_share,
        default=0.9,
        help="confidence of the bounds, e.g. 0.95 (default: 0.9)",
    )
    parser.add_argument("--since", metavar="TIME", type=_moment, help="leave out lines before, e.g. 2026-01-31")
    parser.add_argument("--until", metavar="TIME", type=_moment, help="leave out lines after")
    parser.add_argument(
        "--power-loss",
        choices=("apart", "failure"),
        default="apart",
        help="count a boot without an end of the one before apart (default), or as a failure",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots, which needs no network")


def run(options: argparse.Namespace) -> int:
    """Print the report. Returns Exit.FAILED when the logs hold no run of the service. Raises RmbgdError."""
    if options.html is not None:
        html.template()  # before the logs are read: it raises ConfigError where jinja2 is not installed
    report = make_report(options)
    if options.html is not None:
        try:
            fs.atomic_write(options.html, html.render(report).encode())
        except OSError as error:
            raise RmbgdError(f"{options.html}: {error.strerror or error}; name a file that can be written") from error
    if options.json:
        print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        print(text.render(report), end="")
    return Exit.OK if report.window else Exit.FAILED


def make_report(options: argparse.Namespace) -> MtbfReport:
    index = read(gather(options.log, options.device), options.since, options.until)
    if index.foreign and not index.boots:
        raise RmbgdError("; ".join([*(f"{file}: {_nothing(lines)}" for file, lines in index.foreign.items()), ADVICE]))
    known = machines(index, power_loss_is_failure=options.power_loss == "failure")
    return MtbfReport(known, options.confidence, options.claim, index.lines)


def _nothing(lines: int) -> str:
    return f"none of {lines} lines is an rmbgd event" if lines > 1 else "its one line is no rmbgd event"


def _positive(word: str) -> float:
    value = float(word)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{word}' is no number of hours above 0")
    return value


def _share(word: str) -> float:
    value = float(word)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not between 0 and 1; for 95 % write 0.95")
    return value


def _moment(word: str) -> float:
    try:
        moment = datetime.fromisoformat(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{word}' is no time; write 2026-01-31 or 2026-01-31T09:15Z") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def main() -> int:
    """`python -m rmbgd.mtbf`, where nothing but the standard library is installed."""
    parser = argparse.ArgumentParser(prog="rmbgd mtbf", description="Mean time between failures from event logs.")
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except RmbgdError as error:
        print(f"rmbgd mtbf: {error}", file=sys.stderr)
        return error.exit
    except OSError as error:
        print(f"rmbgd mtbf: {explain(error)}", file=sys.stderr)
        return Exit.FAILED
