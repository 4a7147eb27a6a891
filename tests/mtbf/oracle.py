"""Brute force: the state of a machine in every single second, found by looking at all lines anew for each of them.

Slow and plain on purpose: no sorting, no merging, no walk over runs. Times are whole seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime


@dataclass
class Life:
    boot: str
    pid: int
    order: int
    ready: int | None = None
    heard: list[int] = field(default_factory=list)
    planned_at: int | None = None
    failed_at: int | None = None
    started: int = 0

    def end(self, gap: int) -> tuple[str, int]:
        """(planned, failed or none, when)."""
        if self.planned_at is not None:
            return "planned", self.planned_at
        if self.failed_at is not None:
            near = self.failed_at - max(self.heard) <= gap
            return "failed", self.failed_at if near else max(self.heard)
        return "none", max(self.heard)


def judge(lines: list[str], gap: int) -> tuple[Counter[str], int, int]:
    """Seconds in each state, failures, and starts that failed."""
    records = [json.loads(line) for line in lines]
    for record in records:
        record["t"] = round(datetime.fromisoformat(record["time"]).timestamp())
    lives = _lives(records)
    ready = [life for life in lives if life.ready is not None]
    if not ready:
        return Counter(), sum(_fails(life, lives, gap) for life in lives), 0
    first = min(life.ready for life in ready if life.ready is not None)
    last = max(record["t"] for record in records)
    seconds = Counter(_state(t, lives, gap) for t in range(first, last))
    fails = [life for life in lives if life.ready is None and _fails(life, lives, gap)]
    losses = sum(_loss(life, lives, gap) == "down" for life in ready)
    fresh = sum(_before(life, lives, gap) != "down" for life in fails)
    del seconds["after"]
    return seconds, losses + fresh, len(fails)


def _lives(records: list[dict[str, object]]) -> list[Life]:
    lives: list[Life] = []
    for record in records:
        event, t, boot, pid = record["event"], record["t"], record["boot_id"], record["pid"]
        mine = [life for life in lives if (life.boot, life.pid) == (boot, pid)]
        if event == "service.exit":
            candidates = [life for life in lives if life.boot == boot]
            if candidates and record["result"] != "success" and candidates[-1].planned_at is None:
                candidates[-1].failed_at = candidates[-1].failed_at or t
            continue
        if not mine or event == "service.start":
            life = Life(boot, pid, len(lives), started=t)
            life.ready = None if event == "service.start" else t
            lives.append(life)
        else:
            life = mine[-1]
        life.heard.append(t)
        if event == "service.ready" and life.ready is None:
            life.ready = t
        if event in ("service.stopping", "service.stop") and life.planned_at is None:
            life.planned_at = t
        if event == "service.failed" and life.failed_at is None:
            life.failed_at = t
    return lives


def _loss(life: Life, lives: list[Life], gap: int) -> str:
    """What follows the end of a life that was in service: planned, down, power_loss, or after (the log ends)."""
    how, _ = life.end(gap)
    if how != "none":
        return "planned" if how == "planned" else "down"
    later = [other for other in lives if other.order > life.order]
    if any(other.boot == life.boot for other in later):
        return "down"
    return "power_loss" if later else "after"


def _fails(life: Life, lives: list[Life], gap: int) -> bool:
    """A life that was never ready, and whose end was not asked for."""
    if life.ready is not None or life.end(gap)[0] == "planned":
        return False
    return life.failed_at is not None or any(other.order > life.order for other in lives)


def _before(life: Life, lives: list[Life], gap: int) -> str:
    """What the machine was doing just before this life began."""
    for other in reversed([each for each in lives if each.order < life.order]):
        if other.ready is not None:
            return _loss(other, lives, gap)
        if _fails(other, lives, gap):
            return "down"
    return "nothing"


def _state(t: int, lives: list[Life], gap: int) -> str:
    """The state in [t, t + 1)."""
    for life in lives:
        _, end = life.end(gap)
        if life.ready is not None and life.ready <= t < end:
            points = [p for p in [*life.heard, end] if life.ready <= p <= end]
            silent = min(p for p in points if p > t) - max(p for p in points if p <= t)
            return "up" if silent <= gap else "unobserved"
    latest, state = -1, "after"
    for life in lives:
        if life.ready is not None and life.end(gap)[1] <= t and life.order > latest:
            latest, state = life.order, _loss(life, lives, gap)
        if _fails(life, lives, gap) and life.started <= t and life.order > latest:
            latest, state = life.order, "down"
    if not any(life.ready is not None and life.ready > t for life in lives):
        return "after" if not any(_fails(o, lives, gap) and o.started > t and state != "down" for o in lives) else state
    return state
