"""`rmbgd backfill`: have all images of a root processed that have no result yet, behind what arrives meanwhile."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rmbgd.cli.fleet import need_library
from rmbgd.cli.main import add_config
from rmbgd.errors import Exit
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable


def _part(text: str) -> str:
    found = re.fullmatch(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})", text)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write it like 2/4, the second of four")
    return text


def _window(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images from 1 to 1000000")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="name of a root, a [[folder]] of the configuration")
    parser.add_argument("--out", metavar="ROOT2", help="root with the same input, whose output and recipe count")
    parser.add_argument("--part", type=_part, metavar="I/N", help="only this part of the images")
    parser.add_argument(
        "--window", type=_window, default=10_000, metavar="N", help="images on the queue at once (default: 10000)"
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="where the list of the images is kept (default: in service.state_directory); a .parquet file is a list "
        "that is there already, and only read",
    )
    parser.add_argument("--relist", action="store_true", help="list the images once more")
    parser.add_argument("--retry-failed", action="store_true", help="also process what was rejected before")
    add_config(parser, json=True)


def run(options: argparse.Namespace) -> int:
    need_library()
    from rmbgd.cli.fleet_actions import connected, root_of
    from rmbgd.fleet.backfill import Completeness, backfill
    from rmbgd.fleet.inventory import SUFFIX, Inventory

    given: Path | None = options.manifest
    inventory = Inventory(given) if given is not None and given.suffix.lower() == SUFFIX else None
    with connected(options.config) as fleet:
        source, target = root_of(fleet, options.root), root_of(fleet, options.out or options.root)
        manifest = given if given and not inventory else _place(fleet.state, options.root, options.part or "")
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("listing", total=None)

            def tell(now: Completeness) -> None:
                said = f"{now.queued} on the queue, {now.failed} rejected"
                bar.update(task, description=said, total=now.wanted, completed=now.done + now.failed)

            ended = backfill(
                fleet.broker,
                source,
                target,
                manifest,
                part=options.part or "",
                window=options.window,
                anew=options.relist,
                retry_failed=options.retry_failed,
                inventory=inventory,
                tell=tell,
                warn=lambda text: print(f"rmbgd backfill: {printable(text)}", file=sys.stderr),
            )
    told = {key: getattr(ended, key) for key in ("wanted", "done", "failed", "missing", "left_out", "announced")}
    if options.json:
        print(to_json({"root": options.root, "out": options.out or options.root, **told}))
    else:
        counts = f"{ended.done} done, {ended.failed} rejected, {ended.missing} missing"
        print(printable(f"{options.root}: {ended.wanted} images: {counts}"))
        if ended.missing:
            print("see `rmbgd fleet status`, then run this again: it goes on with what is missing", file=sys.stderr)
    return Exit.FAILED if ended.missing else Exit.OK


def _place(state: Path, root: str, part: str) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    return state / f"backfill-{root}{'-' + part.replace('/', '-of-') if part else ''}.sqlite"
