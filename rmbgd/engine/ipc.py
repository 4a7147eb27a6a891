"""Length-prefixed JSON messages between the service and an engine process. No pickles: they run code.

Pixels never travel here: they lie in the arena.

parent -> child   {"do": "start", "factory", "options", "arena_bytes", "deadline"}
                  {"do": "segment", "batch", "deadline"}
                  {"do": "golden", "model", "deadline"}
                  {"do": "canary", "blocks", "deadline"}
                  {"do": "close"}
child -> parent   {"description"} | {"report"} | {"golden"} | {"canary"}
                  | {"fault": lost, memory, nonsense or model, "detail", "cause"}
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rmbgd.engine.types import (
    Answer,
    BatchReport,
    EngineDescription,
    FrameLink,
    Limit,
    MatteReport,
    OutputPlane,
    Region,
    Work,
)
from rmbgd.errors import EngineMemory, EngineNonsense, ModelError

Message = dict[str, Any]

MESSAGE_MAXIMUM = 1 << 20  # bytes; a batch of 16 takes 4,000: anything near this is not from us
_LENGTH = struct.Struct("!I")
KINDS = {EngineMemory: "memory", EngineNonsense: "nonsense", ModelError: "model"}


def kind_of(error: Exception) -> str:
    """A fault as messages and events spell it: memory, nonsense, model or lost."""
    return next((kind for family, kind in KINDS.items() if isinstance(error, family)), "lost")


class GarbledError(Exception):
    """The other side sent what cannot be a message, or a message that does not say what it must."""


def send(connection: socket.socket, message: Message) -> None:
    """Raises OSError when the other side is gone."""
    body = json.dumps(message, separators=(",", ":")).encode()
    connection.settimeout(None)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(
    connection: socket.socket, seconds: float | None = None, monotonic: Callable[[], float] = time.monotonic
) -> Message:
    """The next message. Raises EOFError when the other side is gone, TimeoutError after `seconds`, GarbledError.

    Time in which this whole process stood still (SIGSTOP, a frozen container, a suspended machine) does not count: the
    other side stood still, too.
    """
    patience = _Patience(seconds, monotonic)
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, patience))
    if length > MESSAGE_MAXIMUM:
        raise GarbledError(f"a message of {length} bytes")
    try:
        message = json.loads(_exactly(connection, length, patience))
    except ValueError as error:
        raise GarbledError(str(error)) from error
    if not isinstance(message, dict):
        raise GarbledError(f"a message that is a {type(message).__name__}")
    return message


class _Patience:
    """Seconds left, spent in slices; a slice that took much longer than it should was a standstill."""

    SLICE = 1.0  # seconds

    def __init__(self, seconds: float | None, monotonic: Callable[[], float]) -> None:
        self._left, self._monotonic, self._began = seconds, monotonic, monotonic()

    def slice(self) -> float | None:
        """How long to wait now. Raises TimeoutError when nothing is left."""
        now = self._monotonic()
        if self._left is None:
            return None
        self._left -= min(now - self._began, 2 * self.SLICE)
        self._began = now
        if self._left <= 0:
            raise TimeoutError
        return min(self._left, self.SLICE)


def receive_into(
    connection: socket.socket,
    target: memoryview,
    seconds: float | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Fill `target` with what follows a message. Raises as `receive` does."""
    _fill(connection, target, _Patience(seconds, monotonic))


def _exactly(connection: socket.socket, count: int, patience: _Patience) -> bytes:
    data = bytearray(count)
    _fill(connection, memoryview(data), patience)
    return bytes(data)


def _fill(connection: socket.socket, target: memoryview, patience: _Patience) -> None:
    while target:
        connection.settimeout(patience.slice())
        try:
            count = connection.recv_into(target)
        except TimeoutError:
            continue
        except ConnectionResetError:
            count = 0
        if not count:
            raise EOFError
        target = target[count:]


def to_work(message: Message) -> Work:
    region = message["region"]
    link = None if message["link"] is None else FrameLink(**message["link"])
    return Work(**message | {"region": Region(**region | {"output": OutputPlane(region["output"])}), "link": link})


def from_description(description: EngineDescription) -> Message:
    # JSON has no integer keys
    return asdict(description) | {"seconds": [[size, seconds] for size, seconds in description.seconds.items()]}


def to_description(message: Message) -> EngineDescription:
    """Raises GarbledError."""
    try:
        return EngineDescription(
            str(message["device"]),
            dict(message["models"]),
            tuple(int(size) for size in message["batch_sizes"]),
            {int(size): float(seconds) for size, seconds in message["seconds"]},
            dict(message["detail"]),
            _to_limits(message["limits"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GarbledError(f"a description without sense: {error!r}") from error


def to_report(message: Message) -> BatchReport:
    """Raises GarbledError, also for shares that are no numbers between 0 and 1."""
    try:
        return BatchReport(
            [_to_answer(entry) for entry in message["answers"]],
            {str(stage): float(value) for stage, value in message["milliseconds"].items()},
            _to_limits(message["limits"]),
            [int(image) for image in message["not_finite"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GarbledError(f"a report without sense: {error!r}") from error


def _to_limits(entries: list[Message]) -> list[Limit]:
    return [Limit(str(entry["what"]), str(entry["detail"])) for entry in entries]


def _to_answer(entry: Message) -> Answer:
    matte = MatteReport(**entry["matte"])
    shares = {name: getattr(matte, name) for name in ("coverage", "peak", "solid", "soft")}
    if matte.disagreement is not None:
        shares["disagreement"] = matte.disagreement
    for name, value in shares.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value) and -1e-3 <= value <= 1 + 1e-3):
            raise ValueError(f"{name} = {value}")
    return Answer(matte, str(entry["device"]), str(entry["model"]), int(entry["batch"]), int(entry["tries"]))
