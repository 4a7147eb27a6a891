"""`rmbgd pause` and `rmbgd resume`: hold the intake of the running service, and let it go on."""

from __future__ import annotations

import argparse
import time

from rmbgd.cli.control import ask
from rmbgd.cli.main import add_config
from rmbgd.errors import Exit
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import duration, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "name of a drop folder, as in the configuration (default: every one)"
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help=text)
    add_config(parser, json=True)


def run(options: argparse.Namespace) -> int:
    answer = ask(options.config, {"do": options.verb, "folder": options.folder})
    what = f"folder {options.folder}" if options.folder else "every folder"
    pauses = answer["pauses"]
    if options.json:
        listed = [{"folder": name or None, "since": since, "person": by} for name, (since, by) in pauses.items()]
        print(to_json({"changed": answer["changed"], "pauses": listed}))
    elif options.verb == "pause":
        since, person = pauses[options.folder or ""]
        before = "" if answer["changed"] else f" already, by {person}, for {duration(max(0.0, time.time() - since))}"
        print(printable(f"{what} is paused{before}: images in work are finished, nothing more is begun"))
    elif "" in pauses:
        print(f"{what} stays paused, as every folder is: `rmbgd resume` ends that")
    else:
        was = "was not paused" if options.folder else "was served already"
        print(f"{what} is served" if answer["changed"] else f"{what} {was}")
    return Exit.OK
