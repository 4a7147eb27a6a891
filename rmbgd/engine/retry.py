"""POLICY: what to run again after an engine fault, and when an image is to blame. Pure bookkeeping for one batch.

Does not run anything, wait, or know engines: resilient.py asks for the next group and tells what became of it.

A fault says nothing about who caused it, so a failed group is run again image by image, and only an image that was
alone can be accused. It then goes behind the others. It is convicted when it was part of `tries` faults, the last of
them alone and, where a fallback stands by, there; and after that a fresh engine has passed its golden image. So the
fault in company counts, which saves a process, and nobody is convicted by a device that may be sick itself. Shortage of
memory accuses nobody while the group can be halved.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rmbgd.engine.types import Answer, Poisoned, Work


class Attempts:
    """One batch on its way to one verdict per image."""

    def __init__(self, batch: Sequence[Work], tries: int) -> None:
        self._order = [work.image_id for work in batch]
        if len(set(self._order)) < len(self._order):
            raise ValueError(f"images {self._order}: one is there twice")
        self._tries = tries
        self._todo: deque[list[Work]] = deque([list(batch)] if batch else [])
        self._runs: Counter[int] = Counter()
        self._faults: Counter[int] = Counter()  # that an image was part of
        self._alone: set[int] = set()  # failed alone, anywhere
        self._on_fallback: set[int] = set()  # failed alone where nothing is left to go to
        self._last_fault: dict[int, str] = {}
        self._verdicts: dict[int, Answer | Poisoned] = {}

    @property
    def open(self) -> bool:
        """Whether any image has no verdict yet."""
        return len(self._verdicts) < len(self._order)

    def accused_next(self) -> bool:
        """Whether the next group has met a fault before: it is better tried where it does the least harm."""
        return bool(self._todo) and any(self._faults[work.image_id] for work in self._todo[0])

    def next_group(self, limit: int, *, fallback: bool = False) -> list[Work]:
        """What to run now, at most `limit` images; empty when nothing is left. `fallback`: one stands by.

        Only to be asked while an engine is ready that has passed its golden image: it convicts by that.
        """
        while self._todo:
            group = self._todo.popleft()
            first = group[0].image_id
            if self._guilty(first, fallback=fallback):
                self._verdicts[first] = Poisoned(first, self._last_fault[first], self._runs[first])
                continue
            if len(group) > limit:
                self._todo.appendleft(group[limit:])
                group = group[:limit]
            self._runs.update(work.image_id for work in group)
            return group
        return []

    def answered(self, answers: Iterable[Answer | Poisoned]) -> None:
        for answer in answers:
            runs = self._runs[answer.image_id]
            self._verdicts[answer.image_id] = replace(answer, tries=max(runs, answer.tries))

    def failed(self, group: Sequence[Work], detail: str, *, on_fallback: bool = False) -> None:
        """The engine is gone. Those that were together run one by one; one that was alone is accused."""
        self._faults.update(work.image_id for work in group)
        if len(group) > 1:
            self._again([work] for work in group)
            return
        first = group[0].image_id
        self._last_fault[first] = detail
        self._alone.add(first)
        if on_fallback:
            self._on_fallback.add(first)
        self._todo.append(list(group))

    def interrupted(self, group: Sequence[Work]) -> None:
        """The device was taken away for another reason than the group: it runs again as it was."""
        self._again([list(group)])

    def too_large(self, group: Sequence[Work], detail: str, *, on_fallback: bool = False) -> None:
        """Not enough memory for the group: its halves may pass."""
        if len(group) == 1:
            self.failed(group, detail, on_fallback=on_fallback)
        else:
            half = (len(group) + 1) // 2
            self._again([list(group[:half]), list(group[half:])])

    def verdicts(self) -> list[Answer | Poisoned]:
        """One per image, in the order of the batch."""
        return [self._verdicts[image_id] for image_id in self._order]

    def _guilty(self, image_id: int, *, fallback: bool) -> bool:
        proof = self._on_fallback if fallback else self._alone
        return image_id in proof and self._faults[image_id] >= self._tries

    def _again(self, groups: Iterable[list[Work]]) -> None:
        self._todo.extendleft(reversed([list(group) for group in groups]))


def delay(failures: int, maximum: float) -> float:
    """Seconds before the next start, after so many failures in a row: none at first, then 1, 2, 4 ... maximum."""
    if failures <= 1:
        return 0.0
    return min(2.0 ** min(failures - 2, 32), maximum)
