"""Checks the ledger: may it be used, is it sound, how old is its newest copy, and does a damaged one lie beside it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from rmbgd.access_rights import user_name
from rmbgd.config.load import Config
from rmbgd.doctor.checks import CheckResult, fail, ok, warn
from rmbgd.doctor.folders import other_user
from rmbgd.errors import LedgerFault
from rmbgd.store import copies
from rmbgd.store.ledger_lock import LEDGER
from rmbgd.store.refusals import SUFFIXES, ledger_faults, refusal

OLD = 3 * copies.DAY  # s; copies are made once a day


def check_ledger(config: Config) -> Iterator[CheckResult]:
    path = str(config.service.state_directory / LEDGER)
    if other_user(config):  # its rights are another matter than this user's, as of the folders
        return
    try:
        os.stat(path)
    except FileNotFoundError:
        yield ok("ledger", f"none yet at {path}")
    except OSError as error:
        yield fail("ledger", f"{path}: {error.strerror}", "run this as the service's user, or see the state directory")
        return
    else:
        yield sound(path)
        yield newest_copy(path)
    if lying := copies.aside(path, "damaged"):
        text = f"damaged ones were set aside: {', '.join(str(each) for each in lying)}"
        yield warn("ledger", text, "see `ledger.replaced` in the log and the health of the disk; then remove them")


def sound(path: str) -> CheckResult:
    if (found := refusal(path)) is not None:
        return fail("ledger", found.text, found.remedy)
    folder = os.stat(os.path.dirname(path)).st_uid
    for name in (path + suffix for suffix in SUFFIXES if os.path.exists(path + suffix)):
        if os.stat(name).st_uid != folder:  # root may use it all the same, the service may not
            return fail("ledger", f"{name} is not the service's", f"chown {user_name(folder)} {name}")
    try:
        with ledger_faults(path), contextlib.closing(copies.connect(path, "ro")) as db:
            wrong = copies.finding(db)
    except LedgerFault as fault:
        return fail("ledger", fault.detail)
    if wrong:
        text = f"{path} is damaged: {wrong}"
        return fail("ledger", text, "a start of the service replaces it by its newest copy, and says what is lost")
    return ok("ledger", f"{path}: sound, and this user may use it")


def newest_copy(path: str) -> CheckResult:
    found = [each for each in copies.copies(path) if copies.is_daily(each)]
    if not found:
        hint = "the service makes one within minutes of its start; or: rmbgd ledger backup"
        return warn("ledger copy", f"none in {copies.folder(path)}", hint)
    age = max(0.0, time.time() - found[0].time)
    text = f"{found[0].path}, {age / 3600:.0f} h old"
    if age > OLD:
        return warn("ledger copy", text, "see `ledger.copy_failed` in the log; or: rmbgd ledger backup")
    return ok("ledger copy", text)
