"""`rmbgd review`: images that wait for a person: lists them, approves and rejects them, exports what was decided."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from rmbgd.cli.control import ServiceUnreachable, ask
from rmbgd.cli.list import print_rows
from rmbgd.cli.main import add_config
from rmbgd.cli.parser import between
from rmbgd.cli.retry import PATHS_AT_ONCE
from rmbgd.cli.status import ledger_of
from rmbgd.config.load import Folder, load
from rmbgd.errors import Exit, RmbgdError
from rmbgd.service.listing import ROWS_MAXIMUM, no_such_folder, reviews
from rmbgd.store.reading import reading
from rmbgd.store.review import labels
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import duration, printable

SHOWN = 50
HEADS = ("JOB", "IMAGE", "FOR", "SCORE", "UNUSUAL", "WHY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    add_config(shared)
    commands = parser.add_subparsers(
        title="commands", dest="review_verb", required=True, metavar="list | approve | reject | export"
    )

    def command(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        description = text[0].upper() + text[1:] + "."
        added = commands.add_parser(name, help=text, description=description, parents=[shared])
        added.set_defaults(review_action=action)
        if name != "export":
            added.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        return added

    added = command("list", "list what waits for a person, the most doubtful first", _list)
    added.add_argument("--folder", metavar="NAME", help="only of this drop folder")
    text = f"images at most, 1 to {ROWS_MAXIMUM} (default: %(default)s)"
    added.add_argument("--limit", type=between(1, ROWS_MAXIMUM), default=SHOWN, metavar="N", help=text)
    text = "file in the review folder, path below the input, FOLDER/PATH, or number of the job"
    for name, described in (
        ("approve", "put files that wait into the output, as they are now"),
        ("reject", "put files that wait into the failed folder, with a file that says why"),
    ):
        command(name, described, _decide).add_argument("images", nargs="+", metavar="PATH|JOB", help=text)
    added = command("export", "print what was decided, one JSON object a line, for fitting the score", _export)
    added.add_argument("--folder", metavar="NAME", help="only of this drop folder")


def run(options: argparse.Namespace) -> int:
    return int(options.review_action(options))


def _list(options: argparse.Namespace) -> int:
    limit = min(options.limit + 1, ROWS_MAXIMUM)  # one more, to see whether there are more
    try:
        rows = ask(options.config, {"do": "reviews", "folder": options.folder, "limit": limit})["rows"]
    except ServiceUnreachable:
        rows = reviews(ledger_of(options.config), options.folder, limit, _folders(options))
    rows, more = rows[: options.limit], len(rows) > options.limit
    if options.json:
        print(to_json({"rows": rows, "more": more}))
        return Exit.OK
    print_rows(HEADS, [_cells(row) for row in rows])
    if not rows:
        print("no image waits for review")
    if more:
        print(f"... and more: --limit {min(10 * options.limit, ROWS_MAXIMUM)}")
    return Exit.OK


def _cells(row: dict[str, Any]) -> list[str]:
    score, unusual = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("score", "unusual"))
    why = "; ".join(filter(None, (row["asked"], *row["reasons"])))
    waits = duration(max(0.0, time.time() - row["since"]))
    return [str(row["job"]), f"{row['folder']}/{row['path']}", waits, score, unusual, why]


def _folders(options: argparse.Namespace) -> dict[str, Folder]:
    """By name. Raises RmbgdError where the one that is asked for is not among them."""
    folders = {folder.name: folder for folder in load(options.config).folder}
    if options.folder is not None and options.folder not in folders:
        raise RmbgdError(no_such_folder(options.folder, folders))
    return folders


def _decide(options: argparse.Namespace) -> int:
    """0, or 1 when one of them could not be decided about, with one line for each."""
    pairs = [[text, os.path.abspath(text)] for text in options.images]
    decided, left = 0, []
    for place in range(0, len(pairs), PATHS_AT_ONCE):
        request = {"do": options.review_verb, "paths": pairs[place : place + PATHS_AT_ONCE]}
        answer = ask(options.config, request, timeout=None)
        decided += answer["decided"]
        left += answer["left"]
        for text, why in answer["left"]:
            print(printable(f"rmbgd review: {text}: {why}"), file=sys.stderr)
    if options.json:
        print(to_json({"decided": decided, "left": [{"path": text, "why": why} for text, why in left]}))
    else:
        verb = "approved" if options.review_verb == "approve" else "rejected"
        print(f"{decided:,} {verb}" + (f", {len(left):,} left" if left else ""))
    return Exit.FAILED if left else Exit.OK


def _export(options: argparse.Namespace) -> int:
    """Beside the running service, or without one. Raises LedgerFault."""
    _folders(options)
    with reading(ledger_of(options.config)) as db:
        for label in labels(db, options.folder):
            print(to_json(label))
    return Exit.OK
