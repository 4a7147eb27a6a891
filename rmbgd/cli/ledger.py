"""`rmbgd ledger`: checks the record of images, copies it, and puts a copy in its place."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rmbgd.cli.main import add_config
from rmbgd.cli.status import directories, ledger_of
from rmbgd.errors import ConfigError, Exit, LedgerFault
from rmbgd.store import copies, opening
from rmbgd.store.ledger_lock import LEDGER, lock_out_others
from rmbgd.store.refusals import ledger_faults
from rmbgd.wording import duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    add_config(shared)
    commands = parser.add_subparsers(
        title="commands", dest="ledger_verb", required=True, metavar="check | backup | restore"
    )

    def command(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        description = text[0].upper() + text[1:] + "."
        added = commands.add_parser(name, help=text, description=description, parents=[shared])
        added.set_defaults(ledger_action=action)
        return added

    command("check", "check the whole ledger, also of a running service, and list its copies", _check)
    added = command("backup", "copy the ledger, also of a running service", _backup)
    text = "file to write the copy to (default: today's copy in the state directory)"
    added.add_argument("file", nargs="?", type=Path, metavar="FILE", help=text)
    added = command("restore", "put a copy in the ledger's place, which is kept; the service must be stopped", _restore)
    text = "copy to restore (default: the newest sound copy in the state directory)"
    added.add_argument("file", nargs="?", type=Path, metavar="FILE", help=text)


def run(options: argparse.Namespace) -> int:
    """0, or 1 when it is not sound or could not be done, with one line on stderr for each reason."""
    return int(options.ledger_action(options))


def _complain(text: object) -> int:
    print(f"rmbgd ledger: {text}", file=sys.stderr)
    return Exit.FAILED


def _check(options: argparse.Namespace) -> int:
    path = ledger_of(options.config)
    with ledger_faults(path), contextlib.closing(copies.connect(path, "ro")) as db:
        found = copies.finding(db, "integrity_check")
        rows = {} if found else dict(db.execute("SELECT state, count(*) FROM job GROUP BY state ORDER BY state"))
    counts = ", ".join(f"{count:,} {state}" for state, count in rows.items()) or "no jobs"
    print(f"{path}: {f'damaged: {found}' if found else f'sound; {counts}'}")
    for each in copies.copies(path):
        wrong = copies.unsound(each.path)
        age = duration(max(0.0, time.time() - each.time))
        print(f"{each.path}: {f'not usable: {wrong}' if wrong else 'sound'}, {age} old")
    for lying in (each for why in ("damaged", "replaced") for each in copies.aside(path, why)):
        print(f"{lying}: set aside; remove it when you do not want to look into it")
    if found:
        return _complain("a start of the service replaces it by the newest sound copy; so does `rmbgd ledger restore`")
    return Exit.OK


def _backup(options: argparse.Namespace) -> int:
    path = ledger_of(options.config)
    if options.file is None:
        target = copies.copy_of_today(path, datetime.now(UTC))
        _give_to_owner(target, path)
    elif options.file.is_dir() or not options.file.parent.is_dir():
        return _complain(f"{options.file}: name a file for the copy, in a directory that exists")
    elif options.file.exists() and options.file.samefile(path):
        return _complain(f"{options.file}: this is the ledger itself; name another file")
    else:
        target = options.file
        copies.copy(path, target)
    print(f"{target}: {target.stat().st_size:,} bytes, checked")
    return Exit.OK


def _restore(options: argparse.Namespace) -> int:
    path = str(directories(options.config)[1] / LEDGER)
    try:
        held = lock_out_others(path + ".lock")
    except ConfigError as error:
        return _complain(f"{error} (systemctl stop rmbgd)")
    except LedgerFault as fault:
        return _complain(f"{fault.path}: {fault.detail}")
    try:
        owner = os.stat(os.path.dirname(path))
        if os.geteuid() == 0:
            os.fchown(held, owner.st_uid, owner.st_gid)
        copied = copies.newest_good(path) if options.file is None else None
        source = copied.path if copied is not None else options.file
        if source is None:
            return _complain(f"{copies.folder(path)}: no sound copy; name a FILE")
        if not source.is_file():
            return _complain(f"{source}: no such file")
        if wrong := copies.unsound(source, alone=False):
            return _complain(f"{source}: it cannot be restored: {wrong}")
        old = os.stat(path) if os.path.exists(path) else owner
        with ledger_faults(path):
            lies = opening.put_in_place(path, source, "replaced", datetime.now(UTC))
            os.chmod(path, old.st_mode & 0o666)
            if os.geteuid() == 0:
                os.chown(path, old.st_uid, old.st_gid)
        if wrong := copies.unsound(Path(path)):
            return _complain(f"{path}: restored, but not sound: {wrong}")
    finally:
        os.close(held)
    print(f"{path}: restored from {source}, checked" + (f"; the former one is {lies}" if lies else ""))
    return Exit.OK


def _give_to_owner(target: Path, path: str) -> None:
    """What root makes in the state directory is the service's, which removes old copies itself."""
    if os.geteuid() == 0:
        owner = os.stat(path)
        for each in (target.parent, target):
            os.chown(each, owner.st_uid, owner.st_gid)
