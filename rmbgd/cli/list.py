"""`rmbgd list`: which images wait and why, which are worked on, which failed, wait for review, are done."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmbgd.cli.control import ServiceUnreachable, ask
from rmbgd.cli.main import add_config
from rmbgd.cli.parser import between
from rmbgd.cli.status import ledger_of
from rmbgd.config.load import load
from rmbgd.errors import Exit, RmbgdError
from rmbgd.service.listing import ENDED, LIVE, ROWS_MAXIMUM, ended, no_such_folder
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import duration, printable

SHOWN = 50
WAITS = {  # gate -> why an image waits; {unchanged} and {left} are times in words
    "quiet": "changed {unchanged} ago; taken when nothing has changed for a while",
    "writer": "still being written: a program has it open",
    "companion": "the control file of an unfinished transfer stands beside it",
    "empty": "it is empty; rejected in {left} unless it changes",
    "head": "its beginning is not written; rejected in {left} unless it changes",
    "tail": "its end is missing; rejected in {left} unless it changes",
    "hole": "parts of it are not written; judged as it is in {left} unless it changes",
    "decode": "it is not complete; rejected in {left} unless it changes",
    "blocked": "it cannot be read or claimed; see intake.blocked in the log",
    "operator": "paused by {person}; `rmbgd resume` lets it go on",
    "safe_mode": "safe mode waits for the GPU",
    "disk_full": "its output has no room",
    "ledger": "the ledger cannot be used; see storage.paused in the log",
    "suspects": "images that the last run died with go first, one at a time",
    "frame": "complete; a frame before it is missing, and waited for",
    "room": "complete; waits for room in the pipeline",
}
NONE = {"waiting": "no image waits", "working": "no image is in work", "failed": "no image failed"}
NONE |= {"review": "no image waits for review", "done": "none done"}
OTHER = "the disk refuses to be written ({gate}); see storage.paused in the log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    described = "waiting and working: the longest waiting first; failed, review and done: the newest first"
    parser.add_argument("state", choices=(*LIVE, *ENDED), help=described)
    parser.add_argument("--folder", metavar="NAME", help="only of this drop folder")
    text = f"images at most, 1 to {ROWS_MAXIMUM} (default: %(default)s)"
    parser.add_argument("--limit", type=between(1, ROWS_MAXIMUM), default=SHOWN, metavar="N", help=text)
    add_config(parser, json=True)


def run(options: argparse.Namespace) -> int:
    limit = min(options.limit + 1, ROWS_MAXIMUM)  # one more, to see whether there are more
    request = {"do": "list", "state": options.state, "folder": options.folder, "limit": limit}
    try:
        answer = ask(options.config, request)
    except ServiceUnreachable:
        if options.state in LIVE:
            raise
        answer = {"rows": _from_ledger(options, limit)}
    rows, more = answer["rows"][: options.limit], len(answer["rows"]) > options.limit
    for row in rows if options.state == "waiting" else ():
        row["why"] = _why(row, answer.get("pauses", {}))
    if options.json:
        print(to_json({"state": options.state, "rows": rows, "more": more, "unseen": answer.get("unseen", [])}))
        return Exit.OK
    heads, cells = COLUMNS[options.state]
    print_rows(heads, [cells(row) for row in rows])
    if not rows:
        print(NONE[options.state])
    if more:
        print(f"... and more: --limit {min(10 * options.limit, ROWS_MAXIMUM)}")
    for name in answer.get("unseen", ()):
        print(printable(f"... and more files in folder {name}, which are looked at when there is room"))
    return Exit.OK


def _from_ledger(options: argparse.Namespace, limit: int) -> list[dict[str, Any]]:
    """While no service runs, as far as this user may read. Raises RmbgdError."""
    folders = {folder.name: folder for folder in load(options.config).folder}
    if options.folder is not None and options.folder not in folders:
        raise RmbgdError(no_such_folder(options.folder, folders))  # as a service that runs says it
    return ended(ledger_of(options.config), options.state, options.folder, limit, folders)


def _why(row: Mapping[str, Any], pauses: Mapping[str, Sequence[Any]]) -> str:
    left = "soon" if row["left"] is None else duration(row["left"])
    pause = pauses.get("") or pauses.get(row["folder"]) or (0.0, "the operator")
    words = WAITS.get(row["gate"], OTHER)
    return words.format(unchanged=duration(row["unchanged"]), left=left, person=pause[1], gate=row["gate"])


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['folder']}/{row['path']}"


def _age(row: Mapping[str, Any]) -> str:
    return f"{duration(max(0.0, time.time() - row['ended_at']))} ago"


def _failed(row: Mapping[str, Any]) -> list[str]:
    return [_name(row), _age(row), row["reason"], row["detail"], row["original"] or "its original is not found"]


def _done(row: Mapping[str, Any]) -> list[str]:
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f} s"
    return [_name(row), _age(row), row["output"], row["verdict"] or "", seconds, row["device"] or ""]


COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[str]]]] = {
    "waiting": (("IMAGE", "FOR", "WHY"), lambda row: [_name(row), duration(row["seconds"]), row["why"]]),
    "working": (
        ("IMAGE", "FOR", "ATTEMPT"),
        lambda row: [_name(row), duration(row["seconds"]), str(row["attempt"])],
    ),
    "failed": (("IMAGE", "WHEN", "REASON", "DETAIL", "ORIGINAL"), _failed),
    "review": (("IMAGE", "WHEN", "FILE"), lambda row: [_name(row), _age(row), row["output"]]),
    "done": (("IMAGE", "WHEN", "OUTPUT", "VERDICT", "TOOK", "DEVICE"), _done),
}


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(heads))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
