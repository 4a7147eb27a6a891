"""The outcomes of pictures in columns: there may be millions, and each costs some forty bytes here.

Knows nothing of runs or failures.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

DONE, FAILED, POSTPONED = 0, 1, 2
KINDS = {"image.done": DONE, "image.failed": FAILED, "image.postponed": POSTPONED}

WORD_OF = {DONE: "device", FAILED: "reason", POSTPONED: "why"}
"""Which key of the event is kept as its word."""


class Pictures:
    """One row per outcome.

    at      monotonic seconds of its boot
    pid     of the service's process
    kind    DONE, FAILED or POSTPONED
    word    index into `words`: the device that computed it, the reason it was refused, why it was put back
    engine  1 when the engine stage refused it
    again   1 when the next start told it for a run that was killed about then: it may have been told before
    same    hash of folder, path, job and content: equal for the same work
    digest  hash of the line
    stages  milliseconds per stage, NaN where a row has none; "total" is one of them
    """

    def __init__(self) -> None:
        self.at = array("d")
        self.pid = array("q")
        self.kind = array("B")
        self.word = array("H")
        self.engine = array("B")
        self.again = array("B")
        self.same = array("q")
        self.digest = array("q")
        self.stages: dict[str, array[float]] = {}
        self.words: list[str] = []
        self._index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.at)

    def add(self, at: float, pid: int, event: str, record: Mapping[str, Any], digest: int) -> None:
        kind = KINDS.get(event)
        if kind is None:
            return
        times = record.get("milliseconds")
        self._append(
            at,
            pid,
            kind,
            str(record.get(WORD_OF[kind], "")),
            record.get("stage") == "engine",
            record.get("recovered") is True,
            hash((record.get("folder"), record.get("path"), record.get("job"), record.get("sha256_in"))),
            digest,
            {str(stage): value for stage, value in times.items()} if isinstance(times, dict) else {},
        )

    def _append(
        self,
        at: float,
        pid: int,
        kind: int,
        word: str,
        engine: bool,
        again: bool,
        same: int,
        digest: int,
        times: Mapping[str, Any],
    ) -> None:
        rows = len(self.at)
        self.at.append(at)
        self.pid.append(pid)
        self.kind.append(kind)
        if word not in self._index:
            if len(self.words) == 1 << 16:
                word = self.words[-1]  # nobody has so many devices and reasons
            else:
                self._index[word] = len(self.words)
                self.words.append(word)
        self.word.append(self._index[word])
        self.engine.append(engine)
        self.again.append(again)
        self.same.append(same)
        self.digest.append(digest)
        for stage, value in times.items():
            if stage not in self.stages and isinstance(value, (int, float)):
                self.stages[stage] = array("f", [math.nan]) * rows
        for stage, column in self.stages.items():
            value = times.get(stage)
            column.append(float(value) if isinstance(value, (int, float)) else math.nan)

    def extend(self, other: Pictures) -> None:
        for row in range(len(other)):
            self._append(*other.row(row))

    def row(self, i: int) -> tuple[float, int, int, str, bool, bool, int, int, dict[str, float]]:
        times = {stage: column[i] for stage, column in self.stages.items() if not math.isnan(column[i])}
        word = self.words[self.word[i]]
        marks = bool(self.engine[i]), bool(self.again[i])
        return (self.at[i], self.pid[i], self.kind[i], word, *marks, self.same[i], self.digest[i], times)

    def ordered(self) -> tuple[Pictures, int]:
        """(rows by time, each line once; how many lines stood more than once)."""
        order = sorted(range(len(self)), key=lambda i: (self.at[i], self.digest[i]))
        kept = [
            i
            for before, i in zip([None, *order], order, strict=False)
            if before is None or self.at[before] != self.at[i] or self.digest[before] != self.digest[i]
        ]
        if kept == list(range(len(self))):
            return self, 0
        return self._only(kept), len(self) - len(kept)

    def told_again(self) -> set[int]:
        """`same` of what may repeat another row: few, as each needs a crash."""
        return {self.same[i] for i, again in enumerate(self.again) if again}

    def without_repeats(self, asked: set[int], told: set[int]) -> tuple[Pictures, int]:
        """(rows without those that repeat what another has told, how many those were). The rows must be in order.

        `asked`: `told_again` of all boots. `told`: those of them that boots before have told; what is here is added.
        """
        told |= {self.same[i] for i, again in enumerate(self.again) if not again and self._ends(i, asked)}
        kept = []
        for i, again in enumerate(self.again):
            if not again or self.same[i] not in told:
                kept.append(i)
            if again:
                told.add(self.same[i])
        return (self, 0) if len(kept) == len(self) else (self._only(kept), len(self) - len(kept))

    def _ends(self, i: int, asked: set[int]) -> bool:
        return self.kind[i] != POSTPONED and self.same[i] in asked

    def _only(self, kept: list[int]) -> Pictures:
        result = Pictures()
        result.words, result._index = self.words, self._index
        for name in ("at", "pid", "kind", "word", "engine", "again", "same", "digest"):
            column = getattr(self, name)
            getattr(result, name).extend(column[i] for i in kept)
        result.stages = {stage: array("f", (column[i] for i in kept)) for stage, column in self.stages.items()}
        return result

    def between(self, begin: float, end: float) -> range:
        """Rows with begin <= at <= end; the rows must be in order."""
        return range(bisect_left(self.at, begin), bisect_right(self.at, end))

    def values(self, stage: str) -> Iterator[float]:
        """Milliseconds of one stage, of finished pictures that have it."""
        column = self.stages.get(stage, array("f"))
        for kind, value in zip(self.kind, column, strict=False):
            if kind == DONE and not math.isnan(value):
                yield value
