"""Backlog of the intake: arriving files by when to look again, complete ones by folder priority and age.

Bounded in size; the reconcile thread's alone. What the last run died with goes before it, one job at a time.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rmbgd.config.load import Folder
from rmbgd.intake.frame_queue import FrameQueue
from rmbgd.intake.readiness import ArrivingFile
from rmbgd.sequence.numbering import frame_number
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Job, Unfinished

AGEING = 10.0  # seconds of waiting that are worth one step of priority, so that nothing waits for ever

Key = tuple[str, str]  # (folder, relative path)


@dataclass(frozen=True, slots=True)
class Complete:
    """A file that may be claimed. `refusal`: it is claimed only to be refused, and this gate is why."""

    key: Key
    arrival: ArrivingFile
    final: bool
    refusal: str = ""


class Backlog:
    """Every file is in it at most once: arriving, or complete. Its places are shared evenly among the folders, so that
    the backlog of one does not keep the files of another, which may go before them, from being seen."""

    def __init__(
        self, folders: Collection[Folder], maximum: int, frames: Mapping[str, FrameQueue] = MappingProxyType({})
    ) -> None:
        """`frames`: what hands out the files of folders of frames, by folder."""
        self._folders = {folder.name: folder for folder in folders}
        self._frames = frames
        self._has_live = any(folder.latency == "realtime" for folder in folders)
        self._share = max(1, maximum // max(1, len(self._folders)))
        self._counts = dict.fromkeys(self._folders, 0)
        self._arriving: dict[Key, ArrivingFile] = {}
        self._complete: dict[Key, Complete] = {}
        self._looks: list[tuple[float, int, Key]] = []  # heap; entries of files that moved on are skipped
        self._order: dict[str, list[tuple[bool, float, int, Key]]] = {name: [] for name in self._folders}  # a heap each
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._arriving) + len(self._complete)

    def full(self, folder: str) -> bool:
        return self._counts[folder] >= self._share

    @property
    def share(self) -> int:
        """Files of one folder that have a place."""
        return self._share

    def half_empty(self, folder: str) -> bool:
        return 2 * self._counts[folder] <= self._share

    def get(self, key: Key) -> ArrivingFile | None:
        complete = self._complete.get(key)
        return self._arriving.get(key) or (complete.arrival if complete else None)

    def put(self, key: Key, arrival: ArrivingFile) -> None:
        """It arrives, or has changed: look at it when its `look_at` says."""
        self.forget(key)
        self._arriving[key] = arrival
        self._counts[key[0]] += 1
        if (frames := self._frames.get(key[0])) is not None:
            frames.arrives(key[1], arrival)
        heapq.heappush(self._looks, (arrival.look_at, next(self._numbers), key))

    def complete(self, complete: Complete) -> None:
        """It may be claimed. Realtime folders go first; else priority, raised by waiting: that order is fixed here."""
        key, folder = complete.key, self._folders[complete.key[0]]
        self.forget(key)
        self._complete[key] = complete
        self._counts[folder.name] += 1
        if folder.name in self._frames:
            self._frames[folder.name].add(key[1])
            return
        heapq.heappush(self._order[folder.name], self._rank(complete))

    def _rank(self, complete: Complete) -> tuple[bool, float, int, Key]:
        folder = self._folders[complete.key[0]]
        rank = complete.arrival.first_seen / AGEING - folder.priority
        return folder.latency != "realtime", rank, next(self._numbers), complete.key

    def forget(self, key: Key) -> None:
        if self._arriving.pop(key, None) is not None or self._complete.pop(key, None) is not None:
            self._counts[key[0]] -= 1
            if (frames := self._frames.get(key[0])) is not None:
                frames.discard(key[1])

    def keep(self, folder: str, paths: Collection[str]) -> None:
        """Of this folder only these keep their places; the others are seen again when there is room."""
        for key in [key for key in (*self._arriving, *self._complete) if key[0] == folder and key[1] not in paths]:
            self.forget(key)

    def forget_folder(self, folder: str) -> None:
        for key in [key for key in (*self._arriving, *self._complete) if key[0] == folder]:
            self.forget(key)

    def due(self, now: float) -> Iterator[tuple[Key, ArrivingFile]]:
        """Files to look at now, each once; put() them back, complete() or forget() them."""
        while self._looks and self._looks[0][0] <= now:
            look_at, _, key = heapq.heappop(self._looks)
            arrival = self._arriving.get(key)
            if arrival is not None and arrival.look_at <= look_at:
                yield key, arrival

    def next_look(self) -> float | None:
        while self._looks and self._looks[0][2] not in self._arriving:
            heapq.heappop(self._looks)
        return self._looks[0][0] if self._looks else None

    def take(
        self, count: int, closed: Collection[str], now: float, frames: Mapping[bool, int], live: int, films: int
    ) -> list[Complete]:
        """The first `count` complete files of folders that are not in `closed`; they leave the backlog.

        `frames`: how many may be frames, of realtime folders and of others; `live`: places for realtime folders alone,
        where there are any; `films`: how many may be films.
        """
        left = dict(frames)
        heads_of = {name: queue.heads(now) for name, queue in self._frames.items() if name not in closed}
        others = count - live if self._has_live else count
        taken: list[Complete] = []
        while len(taken) < count:
            for order in self._order.values():
                while order and order[0][3] not in self._complete:
                    heapq.heappop(order)
            heads = [
                order[0]
                for name, order in self._order.items()
                if order and name not in closed and (films > 0 or self._folders[name].kind != "films")
            ]
            heads += [
                self._rank(self._complete[name, path])
                for name, paths in heads_of.items()
                if left[self._is_live(name)] > 0
                for path in paths
            ]
            if not heads:
                break
            waits_for_batches, _, _, key = min(heads)
            if waits_for_batches and len(taken) >= others:
                break
            if (queue_of := self._frames.get(key[0])) is not None:
                queue_of.take(key[1], now)
                left[self._is_live(key[0])] -= 1
            else:
                heapq.heappop(self._order[key[0]])
                films -= self._folders[key[0]].kind == "films"
            taken.append(self._complete[key])
            self.forget(key)
            if queue_of is not None:
                paths = [path for path in heads_of[key[0]] if path != key[1]]
                heads_of[key[0]] = paths + queue_of.head_after(key[1], now)
        return taken

    def _is_live(self, folder: str) -> bool:
        return self._folders[folder].latency == "realtime"

    def longest_waiting(self, count: int, folder: str | None) -> list[tuple[Key, ArrivingFile, bool]]:
        """(key, file, is it complete) of the `count` first seen, of one folder or of all. Looks at every file."""
        complete = ((key, each.arrival, True) for key, each in self._complete.items())
        arriving = ((key, arrival, False) for key, arrival in self._arriving.items())
        every = (entry for entry in (*complete, *arriving) if folder in (None, entry[0][0]))
        return heapq.nsmallest(count, every, key=lambda entry: (entry[1].first_seen, entry[0]))

    def oldest(self) -> float | None:
        """When the file that has waited longest was first seen. Looks at every file."""
        complete = (each.arrival for each in self._complete.values())
        return min((each.first_seen for each in (*self._arriving.values(), *complete)), default=None)


class Suspects:
    """Jobs during which the last run died. One of them may be the cause, so each is worked on while no other is.

    Its attempt is counted at the moment when it is handed out: an image that was only in flight together with one that
    kills the service is not counted with it again and again, and is not set aside with it.
    """

    def __init__(self, ledger: Ledger, frames: Collection[str] = ()) -> None:
        """`frames`: folders whose images are frames, which go in the order of their numbers."""
        self._ledger, self._frames = ledger, frames
        self._waiting: list[Unfinished] = []
        self._current: int | None = None

    def remain(self) -> bool:
        """Is one at work, or still to be handed out?"""
        if self._current is not None and not self._ledger.is_in_flight(self._current):
            self._current = None
        return self._current is not None or bool(self._waiting)

    def add(self, row: Unfinished) -> None:
        """Behind those that fewer runs died with."""
        bisect.insort(self._waiting, row, key=lambda each: (each.attempt, each.job_id))

    def left(self, job_id: int) -> None:
        """It cannot be put back as long as its disk is away: the others need not wait for that."""
        if job_id == self._current:
            self._current = None

    def next(self) -> Job | None:
        """The next to send, its attempt counted; None while the one before is at work, or when all are through.

        Raises StorageFault when the attempt cannot be counted; nothing is handed out then.
        """
        if not self.remain() or self._current is not None:
            return None
        index = self._first()
        job = self._ledger.next_attempt(self._waiting[index])
        del self._waiting[index]
        self._current = job.job_id
        return job

    def _first(self) -> int:
        """Of the sequence of the first one, the lowest number."""
        first = self._waiting[0]
        if first.folder not in self._frames or (place := frame_number(first.relative_path)) is None:
            return 0
        numbers = [
            (frame_number(row.relative_path), index)
            for index, row in enumerate(self._waiting)
            if row.folder == first.folder
        ]
        return min((found.number, index) for found, index in numbers if found and found.sequence == place.sequence)[1]
