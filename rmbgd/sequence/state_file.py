"""State of a temporal filter on disk: one bounded file per sequence, whose slots are overwritten in turn.

A slot that was being written when the process was killed fails its checksum, and the one before it counts. Nothing is
synced: after a power cut the filter may begin anew, no image depends on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

PAGE = 4096  # bytes; a slot's header has as many, and every slot begins at a multiple
MAGIC = b"rmbgd-sequence 1"
BYTES_MAXIMUM = 1 << 30  # of one file; an image of 50 megapixels needs 60 MB a slot
_HEAD = struct.Struct("<16sII")  # magic, checksum, length of the JSON behind it


@dataclass(frozen=True, slots=True)
class Saved:
    """What a filter was after frame `number`. ended: the sequence was over. arrays: uint8 [h, w] each, by name."""

    number: int
    arrays: dict[str, NDArray[np.uint8]]
    ended: bool = False


class StateFile:
    """Of one sequence; one thread at a time. Raises OSError from every method but `load`."""

    def __init__(self, path: Path, slots: int) -> None:
        self.path, self._slots = path, slots
        self._serial = 0  # of the slot written last

    def load(self) -> tuple[list[Saved], str]:
        """What is there, the newest last; and why nothing can be used, if there is a file. Bounded in memory."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read() if size <= BYTES_MAXIMUM else b""
        except FileNotFoundError:
            return [], ""
        except OSError as error:
            return [], error.strerror or str(error)
        begins = (at for at in range(0, len(data), PAGE) if data.startswith(MAGIC, at))
        slots = (_read(memoryview(data)[at:]) for at in begins)
        found = sorted((slot for slot in slots if slot is not None), key=lambda each: each[0])
        if found:
            self._serial = found[-1][0]
        return [saved for _, saved in found], "" if found else "damaged"

    def age(self) -> float:
        """Seconds since the last `save`, by the wall clock; 0 where there is none."""
        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except OSError:
            return 0.0

    def save(self, saved: Saved) -> None:
        """Over the oldest slot. All slots go when the arrays' sizes change."""
        self._serial += 1
        parts = _written(saved, self._serial)
        size = -(-sum(map(len, parts)) // PAGE) * PAGE
        self.path.parent.mkdir(exist_ok=True)  # no more: what should hold it may not be mounted
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size != size * self._slots:
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, size * self._slots)
            if os.pwritev(descriptor, parts, self._serial % self._slots * size) != sum(map(len, parts)):
                raise OSError(f"{self.path}: written in part")
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _written(saved: Saved, serial: int) -> Sequence[memoryview]:
    shapes = {name: array.shape for name, array in saved.arrays.items()}
    facts = {"number": saved.number, "serial": serial, "ended": saved.ended, "arrays": shapes}
    text = json.dumps(facts, separators=(",", ":")).encode()
    planes = [np.ascontiguousarray(array).data.cast("B") for array in saved.arrays.values()]
    checksum = isal_zlib.crc32(text)
    for plane in planes:
        checksum = isal_zlib.crc32(plane, checksum)
    head = (_HEAD.pack(MAGIC, checksum, len(text)) + text).ljust(PAGE, b"\0")
    if len(head) != PAGE:
        raise ValueError("the facts of a state do not fit their page; a bug")
    return [memoryview(head), *planes]


def _read(data: memoryview) -> tuple[int, Saved] | None:
    """(serial, state) of the slot that begins here; None where it is torn."""
    if len(data) < PAGE:
        return None
    _, checksum, length = _HEAD.unpack_from(data)
    text = bytes(data[_HEAD.size :][: min(length, PAGE)])
    try:
        facts = json.loads(text)
        arrays, at, found = {}, PAGE, isal_zlib.crc32(text)
        for name, (height, width) in facts["arrays"].items():
            plane = data[at : at + height * width]
            found, at = isal_zlib.crc32(plane, found), at + len(plane)
            arrays[str(name)] = np.frombuffer(plane, np.uint8).reshape(height, width).copy()
        saved = Saved(int(facts["number"]), arrays, bool(facts["ended"]))
        return (int(facts["serial"]), saved) if found == checksum else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
