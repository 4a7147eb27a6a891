"""Review thread: ends decisions that a crash or a disk interrupted, and sees what people decide by moving files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from rmbgd.config.load import Folder
from rmbgd.errors import StorageFault
from rmbgd.heartbeat import Heartbeat
from rmbgd.publish.review import Reviewer, Search, UndecidableReview
from rmbgd.store.ledger import Ledger

LOOK_EVERY = 5.0  # s between two looks at all that waits, at most; people move files one by one


class ReviewMonitor:
    """`run` is the review thread's, the rest any thread's. `reconcile` as in the settings of the intake."""

    def __init__(
        self, folders: Sequence[Folder], reviewer: Reviewer, ledger: Ledger, heartbeat: Heartbeat, reconcile: float
    ) -> None:
        self.needed = any(folder.review is not None for folder in folders)
        self._reviewer, self._ledger, self._heartbeat = reviewer, ledger, heartbeat
        self._every = min(LOOK_EVERY, reconcile)
        self._closing = threading.Event()
        self.waiting = 0  # images, when they were last looked at

    def close(self) -> None:
        """Called by the main thread: ends `run` soon."""
        self._closing.set()

    def run(self) -> None:
        while not self._closing.is_set():
            if self._ledger.database.refused is None:
                with contextlib.suppress(StorageFault):  # of the ledger, which its own thread tries
                    self.look()
            self._heartbeat.waiting()
            self._closing.wait(self._every)

    def look(self) -> None:
        """At everything that waits, once."""
        search = Search(self._heartbeat.working)
        for review in self._ledger.reviews.waiting():
            if self._closing.is_set():
                return
            self._heartbeat.working()
            with contextlib.suppress(UndecidableReview, StorageFault, OSError):  # it is looked at again
                if review.state == "open":
                    self._reviewer.look(review, search)
                else:
                    self._reviewer.resume(review)
        self.waiting = self._ledger.reviews.count()
