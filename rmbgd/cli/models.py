"""`rmbgd models list | fetch | accept | path | verify | optimize`: what people type.

Says and asks; what is true, allowed or brought is decided by the registry, `consent.py`, `verify.py` and `fetch.py`.
Imports torch only to optimise, and the hub client only to fetch from the hub.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rmbgd.errors import ModelError
from rmbgd.models import checkpoint as patches
from rmbgd.models import licences as consent
from rmbgd.models import store as places
from rmbgd.models.registry import REGISTRY, ModelEntry, lookup

if TYPE_CHECKING:
    from rmbgd.models.fetch import Fetched, Offer
    from rmbgd.models.store import Report


def add_arguments(parser: argparse.ArgumentParser, *, models: Path = places.DEFAULT_MODELS) -> None:
    """Give `parser` the six verbs. `models`: the directory that is used when --models-dir does not name another."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--models-dir", type=Path, default=models, metavar="FOLDER", help="where weights live (default: %(default)s)"
    )
    known = "list | fetch | accept | path | verify | optimize"
    verbs = parser.add_subparsers(dest="models_verb", required=True, metavar=known)

    def verb(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[shared])
        made.set_defaults(models_action=action)
        return made

    listing = verb("list", "the models that rmbgd knows, their licences, and which are here", _list)
    listing.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    fetching = verb("fetch", "bring published weights, from the hub or from a folder", _fetch)
    fetching.add_argument("name", nargs="+", help="as `rmbgd models list` shows it")
    fetching.add_argument("--from", dest="folder", type=Path, metavar="FOLDER", help="take them from here, no network")
    fetching.add_argument("--revision", help="commit, tag or branch at the hub (default: the newest)")
    fetching.add_argument("--again", action="store_true", help="bring them even if the same version is here")
    accepting = verb("accept", "record that you accept a licence that restricts use", _accept)
    accepting.add_argument("name", help="as `rmbgd models list` shows it")
    accepting.add_argument(
        "--yes", action="store_true", help="do not ask; for scripts whose author has read the licence"
    )
    accepting.add_argument("--by", metavar="PERSON", help="on whose behalf, kept beside the login name")
    finding = verb("path", "print where the weights of a model lie; exit 1 when they are not here", _path)
    finding.add_argument("name", help="as `rmbgd models list` shows it, or a folder, or a file")
    verifying = verb("verify", "read weights and say whether they are whole, fit, and are the stated ones", _verify)
    verifying.add_argument("name", nargs="*", help="names, folders or files (default: every model that is here)")
    verifying.add_argument("--sha256", help="what the file's digest must be; for one name")
    verifying.add_argument("--json", action="store_true", help="one JSON document instead of text")
    text = "compile a model's kernels for the GPU of this machine, once, so that the service starts without a compiler"
    optimising = verb("optimize", text, _optimise)
    optimising.add_argument("name", help="as `rmbgd models list` shows it, or a folder, or a file")
    optimising.add_argument(
        "--device", default="cuda", help="cuda, or cuda:N for one of several (default: %(default)s)"
    )
    optimising.add_argument(
        "--precision",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="what the service computes in there (default: %(default)s)",
    )
    optimising.add_argument(
        "--patch-order", default="auto", help="for weights that say nothing themselves (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked: 0, or 1 when it could not be done or something is wrong, with one line on stderr for each."""
    action: Callable[[argparse.Namespace], int] = arguments.models_action
    try:
        return action(arguments)
    except ModelError as error:
        for problem in error.problems:
            print(f"rmbgd models: {problem}", file=sys.stderr)
        return 1


def _list(arguments: argparse.Namespace) -> int:
    rows = [_facts(entry, arguments.models_dir) for entry in REGISTRY.values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    caption = f"weights are looked for in {arguments.models_dir}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption)
    for column in ("model", "input", "MB", "licence", "here"):
        table.add_column(column, no_wrap=True, justify="right" if column == "MB" else "left")
    table.add_column("for")
    for row, entry in zip(rows, REGISTRY.values(), strict=True):
        height, width = entry.input_size
        size = f"{entry.file_bytes / 1e6:.0f}" if entry.size_confirmed else f"~{entry.file_bytes / 1e6:.0f}"
        here = {"embedded": "built in", "here": "yes", "absent": "no"}[str(row["state"])]
        licence = f"{entry.licence}\n{'accepted' if row['accepted_by'] else 'not accepted'}"
        table.add_row(
            entry.name,
            f"{width}x{height}",
            size,
            licence if entry.needs_consent else entry.licence,
            here,
            entry.summary,
        )
    Console().print(table)
    return 0


def _facts(entry: ModelEntry, models: Path) -> dict[str, object]:
    """One model for scripts: what the registry says, and what is here."""
    try:
        weights: Path | None = places.installed(entry, models).weights
    except ModelError:
        weights = None
    record = consent.accepted(entry, models) if entry.needs_consent else None
    return {
        "name": entry.name,
        "summary": entry.summary,
        "architecture": entry.architecture.value,
        "backbone": entry.backbone,
        "input_height": entry.input_size[0],
        "input_width": entry.input_size[1],
        "dynamic": entry.dynamic,
        "licence": entry.licence,
        "licence_class": entry.licence_class.value,
        "licence_url": entry.licence_url,
        "hub_id": entry.hub_id,
        "revision": entry.revision,
        "bytes": entry.file_bytes,
        "bytes_confirmed": entry.size_confirmed,
        "sha256": entry.sha256,
        "patch_order": entry.patch_order_text,
        "notes": entry.notes,
        "state": "absent" if weights is None else "here" if entry.hub_id else "embedded",
        "weights": str(weights) if weights else None,
        "accepted_by": record.accepted_by if record else None,
        "accepted_at": record.accepted_at if record else None,
    }


def _fetch(arguments: argparse.Namespace) -> int:
    entries = [lookup(name) for name in arguments.name]
    failed = 0
    for entry in entries:
        if entry.hub_id is None:
            print(f"{entry.name}: ships inside the package, nothing to fetch")
            continue
        try:
            _report_fetched(entry, _bring(entry, arguments), arguments.models_dir)
        except ModelError as error:
            print(f"rmbgd models: {error}", file=sys.stderr)
            failed = 1
    return failed


def _bring(entry: ModelEntry, arguments: argparse.Namespace) -> Fetched:
    from rmbgd.models import fetch

    source: fetch.Source
    if arguments.folder:
        source = fetch.FolderSource(arguments.folder)
    else:
        from rmbgd.models.hub import HubSource

        source = HubSource(arguments.revision)

    def announce(offer: Offer) -> None:
        at = f" at {offer.revision[:12]}" if offer.revision else ""
        print(f"{entry.name}: {offer.weights_bytes / 1e6:,.0f} MB from {offer.where}{at}, licence {entry.licence}")
        if entry.needs_consent:
            print(f"  {entry.licence} forbids commercial use: {entry.licence_url}")
        sys.stdout.flush()

    now = datetime.now(UTC)
    return fetch.fetch(entry, source, arguments.models_dir, now=now, announce=announce, bar=_bar, again=arguments.again)


def _report_fetched(entry: ModelEntry, fetched: Fetched, models: Path) -> None:
    place = places.installed(entry, models)
    print(f"  {'placed and verified' if fetched.brought else 'already here'}: {place.weights}")
    print(f"  sha256 {fetched.sha256}")
    code, saved = place.author_code(), place.saved_patch_order()
    try:
        choice = patches.choose(model=entry.name, registry=entry.patch_order, author_code=code, saved=saved)
        print(f"  image patches {choice.order}: {choice.reason}")
    except ModelError as error:
        print(f"  before it can be used: {error}")
    if entry.needs_consent and not consent.accepted(entry, models):
        print(f"  before it can be used: rmbgd models accept {entry.name}")


def _accept(arguments: argparse.Namespace) -> int:
    entry = lookup(arguments.name)
    if not entry.needs_consent:
        print(f"{entry.name}: {entry.licence}, commercial use is allowed; there is nothing to accept")
        return 0
    if known := consent.accepted(entry, arguments.models_dir):
        print(f"{entry.name}: accepted by {known.accepted_by} at {known.accepted_at}")
        return 0
    print(f"{entry.name} is licensed under {entry.licence}: {entry.licence_url}")
    print("It forbids commercial use. Accepting records your login name, this machine and the time.")
    if not arguments.yes and not _agreed(entry):
        print("rmbgd models: not accepted, nothing was recorded", file=sys.stderr)
        return 1
    person = consent.acting_person()
    who = f"{arguments.by}, entered by {person}" if arguments.by else person
    record = consent.accept(entry, arguments.models_dir, who=who, now=datetime.now(UTC))
    print(f"accepted by {record.accepted_by} at {record.accepted_at}")
    print(f"recorded in {consent.record_path(entry, arguments.models_dir)}; deleting that file withdraws it")
    return 0


def _agreed(entry: ModelEntry) -> bool:
    """Ask; a script that cannot be asked has to say --yes."""
    if not sys.stdin.isatty():
        raise ModelError(f"{entry.name}: there is no terminal to ask at; say --yes once you have read the licence")
    try:
        return input("Have you read it, and do you accept it for this machine? [yes/no] ").strip().lower() == "yes"
    except EOFError:
        return False


def _path(arguments: argparse.Namespace) -> int:
    print(places.resolve(arguments.name, arguments.models_dir).weights)
    return 0


def _optimise(arguments: argparse.Namespace) -> int:
    from rmbgd.models.kernels.optimize import optimise

    done = optimise(
        arguments.name,
        arguments.models_dir,
        device=arguments.device,
        precision=arguments.precision,
        patch_order=arguments.patch_order,
    )
    print(f"{arguments.name}: {done.layers} layers have kernels; compiled and run in {done.seconds} s")
    print(f"  {done.directory}: {done.files} files, {done.bytes / 1e6:.1f} MB")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from rmbgd.models import store as verify

    models: Path = arguments.models_dir
    here = [e.name for e in REGISTRY.values() if e.hub_id is None or (models / e.name).is_dir()]
    names = arguments.name or here
    if arguments.sha256 and len(names) != 1:
        raise ModelError("--sha256 goes with exactly one name")
    reports, lost = [], []
    for name in names:
        try:
            place = places.resolve(name, models)
        except ModelError as error:
            lost.append(str(error))
            continue
        reports.append(verify.verify(place, models, _bar, sha256=arguments.sha256))
    if arguments.json:
        shown = [vars(r) | {"weights": str(r.weights)} for r in reports]
        print(json.dumps(shown, indent=2))
    else:
        for report in reports:
            _say(report)
    for text in lost:
        print(f"rmbgd models: {text}", file=sys.stderr)
    return 1 if lost or any(r.problems for r in reports) else 0


def _say(report: Report) -> None:
    print(f"{report.name}: {'WRONG' if report.problems else 'good'}  {report.weights}")
    for key, value in report.facts.items():
        text = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else value
        print(f"  {key.replace('_', ' ')}: {text or 'nothing is stated'}")
    for problem in report.problems:
        print(f"  wrong: {problem}")
    for need in report.needs:
        print(f"  needed before use: {need}")


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, gone when done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
