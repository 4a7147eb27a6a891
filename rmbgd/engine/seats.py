"""The places of the devices in the line: an engine for each, made by the thread that will own it.

Values only; what they stand for is built in engines/build.py and fed by pipeline/stages.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rmbgd.engine.types import Backend, EngineDescription
from rmbgd.heartbeat import Heartbeat


def _always() -> bool:
    return True


def _nothing_new() -> None:
    return None


def _never(_listener: Callable[[], None]) -> None:
    """Nothing ever changes."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One device and the thread that feeds it. The last two are asked by others too, and never wait.

    name         of the device
    engine       makes the engine, which then belongs to the thread that the heartbeat is of
    may_take     whether that thread is to take images now
    description  of what it computes with now; None where that stays as it was at the start
    """

    name: str
    engine: Callable[[Heartbeat], Backend]
    may_take: Callable[[], bool] = _always
    description: Callable[[], EngineDescription | None] = _nothing_new


@dataclass(frozen=True, slots=True)
class Seats:
    """At least one; the first one's description is the service's. `listen`: what to call when an answer has changed."""

    seats: tuple[Seat, ...]
    listen: Callable[[Callable[[], None]], None] = _never


def seats_of(given: Backend | Seats) -> Seats:
    """An engine alone has the only seat."""
    return given if isinstance(given, Seats) else Seats((Seat("", lambda _heartbeat: given),))
