"""`rmbgd models`: lists, fetches, verifies and optimizes models, and records accepted licences.

Imports torch only to optimize, and the hub client only to fetch from the hub.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rmbgd.access_rights import become, groups_of
from rmbgd.cli.parser import between
from rmbgd.errors import ConfigError, ModelError
from rmbgd.models import fetch, licences, store
from rmbgd.models.registry import REGISTRY, ModelEntry, lookup
from rmbgd.paths import CACHE_DIRECTORY_VARIABLE, DEFAULT_CACHE_DIRECTORY, find_config

NAME = "name of a model, as `rmbgd models list` shows it"
SOURCE = f"{NAME}; or a folder or file of weights"


def add_arguments(parser: argparse.ArgumentParser, *, models: Path | None = None) -> None:
    """`models`: the directory that is used when --models-dir does not name another; else the configuration's."""
    shared = argparse.ArgumentParser(add_help=False)
    text = "directory of weights (default: service.models_directory of the configuration)"
    shared.add_argument("--models-dir", type=Path, default=models, metavar="FOLDER", help=text)
    verbs = "list | show | fetch | accept | path | verify | optimize"
    commands = parser.add_subparsers(title="commands", dest="models_verb", required=True, metavar=verbs)

    def command(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> Callable[..., object]:
        description = text[0].upper() + text[1:] + "."
        added = commands.add_parser(name, help=text, description=description, parents=[shared])
        added.set_defaults(models_action=action)
        return added.add_argument

    add = command("list", "list the models that rmbgd knows, their licences, and which are installed", _list)
    add("--json", action="store_true", help="print one JSON array instead of a table")
    add = command("show", "show what is known of a model: licence, origin, digest, what it was trained on", _show)
    add("name", metavar="NAME", help=NAME)
    add = command("fetch", "download weights from the Hugging Face hub, or copy them from a folder", _fetch)
    add("name", nargs="+", metavar="NAME", help=NAME)
    add("--from", dest="folder", type=Path, metavar="FOLDER", help="folder to copy the weights from, without a network")
    add("--revision", help="commit, tag or branch to fetch from the hub (default: the newest)")
    add("--again", action="store_true", help="fetch the weights even if the same version is installed")
    add = command("accept", "record that you accept a licence that restricts use", _accept)
    add("name", metavar="NAME", help=NAME)
    add("--yes", action="store_true", help="accept without asking, for scripts whose author has read the licence")
    add("--by", metavar="PERSON", help="record that PERSON accepts, beside the login name of who enters it")
    add = command("path", "print the path of a model's weights; exit 1 when they are not installed", _path)
    add("name", metavar="NAME", help=SOURCE)
    add = command("verify", "check that weights are complete, fit the network, and match the stated digests", _verify)
    add("name", nargs="*", metavar="NAME", help="names, folders or files to verify (default: every installed model)")
    add("--sha256", help="digest that the file must have; with one name only")
    add("--json", action="store_true", help="print one JSON array instead of text")
    text = "compile a model's kernels for the GPU of this machine, once, so that the service starts without a compiler"
    add = command("optimize", text, _optimize)
    add("name", metavar="NAME", help=SOURCE)
    add("--device", default="cuda", help="GPU to compile for: cuda, or cuda:N of several (default: %(default)s)")
    text, choices = (
        "number format that the service uses (default: %(default)s)",
        ("float16", "bfloat16", "float32"),
    )
    add("--precision", choices=choices, default="float16", help=text)
    add(
        "--patch-order",
        default="auto",
        help="order of image patches, if weights do not state it (default: %(default)s)",
    )
    text = "build a TensorRT engine in float16 for batches of N instead, which `bench gpu` races; the service uses none"
    add("--tensorrt", type=between(1, 16), metavar="N", help=text)


def run(options: argparse.Namespace) -> int:
    """0, or 1 when it could not be done or something is wrong, with one line on stderr for each."""
    if options.models_dir is None:
        options.models_dir = _configured()
    try:
        return int(options.models_action(options))
    except ModelError as error:
        for problem in error.problems:
            _complain(problem)
        return 1


def _configured() -> Path:
    """The models directory of the service's configuration, as far as that can be read."""
    from rmbgd.config.load import examine, read

    try:
        config, _ = examine(read(find_config(None, serving=False)).tables)
    except ConfigError:
        return store.DEFAULT_MODELS
    return config.service.models_directory


def _complain(text: object) -> None:
    print(f"rmbgd models: {text}", file=sys.stderr)


def _list(options: argparse.Namespace) -> int:
    rows = [_facts(entry, options.models_dir) for entry in REGISTRY.values()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.markup import escape
    from rich.table import Column, Table

    from rmbgd.cli.table import print_table

    heads = ("model", "input", "MB", "licence", "here")
    columns = [Column(head, no_wrap=True, justify="right" if head == "MB" else "left") for head in heads]
    table = Table(*columns, "for", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row, entry in zip(rows, REGISTRY.values(), strict=True):
        height, width = entry.input_size
        size = f"{entry.file_bytes / 1e6:.0f}" if entry.size_confirmed else f"~{entry.file_bytes / 1e6:.0f}"
        here = {"embedded": "built in", "here": "yes" if entry.sha256 else "unverified", "absent": "no"}[
            str(row["state"])
        ]
        accepted = f"\n{'accepted' if row['accepted_by'] else 'not accepted'}" if entry.needs_consent else ""
        table.add_row(entry.name, f"{width}x{height}", size, f"{entry.licence}{accepted}", here, entry.summary)
    print_table(table)
    print_table(f"\nweights are looked for in {escape(str(options.models_dir))}")
    return 0


def _facts(entry: ModelEntry, models: Path) -> dict[str, object]:
    facts = {name: getattr(entry, name) for name in ("name", "summary", "architecture", "backbone")}
    facts["input_height"], facts["input_width"] = entry.input_size
    for name in ("filter", "dynamic", "licence", "licence_class", "licence_url", "hub_id", "revision", "trained_on"):
        facts[name] = getattr(entry, name)
    facts |= {"bytes": entry.file_bytes, "bytes_confirmed": entry.size_confirmed, "sha256": entry.sha256}
    facts |= {"patch_order": entry.patch_order_text, "notes": entry.notes, "state": "absent", "weights": None}
    facts |= {"recorded_sha256": None, "recorded_revision": None}
    with contextlib.suppress(ModelError):
        place = store.installed(entry, models)
        facts |= {"state": "here" if entry.hub_id else "embedded", "weights": str(place.weights)}
        facts |= {f"recorded_{key}": place.origin.get(key) for key in ("sha256", "revision")}
    record = licences.accepted(entry, models) if entry.needs_consent else None
    return facts | {name: getattr(record, name, None) for name in ("accepted_by", "accepted_at")}


def _show(options: argparse.Namespace) -> int:
    entry = lookup(options.name)
    facts = _facts(entry, options.models_dir)
    for key, value in facts.items():
        text = ", ".join(value) if isinstance(value, tuple) else f"{value:,}" if key == "bytes" else value
        if text is not None and text != "":
            print(f"{key.replace('_', ' ')}: {text}")
    if not entry.trained_on:
        print("trained on: not published")
    if facts["state"] == "here" and not entry.sha256:
        print(f"verified: {store.UNVERIFIED}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    failed = 0
    for entry in [lookup(name) for name in options.name]:
        if entry.hub_id is None:
            print(f"{entry.name}: ships inside the package, nothing to fetch")
            continue
        try:
            _fetch_one(entry, options)
        except ModelError as error:
            _complain(error)
            failed = 1
    return failed


def _fetch_one(entry: ModelEntry, options: argparse.Namespace) -> None:
    models: Path = options.models_dir
    source = fetch.FolderSource(options.folder) if options.folder else fetch.HubSource(options.revision)

    def announce(offer: fetch.Offer) -> None:
        at = f" at {offer.revision[:12]}" if offer.revision else ""
        print(f"{entry.name}: {offer.weights_bytes / 1e6:,.0f} MB from {offer.where}{at}, licence {entry.licence}")
        if entry.needs_consent:
            print(f"  {entry.licence} forbids commercial use: {entry.licence_url}")
        sys.stdout.flush()

    now = datetime.now(UTC)
    fetched = fetch.fetch(entry, source, models, now=now, announce=announce, bar=_bar, again=options.again)
    place = store.installed(entry, models)
    print(f"  {'placed and verified' if fetched.brought else 'already here'}: {place.weights}")
    print(f"  sha256 {fetched.sha256}")
    if not entry.sha256:
        print("  unverified: rmbgd knows no digest of it; this one is recorded, and every load is held to it")
    try:
        choice = place.patch_order()
        print(f"  image patches {choice.order}: {choice.reason}")
    except ModelError as error:
        print(f"  before it can be used: {error}")
    if entry.needs_consent and not licences.accepted(entry, models):
        print(f"  before it can be used: rmbgd models accept {entry.name}")


def _accept(options: argparse.Namespace) -> int:
    entry = lookup(options.name)
    if not entry.needs_consent:
        print(f"{entry.name}: {entry.licence}, commercial use is allowed; there is nothing to accept")
        return 0
    if known := licences.accepted(entry, options.models_dir):
        print(f"{entry.name}: accepted by {known.accepted_by} at {known.accepted_at}")
        return 0
    print(f"{entry.name} is licensed under {entry.licence}: {entry.licence_url}")
    print("It forbids commercial use. Accepting records your login name, this machine and the time.")
    if not options.yes and not _agreed(entry):
        _complain("not accepted, nothing was recorded")
        return 1
    person = licences.acting_person()
    who = f"{options.by}, entered by {person}" if options.by else person
    record = licences.accept(entry, options.models_dir, who=who, now=datetime.now(UTC))
    print(f"accepted by {record.accepted_by} at {record.accepted_at}")
    print(f"recorded in {licences.record_path(entry, options.models_dir)}; deleting that file withdraws it")
    return 0


def _agreed(entry: ModelEntry) -> bool:
    if not sys.stdin.isatty():
        raise ModelError(f"{entry.name}: there is no terminal to ask at; say --yes once you have read the licence")
    try:
        return input("Have you read it, and do you accept it for this machine? [yes/no] ").strip().lower() == "yes"
    except EOFError:
        return False


def _path(options: argparse.Namespace) -> int:
    print(store.resolve(options.name, options.models_dir).weights)
    return 0


def _optimize(options: argparse.Namespace) -> int:
    from rmbgd.models.kernels.runtime import card_of, optimise

    _become_service()
    if options.tensorrt:
        from rmbgd.models import tensorrt_engine

        where = {"card": card_of(options.device), "batch": options.tensorrt, "patch_order": options.patch_order}
        built = tensorrt_engine.build(options.name, options.models_dir, **where, again=True)
        print(f"{options.name}: built for batches of {options.tensorrt} in {built.seconds} s")
        print(f"  {built.path}: {built.bytes / 1e6:.1f} MB")
        return 0
    how = {"device": options.device, "precision": options.precision, "patch_order": options.patch_order}
    done = optimise(options.name, options.models_dir, **how)
    print(f"{options.name}: {done.layers} layers have kernels; compiled and run in {done.seconds} s")
    print(f"  {done.directory}: {done.files} files, {done.bytes / 1e6:.1f} MB")
    return 0


def _become_service() -> None:
    """As root: go on as the service's user, who owns its cache. What lies there is code that is loaded here, and the
    service is to read and add. Nothing where there is no service."""
    from rmbgd.doctor.checks import USER

    if os.geteuid() != 0:
        return
    try:
        owner = DEFAULT_CACHE_DIRECTORY.stat().st_uid
    except FileNotFoundError:  # before its first start
        try:
            owner = pwd.getpwnam(USER).pw_uid
        except KeyError:
            return
        DEFAULT_CACHE_DIRECTORY.mkdir(mode=0o700)
        os.chown(DEFAULT_CACHE_DIRECTORY, owner, groups_of(owner)[0])
    os.environ[CACHE_DIRECTORY_VARIABLE] = str(DEFAULT_CACHE_DIRECTORY)
    become(owner)


def _verify(options: argparse.Namespace) -> int:
    models: Path = options.models_dir
    names = options.name or [e.name for e in REGISTRY.values() if e.hub_id is None or (models / e.name).is_dir()]
    if options.sha256 and len(names) != 1:
        raise ModelError("--sha256 goes with exactly one name")
    reports, missing = [], []
    for name in names:
        try:
            reports.append(store.verify(store.resolve(name, models), models, _bar, sha256=options.sha256))
        except ModelError as error:
            missing.append(str(error))
    if options.json:
        print(json.dumps([vars(report) | {"weights": str(report.weights)} for report in reports], indent=2))
    for report in [] if options.json else reports:
        print(f"{report.name}: {'WRONG' if report.problems else 'good'}  {report.weights}")
        for key, value in report.facts.items():
            text = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else value
            print(f"  {key.replace('_', ' ')}: {text or 'nothing is stated'}")
        for problem in report.problems:
            print(f"  wrong: {problem}")
        for need in report.needs:
            print(f"  needed before use: {need}")
    for text in missing:
        _complain(text)
    return 1 if missing or any(report.problems for report in reports) else 0


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
