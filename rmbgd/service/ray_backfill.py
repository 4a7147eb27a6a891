"""`rmbgd backfill --ray`: a whole root by actors of a Ray cluster, which get names; extra `rmbgd[ray]`.

What an actor had when it died runs again alone, so that an image that kills is found. What one could not read or store
gets another when all else is done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from rmbgd import __version__
from rmbgd.engine.devices import EngineFactory
from rmbgd.engine.wiring import default_devices
from rmbgd.errors import RmbgdError
from rmbgd.fleet.backfill import Completeness
from rmbgd.fleet.root import Entry, Root
from rmbgd.service.root_worker import RootAway, RootWorker

BATCH = 64  # names given at once, which takes the driver 0.7 ms
UNDER_WAY = 2  # batches of an actor: while one ends, the next fills its pipeline
TRIES_ALONE = 2  # of an image whose process died with nothing else in it: the first time may be the host's fault
DEATHS_IN_A_ROW = 100  # of actors, and two of each, with no image done between: that is not the images' fault
PATIENCE = 600.0  # s in which no actor could do anything, until it ends: somebody may make room on a disk meanwhile
REST = 10.0  # s until an actor that could not read or store tries again, or one that could not start is replaced
Start = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class _Batch:
    """`alone`: which try with nothing beside it, from 1, or 0; `again`: it had no answer before; `by`: from whom."""

    entries: Sequence[Entry]
    alone: int = 0
    again: bool = False
    by: Any = None


def backfill(
    config: Path,
    root: Root,
    entries: Iterable[Entry],
    progress: Completeness,
    *,
    actors: int,
    gpus: float = 0.0,
    batch: int = BATCH,
    retry_failed: bool = False,
    tell: Callable[[Completeness], None] = lambda _: None,
    build_devices: EngineFactory = default_devices,
) -> None:
    """Have each of these images of `root` processed, by so many actors of so many GPUs each; counts in `progress`.

    `config` has the same path on all hosts. Run it again after it was killed. Raises RmbgdError.
    """
    try:
        ray.init("auto", logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        text = f"no Ray cluster answers, or not to this token: {_line(error)}"
        raise RmbgdError(f"{text}; write RAY_ADDRESS=HOST:6379 before the command") from error
    try:
        options = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD", "max_concurrency": UNDER_WAY}
        kind = ray.remote(RootWorker).options(**options)
        target = (config.absolute(), root.folder.name, root.folder.recipe, __version__)
        about = (*target, gpus > 0, retry_failed, build_devices)

        def start() -> tuple[Any, Any]:
            actor = kind.remote()
            return actor.start.remote(*about), actor

        _Driver(start, iter(entries), progress, actors, batch).run(tell)
    finally:
        ray.shutdown()


class _Driver:
    """Feeds actors, and replaces them. One thread."""

    def __init__(self, start: Start, entries: Iterator[Entry], progress: Completeness, most: int, size: int) -> None:
        self._start, self._entries, self._progress, self._most, self._size = start, entries, progress, most, size
        self._starting: dict[Any, Any] = {}  # what it will answer -> actor
        self._actors: dict[Any, int] = {}  # actor -> batches under way; one that has an image alone has UNDER_WAY
        self._rests: dict[Any, float] = {}  # actor whose last batch got no answer at all -> until when it gets none
        self._running: dict[Any, tuple[Any, _Batch]] = {}  # what it will answer -> actor, and what it has
        self._waiting, self._suspects, self._again = deque[_Batch](), deque[_Batch](), deque[_Batch]()
        self._healthy_at, self._deaths, self._start_after = time.monotonic(), 0, 0.0  # _deaths: in a row

    def run(self, tell: Callable[[Completeness], None]) -> None:
        try:
            while self._has_more() or self._running:
                self._give()
                while self._has_more() and self._wants_actor():
                    answer, actor = self._start()
                    self._starting[answer] = actor
                if waited_for := [*self._starting, *self._running]:
                    for answer in ray.wait(waited_for, timeout=1.0)[0]:
                        (self._started if answer in self._starting else self._answered)(answer)
                else:
                    time.sleep(1.0)
                if self._actors.keys() - self._rests.keys():
                    self._healthy_at = time.monotonic()
                elif time.monotonic() - self._healthy_at > PATIENCE:
                    why = self._progress.trouble or "no actor has started; see `ray status`"
                    raise RmbgdError(f"nothing was done for {PATIENCE / 60:g} minutes: {why}")
                self._progress.queued = sum(len(batch.entries) for _, batch in self._running.values())
                tell(self._progress)
            if closing := [actor.close.remote() for actor in self._actors]:
                ray.wait(closing, num_returns=len(closing), timeout=REST)
        finally:
            for actor in (*self._actors, *self._starting.values()):
                ray.kill(actor)

    def _has_more(self) -> bool:
        if not self._waiting and (entries := list(islice(self._entries, self._size))):
            self._waiting.append(_Batch(entries))
        return bool(self._suspects or self._waiting or self._again)

    def _wants_actor(self) -> bool:
        return len(self._actors) + len(self._starting) < self._most and time.monotonic() >= self._start_after

    def _give(self) -> None:
        now = time.monotonic()
        for actor in [each for each in self._actors if now >= self._rests.get(each, 0.0)]:
            while self._actors[actor] < UNDER_WAY and (batch := self._take(actor)) is not None:
                self._running[actor.process.remote(batch.entries)] = actor, batch
                self._actors[actor] += UNDER_WAY if batch.alone else 1

    def _take(self, actor: Any) -> _Batch | None:
        """While there are suspects an actor gets nothing until it has nothing, and then a suspect."""
        if self._suspects:
            return None if self._actors[actor] else self._suspects.popleft()
        if self._has_more() and self._waiting:
            return self._waiting.popleft()
        found = next((each for each in self._again if each.by is not actor or len(self._actors) == 1), None)
        if found is not None:
            self._again.remove(found)
        return found

    def _started(self, answer: Any) -> None:
        actor = self._starting.pop(answer)
        try:
            ray.get(answer)
            self._actors[actor] = 0
        except RayError as error:
            ray.kill(actor)
            self._start_after = time.monotonic() + REST
            self._progress.trouble = f"an actor cannot start: {_line(error)}"

    def _answered(self, answer: Any) -> None:
        actor, batch = self._running.pop(answer)
        away = ""
        try:
            told = ray.get(answer)
        except RootAway as error:
            told, away = [("", "")] * len(batch.entries), _line(error)
        except RayError as error:
            self._died(actor, batch, _line(error))
            return
        if actor in self._actors:
            self._actors[actor] -= UNDER_WAY if batch.alone else 1
        left = []
        for entry, (kind, why) in zip(batch.entries, told, strict=True):
            self._progress.done += kind == "done"
            self._progress.failed += kind == "failed"
            if kind not in ("done", "failed") and batch.again and not away:
                self._progress.miss(entry.key, why)
            elif kind not in ("done", "failed"):
                left.append(entry)
        if left:
            put_back = self._suspects if batch.alone else self._again
            put_back.append(_Batch(left, batch.alone, again=batch.again or not away, by=actor))
        if any(kind for kind, _ in told):
            self._deaths = 0
            self._rests.pop(actor, None)
        else:
            self._rests[actor] = time.monotonic() + REST
            self._progress.trouble = away or told[0][1]

    def _died(self, actor: Any, batch: _Batch, why: str) -> None:
        self._deaths += self._actors.pop(actor, None) is not None  # it may have had another batch
        ray.kill(actor)
        if self._deaths >= max(DEATHS_IN_A_ROW, 2 * self._most):
            raise RmbgdError(f"{self._deaths} actors died, and no image was done between; the last one: {why}")
        if batch.alone >= TRIES_ALONE:
            self._progress.miss(batch.entries[0].key, f"an actor died of it {batch.alone} times: {why}")
        else:
            self._suspects.extend(_Batch([entry], batch.alone + 1) for entry in batch.entries)


def _line(error: object) -> str:
    return " ".join(str(getattr(error, "cause", None) or error).split())[:300]
