"""The events of pictures that another run has ended: told at the next start, from the ledger, when they may be missing.

Moves nothing and decides nothing about a picture.
"""

from __future__ import annotations

from collections.abc import Mapping

from rmbgd.errors import Reason
from rmbgd.events import Emit
from rmbgd.intake.ledger import Ledger, Unfinished

UNSAID: Mapping[str, object] = {"milliseconds": {}, "stage": "intake"}
"""Of a picture that no stage has worked on."""


class Outcomes:
    """Belongs to recovery. Each outcome is told once; `told` counts them."""

    def __init__(self, ledger: Ledger, emit: Emit) -> None:
        self._ledger = ledger
        self._emit = emit
        self._untold: dict[int, dict[str, object]] = {}
        self.told = 0

    def load(self) -> None:
        """What the last run may not have told; that of jobs with which nothing else is left to do is told at once."""
        self._untold = self._ledger.untold.keys()
        for row in self._ledger.ended_untold():
            if row.state == "done":
                self.done(row)
            else:
                self.refused(row, None, otherwise=None)

    def stage(self, row: Unfinished) -> str:
        """Which stage refused it."""
        return str(self._untold.get(row.job_id, UNSAID)["stage"])

    def done(self, row: Unfinished) -> None:
        """A picture whose output stands, unless its event surely was written."""
        telling = self._untold.pop(row.job_id, None)
        if telling is not None:
            self.told += 1
            output = {"output": row.target, "bytes_out": row.size_out, "sha256_out": row.sha256_out}
            self._emit("image.done", **_whose(row), **telling, **output, recovered=True)
            self._ledger.untold.told(row.job_id)

    def refused(self, row: Unfinished, placed: str | None, *, otherwise: Mapping[str, object] | None) -> None:
        """The same of one that was refused. `otherwise`: what to say when the ledger does not know; None: nothing."""
        telling = self._untold.pop(row.job_id, otherwise)
        if telling is not None:
            self.told += 1
            self._failed(row, telling, Reason(row.reason or Reason.CORRUPT), row.detail or "", placed, recovered=True)

    def set_aside(self, row: Unfinished, reason: Reason, detail: str, placed: str | None) -> None:
        """One that is refused just now."""
        self._failed(row, UNSAID, reason, detail, placed)

    def _failed(
        self,
        row: Unfinished,
        telling: Mapping[str, object],
        reason: Reason,
        detail: str,
        placed: str | None,
        **extra: object,
    ) -> None:
        where = {} if placed is None else {"quarantine": placed}
        self._emit("image.failed", **_whose(row), **telling, reason=str(reason), detail=detail, **where, **extra)
        self._ledger.untold.told(row.job_id)


def _whose(row: Unfinished) -> dict[str, object]:
    return {"job": row.job_id, "folder": row.folder, "path": row.relative_path, "attempt": row.attempt}
