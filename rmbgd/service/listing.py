"""Lists how jobs ended: for the control socket, and for `rmbgd list` where no service runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rmbgd import naming as names
from rmbgd.config.load import Folder
from rmbgd.publish.retry import original_of
from rmbgd.publish.review import look_beside
from rmbgd.store import reading, review
from rmbgd.store.output_names import read_names
from rmbgd.store.records import SetKey
from rmbgd.wording import did_you_mean

ROWS_MAXIMUM = 10_000  # of one answer
LIVE, ENDED = ("waiting", "working"), ("failed", "review", "done")


def ended(path: str, state: str, folder: str | None, limit: int, folders: Mapping[str, Folder]) -> list[dict[str, Any]]:
    """How jobs ended, the newest first; of those that failed, where their originals lie. Raises LedgerFault."""
    with reading.reading(path) as db:
        found = reading.newest(db, state, limit, folder)
    rows = [asdict(each) for each in found]
    for each, row in zip(found, rows, strict=True) if state == "failed" else ():
        row["original"] = original_of(folders[each.folder], each) if each.folder in folders else None
    return rows


def reviews(path: str, folder: str | None, limit: int, folders: Mapping[str, Folder]) -> list[dict[str, Any]]:
    """What waits for review, the most doubtful first, and what is to be asked about it. Raises LedgerFault."""
    rows = []
    with reading.reading(path) as db:
        for each in review.waiting(db, limit, folder):
            root = folders[each.folder].review if each.folder in folders else None
            had = read_names(db, SetKey(str(root), each.folder, each.path))
            preview, files = had.pop(names.PREVIEW, None), [*had.values()]
            if root is None:
                asked = "its folder has no review directory any more"
            elif each.state == "open":
                asked = look_beside(str(root), files)
            else:
                asked = f"{each.person} decided; it is being carried out"
            known = {"job": each.job_id, "folder": each.folder, "path": each.path, "since": each.since}
            known |= {"score": each.score, "unusual": each.unusual, "reasons": each.reasons, "asked": asked}
            known |= {"files": sorted(file.full for file in files), "preview": preview and preview.full}
            rows.append(known)
    return rows


def no_such_folder(name: str, known: Iterable[str]) -> str:
    return f"there is no folder '{name}': {nearest(name, list(known))}"


def nearest(word: str, known: Sequence[str]) -> str:
    return did_you_mean(word, known) or f"there is {', '.join(known) or 'none'}"
