"""Compares a root's inputs with what stands of their results: the truth, whatever the queue remembers."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from rmbgd import naming as names
from rmbgd.fleet.share import SharedRoot, fingerprint_of
from rmbgd.intake.ignored import Ignored
from rmbgd.intake.scanner import scan
from rmbgd.publish.file_set import roots_of_sets

LOOKS_AT_ONCE = 16  # a share answers in milliseconds, and the next look need not wait for that
LOOKED_AT = 1024
TEMPORARY_AGE = 6 * 3600.0  # s after which a temporary is nobody's: longer than any lease


@dataclass(frozen=True, slots=True)
class Entry:
    """One input: its path below the root, and which version stands there, changed `age` seconds ago."""

    key: str
    fingerprint: str
    age: float


def list_inputs(root: SharedRoot) -> Iterator[Entry]:
    """Every image of a root that is no upload's companion, in the order of the file system. Raises OSError where the
    root cannot be read; what cannot be read below it is left out."""
    folder, now = root.folder, time.time()
    os.listdir(folder.input)
    for path, status in scan(str(folder.input), "", Ignored(folder.ignore), recursive=folder.recursive):
        if isinstance(status, os.stat_result) and stat.S_ISREG(status.st_mode):
            yield Entry(path, fingerprint_of(status), now - status.st_mtime)


def answered(root: SharedRoot, entries: Iterable[Entry]) -> Iterator[tuple[Entry, str]]:
    """Each with "done", "failed", or "" where this version has no answer. Raises OSError."""

    def look(entry: Entry) -> tuple[Entry, str]:
        found = root.answer(entry.key, entry.fingerprint)
        return entry, "" if found is None else found.kind

    left = iter(entries)
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        while some := list(islice(left, LOOKED_AT)):  # map takes all that it is given at once
            yield from pool.map(look, some)


def remove_temporaries(root: SharedRoot) -> int:
    """Those that workers left which died, in the root's outputs; how many."""
    folders = [*roots_of_sets(root.folder), str(root.folder.failed)]
    found, oldest = 0, time.time() - TEMPORARY_AGE
    for folder in folders:
        for here, _, files in os.walk(folder):
            for name in filter(names.is_temporary, files):
                path = os.path.join(here, name)
                with suppress(OSError):
                    if os.lstat(path).st_mtime < oldest:
                        os.unlink(path)
                        found += 1
    return found
