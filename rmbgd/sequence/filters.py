"""Temporal filters of the sequences in work: applies them frame by frame, keeps their state over restarts.

The state after a frame is written before the frame is published, into as many slots as frames can be on their way
there: whichever of them a killed service has not published finds the state before it, and comes out the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.events import Emit
from rmbgd.sequence.figures import SequenceFigures
from rmbgd.sequence.state_file import Saved, StateFile
from rmbgd.sequence.temporal import Memory, guide_size, steady
from rmbgd.store.records import Job

KEPT_SECONDS = 30 * 86_400.0  # of the state of a sequence without frames, as of everything else that is remembered

Bytes = NDArray[np.uint8]
Plate = Bytes | Literal["median"] | None


@dataclass(frozen=True, slots=True)
class FilterRules:
    """How the frames of a folder are filtered. steady: at all. plate: luma of the empty scene before a
    fixed camera, uint8 [h, w]; "median" keeps one."""

    steady: bool
    plate: Plate = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a sequence ended. last: number of its last frame, None for a new one. ended: it was over. age: s since."""

    last: int | None = None
    ended: bool = False
    age: float = 0.0


@dataclass(slots=True)
class _Filter:
    file: StateFile | None
    memory: Saved | None
    problem: str  # why a state that was there cannot be used
    figures: SequenceFigures = field(default_factory=SequenceFigures)
    frames: int = 0
    first: int | None = None  # number of its first frame in this run


class Filters:
    """`resume` and `close` are the intake's, when nothing of the sequence is in the pipeline; the others belong to the
    finish thread whose turn it is."""

    def __init__(self, rules: Mapping[str, FilterRules], directory: Path | None, slots: int, emit: Emit) -> None:
        self._rules, self._directory, self._slots, self._emit = rules, directory, slots, emit
        self._lock = threading.Lock()
        self._filters: dict[tuple[str, str], _Filter] = {}  # guarded by _lock
        self._write_failed = False  # reported once

    def resume(self, folder: str, sequence: str) -> Resumed:
        """Where it goes on. Never raises: a state that cannot be read is none."""
        state = self._of(folder, sequence)
        if (saved := state.memory) is None:
            return Resumed()
        return Resumed(saved.number, saved.ended, state.file.age() if state.file is not None else 0.0)

    def apply(self, job: Job, rgb: Bytes, alpha: Bytes) -> Bytes:
        """Alpha of a frame as it is published, uint8 [H, W]; `alpha` is the network's, `rgb` uint8 [H, W, 3]."""
        rules, number = self._rules[job.folder], _number(job)
        state = self._of(job.folder, _sequence(job))
        before = self._before(state, number)
        memory = None if before is None or not rules.steady else _memory(before)
        why = "" if before is None or memory is not None or not rules.steady else "no filter state"
        arrays: dict[str, Bytes] = {}
        if rules.steady:
            alpha, after, found = steady(rgb, alpha, memory, plate=_fitted(rules.plate, rgb))
            state.figures.add(found)
            if memory is not None and found.reset == "size":
                why = "another size"
            arrays = {name: array for name in Memory.__slots__ if (array := getattr(after, name)) is not None}
        if state.first is None:
            self._begin(job, state, before, why)
        state.frames += 1
        state.memory = Saved(number, arrays)
        self._save(state)
        return alpha

    def undo(self, job: Job) -> None:
        """It was not published after all: what follows goes on from the frame before it."""
        state = self._of(job.folder, _sequence(job))
        if state.memory is not None and state.memory.number == _number(job):
            earlier, _ = state.file.load() if state.file else ([], "")
            found = [each for each in earlier if each.number < _number(job)]
            state.memory = found[-1] if found else None
            self._save(state)

    def close(self, folder: str, sequence: str) -> dict[str, object]:
        """It is over: what is to be said of its frames in this run of the service."""
        with self._lock:
            state = self._filters.pop((folder, sequence), None)
        if state is None:
            return {"frames": 0}
        if state.memory is not None and state.frames:
            state.memory = Saved(state.memory.number, state.memory.arrays, ended=True)
            self._save(state)
        if state.file is not None:
            state.file.close()
        last = (
            {} if state.memory is None or state.first is None else {"first": state.first, "last": state.memory.number}
        )
        figures = state.figures.document() if state.frames and self._rules[folder].steady else {}
        return {"frames": state.frames, **last, **({"flicker": figures} if figures else {})}

    def prune(self) -> None:
        """Forget sequences without a frame for KEPT_SECONDS. Before the first frame of a run."""
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._directory) if self._directory is not None else ():
                if entry.stat().st_mtime < time.time() - KEPT_SECONDS:
                    os.unlink(entry.path)

    # ---------------------------------------------------------------------------------------------- steps

    def _of(self, folder: str, sequence: str) -> _Filter:
        with self._lock:
            if (state := self._filters.get((folder, sequence))) is None:
                state = _Filter(None, None, "")
                if self._directory is not None:
                    name = hashlib.sha256(f"{folder}\0{sequence}".encode(errors="surrogateescape")).hexdigest()[:32]
                    state.file = StateFile(self._directory / name, self._slots)
                    saved, state.problem = state.file.load()
                    state.memory = saved[-1] if saved else None
                self._filters[folder, sequence] = state
            return state

    def _before(self, state: _Filter, number: int) -> Saved | None:
        """The state to go on from: of the frame before this one, or the nearest before it."""
        if state.memory is None or state.memory.number < number:
            return state.memory
        earlier, _ = state.file.load() if state.file else ([], "")
        return next((each for each in reversed(earlier) if each.number < number), None)

    def _begin(self, job: Job, state: _Filter, before: Saved | None, why: str) -> None:
        state.first = _number(job)
        why = why or state.problem or ("its numbers begin again" if before is None and state.memory is not None else "")
        how = "reset" if why else "new" if before is None else "resumed"
        self._emit(
            "sequence.started",
            folder=job.folder,
            sequence=_sequence(job),
            frame=_number(job),
            state=how,
            **({"why": why} if why else {}),
        )

    def _save(self, state: _Filter) -> None:
        """Without a place for it the filter works on, and begins anew with the next start."""
        if state.file is None:
            return
        try:
            if state.memory is None:
                state.file.remove()
            else:
                state.file.save(state.memory)
        except OSError as error:
            if not self._write_failed:
                self._write_failed = True
                self._emit("sequence.state_lost", path=str(self._directory), detail=error.strerror or str(error))
        else:
            self._write_failed = False


def _fitted(plate: Plate, rgb: Bytes) -> Plate:
    """At the size of this frame's guide."""
    if plate is None or isinstance(plate, str):
        return plate
    height, width = guide_size(*rgb.shape[:2])
    if plate.shape == (height, width):
        return plate
    return np.asarray(cv2.resize(plate, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _number(job: Job) -> int:
    assert job.turn is not None
    assert job.turn.number is not None
    return job.turn.number


def _sequence(job: Job) -> str:
    assert job.turn is not None
    return job.turn.sequence


def _memory(saved: Saved) -> Memory | None:
    arrays = saved.arrays
    if not {"guide", "alpha"} <= arrays.keys() <= set(Memory.__slots__):
        return None
    return Memory(**arrays)
