"""`rmbgd sequence`: which sequences of frames are in work, and their end."""

from __future__ import annotations

import argparse

from rmbgd.cli.control import ask
from rmbgd.cli.list import print_rows
from rmbgd.cli.main import add_config
from rmbgd.errors import Exit, RmbgdError
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", dest="sequence_verb", required=True, metavar="list | end")
    text = "list the sequences that are not over, and what each waits for"
    listed = commands.add_parser("list", help=text, description=f"{text[0].upper()}{text[1:]}.")
    listed.add_argument("folder", nargs="?", metavar="FOLDER", help="only of this drop folder")
    add_config(listed, json=True)
    text = "end a sequence once its frames are out, without waiting for its quiet time"
    ended = commands.add_parser("end", help=text, description=f"{text[0].upper()}{text[1:]}.")
    ended.add_argument("folder", metavar="FOLDER", help="name of its drop folder")
    ended.add_argument(
        "sequence", nargs="?", metavar="SEQUENCE", help="as `list` names it (default: all of the folder)"
    )
    add_config(ended, json=True)


def run(options: argparse.Namespace) -> int:
    if options.sequence_verb == "list":
        rows = ask(options.config, {"do": "sequences", "folder": options.folder})["rows"]
        if options.json:
            print(to_json({"sequences": rows}))
            return Exit.OK
        heads = ("SEQUENCE", "NEXT", "WAITING", "IN WORK", "MISSING", "STATE")
        print_rows(heads, [_cells(row) for row in rows])
        if not rows:
            print("no sequence is in work")
        return Exit.OK
    answer = ask(options.config, {"do": "end_sequence", "folder": options.folder, "sequence": options.sequence})
    if options.sequence is not None and not answer["rows"]:
        text = f"no sequence '{options.sequence}' of folder {options.folder} is in work; see `rmbgd sequence list`"
        raise RmbgdError(printable(text))
    if options.json:
        print(to_json({"ended": [row["sequence"] for row in answer["rows"]]}))
    else:
        named = ", ".join(str(row["sequence"]) for row in answer["rows"]) or "no sequence was in work"
        print(printable(f"ends once its frames are out: {named}" if answer["rows"] else named))
    return Exit.OK


def _cells(row: dict[str, object]) -> list[str]:
    state = "ends once its frames are out" if row["ending"] else "goes on"
    if row["blocked"]:
        state = f"waits for frame {row['wanted']}" if row["wanted"] is not None else "waits for its first frames"
    wanted = "" if row["wanted"] is None else str(row["wanted"])
    counts = [str(row[key]) for key in ("waiting", "in_flight", "missing")]
    return [f"{row['folder']}/{row['sequence']}", wanted, *counts, state]
