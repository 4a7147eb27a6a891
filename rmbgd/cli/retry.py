"""`rmbgd retry`: puts rejected originals back into the input, so that they are processed again."""

from __future__ import annotations

import argparse
import os
import sys

from rmbgd.cli.control import ask
from rmbgd.cli.main import add_config, usage_error
from rmbgd.errors import ConfigError, Exit
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable

PATHS_AT_ONCE = 64  # of one request, so that it stays within a line of the protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "rejected original: its path in the failed folder, below the input, or FOLDER/PATH"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=text)
    parser.add_argument("--failed", action="store_true", help="every rejected original")
    parser.add_argument("--folder", metavar="NAME", help="only of this drop folder")
    parser.add_argument("--reason", metavar="REASON", help="only what was rejected for this reason")
    add_config(parser, json=True)


def run(options: argparse.Namespace) -> int:
    """0, or 1 when one of them could not be put back, with one line for each."""
    if bool(options.paths) is options.failed:
        return usage_error("retry", ConfigError("name PATHs, or say --failed for every rejected original"))
    pairs = [[path, os.path.abspath(path)] for path in options.paths]
    asked = {"do": "retry", "folder": options.folder, "reason": options.reason}
    retried, left = 0, 0
    reasons: list[tuple[str, str]] = []
    for place in range(0, max(1, len(pairs)), PATHS_AT_ONCE):
        answer = ask(options.config, {**asked, "paths": pairs[place : place + PATHS_AT_ONCE]}, timeout=None)
        retried, left = retried + answer["retried"], left + len(answer["left"]) + answer["more_left"]
        reasons += answer["left"]
        for path, why in answer["left"]:
            print(printable(f"rmbgd retry: {path}: {why}"), file=sys.stderr)
    if options.json:
        listed = [{"path": path, "why": why} for path, why in reasons]
        print(to_json({"retried": retried, "left": left, "reasons": listed}))
    else:
        print(f"{retried:,} put back into the input" + (f", {left:,} left" if left else ""))
    return Exit.FAILED if left else Exit.OK
