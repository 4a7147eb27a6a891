"""What is done now and then beside the intake's work: originals retired late, old rows forgotten, rows counted, and
what waits for a commit written when none comes.

Belongs to the reconcile thread. Decides nothing about files that are arriving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rmbgd.clock import Clock
from rmbgd.errors import StorageFault
from rmbgd.intake.ledger import Ledger, Unfinished

PRUNE_EVERY = 3600.0  # s
PRUNE_PAUSE = 1.0  # s between two batches of one pruning
SETTLE_EVERY = 5.0  # s between two looks whether something waits for a commit that does not come
COUNT_EVERY = 60.0  # s between two counts of the ledger's rows, which read all of them


class Retirer(Protocol):
    """Originals that could not be moved or deleted after success."""

    def retry(self) -> float | None:
        """Try those that are due; when the next one will be."""
        ...


class Housekeeping:
    """`still_there(folder, path)`: rows of files that stay in place are kept while they do."""

    def __init__(
        self, ledger: Ledger, retirer: Retirer, clock: Clock, still_there: Callable[[str, str], bool], retry: float
    ) -> None:
        self.ledger_rows = 0
        self._ledger, self._retirer, self._still_there, self._retry = ledger, retirer, still_there, retry
        self._next_retire = self._next_count = self._next_settle = clock.monotonic()
        self._next_prune = clock.monotonic() + PRUNE_EVERY
        self._prune_after = 0

    def next_moment(self) -> float:
        return min(self._next_retire, self._next_prune)

    def work(self, now: float) -> None:
        if now >= self._next_retire:
            self._next_retire = self._retirer.retry() or now + self._retry
        try:
            if now >= self._next_prune:
                self._prune_after = self._ledger.prune(self._is_kept, after=self._prune_after)
                self._next_prune = now + (PRUNE_PAUSE if self._prune_after else PRUNE_EVERY)
            if now >= self._next_settle:
                self._next_settle = now + SETTLE_EVERY
                self._ledger.settle()
            if now >= self._next_count:
                self._next_count = now + COUNT_EVERY
                self.ledger_rows = sum(self._ledger.counts().values())
        except StorageFault:  # the next claim meets the same fault, and tells
            self._prune_after, self._next_prune = 0, now + PRUNE_EVERY

    def _is_kept(self, row: Unfinished) -> bool:
        return self._still_there(row.folder, row.relative_path)
