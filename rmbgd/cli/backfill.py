"""`rmbgd backfill`: have all images of a root processed that have no result yet, behind what arrives meanwhile."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rmbgd.cli.fleet import need_library
from rmbgd.cli.main import add_config
from rmbgd.config.extras import is_installed
from rmbgd.errors import Exit, RmbgdError, missing_extra
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable

SHOWN = 20  # missing images that are named on the terminal; --json names more


def _part(text: str) -> str:
    found = re.fullmatch(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})", text)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; write it like 2/4, the second of four")
    return text


def _window(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images from 1 to 1000000")
    return int(text)


def _actors(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of actors from 1 to 1000")
    return int(text)


def _gpus(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,2}|0?\.[0-9]{1,3}", text) or float(text) > 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GPUs; write a part of one like 0.5, or 0 to 16")
    return float(text)


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
    cluster = parser.add_argument_group("on a Ray cluster, without the queue")
    cluster.add_argument("--ray", type=_actors, metavar="N", help="by N actors, which do what workers do")
    cluster.add_argument(
        "--gpus", type=_gpus, default=0.0, metavar="X", help="GPUs of each actor (default: 0, the CPU computes)"
    )
    add_config(parser, json=True)


def run(options: argparse.Namespace) -> int:
    need_library()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, trouble = bar.add_task("listing", total=None), ""

        def tell(now: Any) -> None:
            nonlocal trouble
            if now.trouble != trouble:
                _warn(trouble := now.trouble)
            said = f"{now.queued} {'on the queue' if options.ray is None else 'under way'}, {now.failed} rejected"
            bar.update(task, description=said, total=now.wanted, completed=now.done + now.failed)

        ended = (_on_the_queue if options.ray is None else _on_ray)(options, tell)
    told = {key: getattr(ended, key) for key in ("wanted", "done", "failed", "missing", "left_out", "announced", "why")}
    if options.json:
        print(to_json({"root": options.root, "out": options.out or options.root, **told}))
    else:
        counts = f"{ended.done} done, {ended.failed} rejected, {ended.missing} missing"
        print(printable(f"{options.root}: {ended.wanted} images: {counts}"))
        for key, why in list(ended.why.items())[:SHOWN]:
            print(printable(f"missing: {key}: {why}"), file=sys.stderr)
        if ended.missing:
            see = "see `rmbgd fleet status`, then run" if options.ray is None else "run"
            print(f"{see} this again: it goes on with what is missing", file=sys.stderr)
    return Exit.FAILED if ended.missing else Exit.OK


def _on_the_queue(options: argparse.Namespace, tell: Callable[[Any], None]) -> Any:
    """A Completeness."""
    from rmbgd.cli.fleet_actions import connected
    from rmbgd.fleet.backfill import backfill
    from rmbgd.fleet.worker import root_of

    given, inventory = options.manifest, _inventory(options.manifest)
    with connected(options.config) as fleet:
        return backfill(
            fleet.broker,
            root_of(fleet.roots, options.root),
            root_of(fleet.roots, options.out or options.root),
            given if given and not inventory else _place(fleet.state, options.root, options.part or ""),
            part=options.part or "",
            window=options.window,
            anew=options.relist,
            retry_failed=options.retry_failed,
            inventory=inventory,
            tell=tell,
            warn=_warn,
        )


def _on_ray(options: argparse.Namespace, tell: Callable[[Any], None]) -> Any:
    """A Completeness."""
    if not is_installed("ray"):
        raise missing_extra("ray", "ray", "--ray")
    from rmbgd.fleet.backfill import Completeness, listed
    from rmbgd.fleet.worker import fleet_config, open_roots, root_of

    config = fleet_config(options.config)
    roots, part = open_roots(config), options.part or ""
    source, target = root_of(roots, options.root), root_of(roots, options.out or options.root)
    if target.folder.kind != "images":
        text = f"root '{target.folder.name}' has kind = \"{target.folder.kind}\", and actors take images alone"
        raise RmbgdError(f"{text}; leave out --ray, and workers do it")
    from rmbgd.service.ray_backfill import backfill

    given, inventory = options.manifest, _inventory(options.manifest)
    manifest = given if given and not inventory else _place(config.service.state_directory, options.root, part)
    with (
        listed(source, target, manifest, part=part, anew=options.relist, inventory=inventory, warn=_warn) as images,
        redirect_stdout(sys.stderr),  # Ray prints what its scheduler and its actors say
    ):
        left_out = images.left_out()[0]
        progress = Completeness(wanted=images.count() + left_out, left_out=left_out)
        backfill(
            options.config,
            target,
            images.entries(),
            progress,
            actors=options.ray,
            gpus=options.gpus,
            retry_failed=options.retry_failed,
            tell=tell,
        )
    with suppress(OSError):
        target.remove_leftovers()
    return progress


def _inventory(given: Path | None) -> Any:
    """An Inventory, where the list is one that is there already."""
    from rmbgd.fleet.inventory import SUFFIX, Inventory

    return Inventory(given) if given is not None and given.suffix.lower() == SUFFIX else None


def _warn(text: str) -> None:
    print(f"rmbgd backfill: {printable(text)}", file=sys.stderr)


def _place(state: Path, root: str, part: str) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    return state / f"backfill-{root}{'-' + part.replace('/', '-of-') if part else ''}.sqlite"
