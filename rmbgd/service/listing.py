"""Lists how jobs ended: for the control socket, and for `rmbgd list` where no service runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rmbgd.config.load import Folder
from rmbgd.publish.retry import original_of
from rmbgd.store import reading
from rmbgd.wording import did_you_mean

ROWS_MAXIMUM = 10_000  # of one answer
LIVE, ENDED = ("waiting", "working"), ("failed", "done")


def ended(path: str, state: str, folder: str | None, limit: int, folders: Mapping[str, Folder]) -> list[dict[str, Any]]:
    """How jobs ended, the newest first; of those that failed, where their originals lie. Raises LedgerFault."""
    with reading.reading(path) as db:
        found = reading.newest(db, state, limit, folder)
    rows = [asdict(each) for each in found]
    for each, row in zip(found, rows, strict=True) if state == "failed" else ():
        row["original"] = original_of(folders[each.folder], each) if each.folder in folders else None
    return rows


def no_such_folder(name: str, known: Iterable[str]) -> str:
    return f"there is no folder '{name}': {nearest(name, list(known))}"


def nearest(word: str, known: Sequence[str]) -> str:
    return did_you_mean(word, known) or f"there is {', '.join(known) or 'none'}"
