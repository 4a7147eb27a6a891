"""A Ray cluster in simulated time: what actors answer and how long they take is told by functions."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest

from rmbgd.fleet.backfill import Completeness
from rmbgd.fleet.root import Entry
from rmbgd.service.root_worker import RootAway

PLACE = "rmbgd.service.ray_backfill"
SPEED = 26.0  # images that an actor computes in a second
FOR_EVER = 86_400.0  # s

Answers = tuple[float, list[tuple[str, str]] | Exception]  # (s of work, what `process` answers or raises)
Work = Callable[[Sequence[Entry]], Answers]


class RayError(Exception):
    pass


class AwayTask(RayError, RootAway):
    """As Ray raises what a task raised: of both kinds."""


class Answer:
    def __init__(self, at: float, value: object) -> None:
        self.at, self.value = at, value


class Remote:
    def __init__(self, call: Callable[..., Answer]) -> None:
        self.remote = call


class Actor:
    """work    of a batch; one batch after another
    start   s until it has started, and with what it fails, if it does
    """

    def __init__(self, work: Work, start: float = 3.0, fails: Exception | None = None) -> None:
        self.work, self.start, self.fails = work, start, fails
        self.answers: list[Answer] = []
        self.busy_until = 0.0
        self.is_dead = False


class SimulatedRay:
    """Stands for the module `ray`, and for `time` in the driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        module, errors = types.ModuleType("ray"), types.ModuleType("ray.exceptions")
        module.wait, module.get, module.kill, module.exceptions = self.wait, self.get, self.kill, errors  # type: ignore[attr-defined]
        errors.RayError = RayError  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ray", module)
        monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
        monkeypatch.delitem(sys.modules, PLACE, raising=False)
        self._driver = importlib.import_module(PLACE)
        monkeypatch.setitem(sys.modules, PLACE, self._driver)
        monkeypatch.delitem(sys.modules, PLACE)  # nobody else finds this one
        monkeypatch.setattr(self._driver, "time", self)

    def backfill(self, new_actor: Callable[[int], Actor], actors: int, images: int) -> Completeness:
        """`new_actor` of its number. Raises what the driver does, and AssertionError where it does not end in a day."""
        numbers, progress = count(), Completeness(wanted=images)

        def start() -> tuple[Answer, Any]:
            actor = new_actor(next(numbers))
            actor.process = Remote(lambda entries: self._process(actor, entries))  # type: ignore[attr-defined]
            actor.close = Remote(lambda: Answer(self.now, None))  # type: ignore[attr-defined]
            actor.answers.append(Answer(self.now + actor.start, actor.fails))
            return actor.answers[-1], actor

        def tell(_: Completeness) -> None:
            assert self.now < FOR_EVER

        entries = (Entry(f"{number:06}", "1-1", 0.0) for number in range(images))
        self._driver._Driver(start, entries, progress, actors, 64).run(tell)
        return progress

    def _process(self, actor: Actor, entries: Sequence[Entry]) -> Answer:
        if actor.is_dead:
            return Answer(self.now, RayError("it is dead"))
        self.began = max(actor.busy_until, self.now)
        seconds, value = actor.work(entries)
        actor.busy_until = self.began + seconds
        actor.answers.append(Answer(actor.busy_until, value))
        return actor.answers[-1]

    # ------------------------------------------------------------------------------------------------ modules

    def wait(self, answers: list[Answer], timeout: float, num_returns: int = 1) -> tuple[list[Answer], list[Answer]]:
        first = min(answers, key=lambda answer: answer.at)
        if first.at > self.now + timeout:
            self.now += timeout
            return [], answers
        self.now = max(self.now, first.at)
        return [first], []

    def get(self, answer: Answer) -> object:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True
        for answer in actor.answers:
            if answer.at > self.now:
                answer.at, answer.value = self.now, RayError("its actor was killed")

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def works(entries: Sequence[Entry]) -> Answers:
    return len(entries) / SPEED, [("done", "")] * len(entries)
