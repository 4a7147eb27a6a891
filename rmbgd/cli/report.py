"""`rmbgd report`: a page, or JSON, of what became of the last images."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rmbgd import fs
from rmbgd.cli.main import add_config, usage_error
from rmbgd.cli.parser import between
from rmbgd.cli.status import ledger_of
from rmbgd.config.load import Config, load
from rmbgd.errors import ConfigError, Exit, RmbgdError, explain
from rmbgd.service.listing import no_such_folder
from rmbgd.store.reading import Ending, counts_of_kinds, oddest, reading
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import printable

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
SINCE_MAXIMUM = 3650 * UNITS["d"]
LIMIT, LIMIT_MAXIMUM = 200, 2000  # images on a page; some 25 kB each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, json=True)
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one page with thumbnails, for any browser")
    text = "how far back: 90m, 24h, 7d (default: 24h)"
    parser.add_argument("--since", metavar="TIME", type=_seconds, default="24h", help=text)
    parser.add_argument("--folder", metavar="NAME", help="images of this folder only (default: of all)")
    text = f"images shown, failures first (default: %(default)s, at most {LIMIT_MAXIMUM})"
    parser.add_argument("--limit", metavar="N", type=between(1, LIMIT_MAXIMUM), default=LIMIT, help=text)


def _seconds(word: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", word)
    if match is None or not 0 < (seconds := int(match[1]) * UNITS[match[2]]) <= SINCE_MAXIMUM:
        raise argparse.ArgumentTypeError(f"'{word}' is no time of up to ten years; write it like 90m, 24h or 7d")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Raises RmbgdError: ConfigError, or what may not be read or written."""
    if options.html is None and not options.json:
        return usage_error("report", ConfigError("name a page to write with --html FILE, or ask for --json"))
    if options.html is not None:
        from rmbgd.report import page

        page.template()  # before the work: it raises ConfigError where jinja2 is not installed
        check_page(options.html)
    config = load(options.config)
    folders = [folder.name for folder in config.folder]
    if options.folder is not None and options.folder not in folders:
        return usage_error("report", ConfigError(no_such_folder(options.folder, folders)))
    now = time.time()
    since = now - options.since
    counts, images = _look_back(ledger_of(options.config), since, options)
    if options.html is not None:
        _complain_of_unreadable(config)
        size = _write(options, counts, images, config, now)
        if not options.json:
            total = sum(counts.values())
            words = (
                "{failed} rejected, {review} waiting for review, {empty} without a subject, {full} filling the frame"
            )
            said = f"{total} image{'s' * (total != 1)}, {words.format(**counts)}; {size / 1e6:.1f} MB"
            print(printable(f"{options.html}: {said}"))
    if options.json:
        print(to_json({"since": since, "counts": counts, "images": [asdict(image) for image in images]}))
    return Exit.OK


def _look_back(path: str, since: float, options: argparse.Namespace) -> tuple[dict[str, int], list[Ending]]:
    """How many of each kind, and the first of them. Raises LedgerFault."""
    with reading(path) as db:
        db.execute("BEGIN")  # both of one moment
        return counts_of_kinds(db, since, options.folder), oddest(db, since, options.limit, options.folder)


def _complain_of_unreadable(config: Config) -> None:
    for folder in config.folder:
        if folder.output.exists() and not os.access(folder.output, os.R_OK | os.X_OK, effective_ids=True):
            text = "you may not read it, so its cutouts are not shown: be root, or in the group of the service"
            print(f"rmbgd report: {folder.output}: {text}", file=sys.stderr)


def _write(
    options: argparse.Namespace, counts: dict[str, int], images: list[Ending], config: Config, now: float
) -> int:
    """Bytes of the page. It shows customers' images, so its mode is what the umask says."""
    from rich.console import Console
    from rich.progress import Progress

    from rmbgd.report import page
    from rmbgd.telemetry.captured_output import StderrCapture

    page.prepare(config.limits)
    with StderrCapture(lambda *_, **__: None):  # what libtiff has to say of hostile files
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            cards = page.cards(images, config)
            shown = list(progress.track(cards, len(images), description="thumbnails"))
    begin, end = (f"{page.moment(at):%Y-%m-%d %H:%M}" for at in (now - options.since, now))
    title = {"place": options.folder or platform.node(), "begin": begin, "end": end}
    return save_page(options.html, page.render(counts, shown, title))


def check_page(path: Path) -> None:
    """Before the work. Raises RmbgdError for what is there and may not be replaced."""
    if path.exists() and not path.is_file():
        raise RmbgdError(f"{path}: this is no regular file; name another")


def save_page(path: Path, text: str) -> int:
    """Write a page that the umask says who may read. Returns its bytes. Raises RmbgdError."""
    data = text.encode("utf-8", "backslashreplace")
    os.umask(mask := os.umask(0o077))
    try:
        fs.atomic_write(path, data, mode=0o666 & ~mask)
    except OSError as error:  # it names a temporary file, which nobody knows
        place = path.parent if isinstance(error, FileNotFoundError) else path
        error.filename, error.filename2 = os.fspath(place), None
        raise RmbgdError(explain(error)) from error
    return len(data)
