"""Reads ended images from the ledger: read-only, beside a running service, of any schema."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from rmbgd.errors import RmbgdError
from rmbgd.store.copies import connect, schema_of
from rmbgd.store.refusals import SUFFIXES, ledger_faults
from rmbgd.store.schema import SCHEMA_VERSION

_COLUMNS = "folder, path, state, ended_at, size, reason, detail, target, size_out"
_OF_DONE = "verdict, width, height, device, seconds"  # columns since schema 3
# An original that was adopted has no target: it was not processed.
_ENDED = "state IN ('done', 'failed') AND (state='failed' OR target IS NOT NULL) AND ended_at>=? AND (?='' OR folder=?)"
_ORDER = "CASE WHEN state='failed' THEN 0 WHEN verdict='empty' THEN 1 WHEN verdict='full' THEN 2 ELSE 3 END"


@dataclass(frozen=True, slots=True)
class EndedImage:
    """A row of the ledger. What its version did not record is None.

    path      below the drop folder, decoded with surrogateescape
    output    below the output folder; likewise
    ended_at  s since 1970
    """

    folder: str
    path: str
    state: str
    ended_at: float
    size: int
    reason: str | None
    detail: str | None
    output: str | None
    size_out: int | None
    verdict: str | None
    width: int | None
    height: int | None
    device: str | None
    seconds: float | None

    @property
    def kind(self) -> str:
        """failed, empty, full, or done."""
        return self.verdict if self.state == "done" and self.verdict in ("empty", "full") else self.state


@dataclass(frozen=True, slots=True)
class EndedImages:
    """`counts` by kind, of all; `images`: the first of them, failures first, then empty and full, the newest first."""

    counts: dict[str, int]
    images: list[EndedImage]


def read_history(path: str, *, since: float, folder: str = "", limit: int) -> EndedImages:
    """Images that ended after `since`, of one folder or of all. Raises RmbgdError, LedgerFault."""
    denied = RmbgdError(f"{path}: Permission denied; be root, or the service's user")
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RmbgdError(f"{path}: there is no ledger; the service makes one when it starts") from error
    except PermissionError as error:
        raise denied from error
    if not os.access(path, os.R_OK, effective_ids=True):
        raise denied
    # Without a service there may be no -wal, and no right to make one: then nobody writes.
    alone = not os.path.exists(path + SUFFIXES[1]) and not os.access(os.path.dirname(path), os.W_OK, effective_ids=True)
    with ledger_faults(path), contextlib.closing(connect(path, "ro&immutable=1" if alone else "ro")) as db:
        if not 1 <= (schema := schema_of(db)) <= SCHEMA_VERSION:
            raise RmbgdError(f"{path}: ledger of schema {schema}, this rmbgd knows 1 to {SCHEMA_VERSION}")
        more = _OF_DONE if schema >= 3 else ", ".join(f"NULL AS {name}" for name in _OF_DONE.split(", "))
        ended = f"(SELECT id, {_COLUMNS}, {more} FROM job WHERE {_ENDED})"  # noqa: S608 - our own words
        values = (since, folder, folder)
        db.execute("BEGIN")  # both questions of one moment
        kinds = db.execute(f"SELECT state, verdict, count(*) FROM {ended} GROUP BY 1, 2", values).fetchall()  # noqa: S608
        query = f"SELECT {_COLUMNS}, {_OF_DONE} FROM {ended} ORDER BY {_ORDER}, ended_at DESC, id DESC LIMIT ?"  # noqa: S608
        rows = db.execute(query, (*values, limit)).fetchall()
    counts = dict.fromkeys(("failed", "empty", "full", "done"), 0)
    for state, verdict, count in kinds:
        counts[verdict if state == "done" and verdict in ("empty", "full") else state] += count
    return EndedImages(counts, [_image(row) for row in rows])


def _image(row: tuple[object, ...]) -> EndedImage:
    folder, path, state, ended_at, size, reason, detail, target, *more = row
    output = os.fsdecode(target) if isinstance(target, bytes) else None
    assert isinstance(path, bytes)
    return EndedImage(folder, os.fsdecode(path), state, ended_at, size, reason, detail, output, *more)  # type: ignore[arg-type]
