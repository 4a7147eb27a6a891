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
from collections import OrderedDict
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

IN_MEMORY = 64  # sequences whose planes are kept in memory; a frame of 1080p needs 2.3 MB
PRUNE_EVERY = 86_400.0  # s
KEPT_SECONDS = 30 * 86_400.0  # of the state of a sequence without frames, as of everything else that is remembered

Bytes = NDArray[np.uint8]
Plate = Bytes | Literal["median"] | None


@dataclass(frozen=True, slots=True)
class FilterRules:
    """How the frames of a folder are filtered.

    steady  at all
    plate   luma of the empty scene before a fixed camera, uint8 [h, w]; "median" keeps one
    states  directory of the states of its sequences; None keeps none
    """

    steady: bool
    plate: Plate = None
    states: Path | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a sequence ended. first, last: numbers of the frames whose states are kept, None for a new one. ended: it
    was over. age: s since."""

    first: int | None = None
    last: int | None = None
    ended: bool = False
    age: float = 0.0


@dataclass(slots=True)
class _Filter:
    """Guarded by its lock. `memory` is None where there is none, or where only the file has it (`evicted`)."""

    file: StateFile | None
    memory: Saved | None = None
    evicted: bool = False
    problem: str = ""  # why a state that was there cannot be used
    figures: SequenceFigures = field(default_factory=SequenceFigures)
    frames: int = 0
    first: int | None = None  # number of its first frame in this run
    lock: threading.Lock = field(default_factory=threading.Lock)


class Filters:
    """`resume`, `is_before` and `close` are the intake's, `close` when nothing of the sequence is in the pipeline; the
    others belong to the finish thread whose turn it is."""

    def __init__(self, rules: Mapping[str, FilterRules], slots: int, emit: Emit) -> None:
        self._rules, self._slots, self._emit = rules, slots, emit
        self._lock = threading.Lock()
        self._filters: OrderedDict[tuple[str, str], _Filter] = OrderedDict()  # last used last; guarded by _lock
        self._write_failed = False  # reported once
        self._next_prune = 0.0

    def resume(self, folder: str, sequence: str) -> Resumed:
        """Where it goes on. Never raises: a state that cannot be read is none."""
        if (file := self._file(folder, sequence)) is None:
            return Resumed()
        saved, _ = file.load()
        if not saved:
            return Resumed()
        return Resumed(min(each.number for each in saved), saved[-1].number, saved[-1].ended, file.age())

    def is_before(self, folder: str, sequence: str, number: int) -> bool:
        """Does it come before every state that is kept? Then it cannot have been in work in its place."""
        file = self._file(folder, sequence)
        found, _ = file.load() if file is not None else ([], "")
        return bool(found) and number < min(saved.number for saved in found)

    def apply(self, job: Job, rgb: Bytes, alpha: Bytes) -> Bytes:
        """Alpha of a frame as it is published, uint8 [H, W]; `alpha` is the network's, `rgb` uint8 [H, W, 3]."""
        state = self._of(job.folder, _sequence(job))
        with state.lock:
            self._load(state)
            published = self._apply(job, state, rgb, alpha)
        self._evict()
        return published

    def undo(self, job: Job) -> None:
        """It was not published after all: what follows goes on from the frame before it."""
        state = self._of(job.folder, _sequence(job))
        with state.lock:
            self._load(state)
            if state.memory is not None and state.memory.number == _number(job):
                earlier, _ = state.file.load() if state.file else ([], "")
                found = [each for each in earlier if each.number < _number(job)]
                state.memory = found[-1] if found else None
                self._save(state)

    def leave(self, folder: str, sequence: str) -> None:
        """Another machine goes on with it, from the file. Nothing of it is in the pipeline."""
        with self._lock:
            self._filters.pop((folder, sequence), None)

    def close(self, folder: str, sequence: str) -> dict[str, object]:
        """It is over: what is to be said of its frames in this run of the service."""
        if time.monotonic() > self._next_prune:
            self.prune()
        with self._lock:
            state = self._filters.pop((folder, sequence), None)
        if state is None:
            return {"frames": 0}
        with state.lock:
            self._load(state)
            if state.memory is not None and state.frames:
                state.memory = Saved(state.memory.number, state.memory.arrays, ended=True)
                self._save(state)
        said: dict[str, object] = {"frames": state.frames}
        if state.memory is not None and state.first is not None:
            said |= {"first": state.first, "last": state.memory.number}
        if state.frames and self._rules[folder].steady:
            said["flicker"] = state.figures.document()
        return said

    def prune(self) -> None:
        """Forget sequences without a frame for KEPT_SECONDS."""
        self._next_prune = time.monotonic() + PRUNE_EVERY
        for directory in {rules.states for rules in self._rules.values()} - {None}:
            with contextlib.suppress(OSError):
                for entry in [*os.scandir(directory)]:
                    with contextlib.suppress(OSError):
                        if entry.stat().st_mtime < time.time() - KEPT_SECONDS:
                            os.unlink(entry.path)

    # ---------------------------------------------------------------------------------------------- steps

    def _apply(self, job: Job, state: _Filter, rgb: Bytes, alpha: Bytes) -> Bytes:
        rules, number = self._rules[job.folder], _number(job)
        before = self._before(state, number)
        again = before is not None and state.memory is not None and state.memory.number >= number
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
        if not again:  # after a kill the file has it, and what came before it: should there be another kill
            self._save(state)
        return alpha

    def _of(self, folder: str, sequence: str) -> _Filter:
        with self._lock:
            if (state := self._filters.get((folder, sequence))) is None:
                file = self._file(folder, sequence)
                state = self._filters[folder, sequence] = _Filter(file, evicted=file is not None)
            self._filters.move_to_end((folder, sequence))
            return state

    def _file(self, folder: str, sequence: str) -> StateFile | None:
        rules = self._rules.get(folder)
        if rules is None or rules.states is None:
            return None
        name = hashlib.sha256(f"{folder}\0{sequence}".encode(errors="surrogateescape")).hexdigest()[:32]
        return StateFile(rules.states / name, self._slots)

    def _load(self, state: _Filter) -> None:
        """What only the file has."""
        if state.evicted and state.file is not None:
            state.evicted = False
            saved, problem = state.file.load()
            state.memory = saved[-1] if saved else None
            state.problem = state.problem or problem

    def _evict(self) -> None:
        """Keep the planes of the sequences used last; those of others are on the disk."""
        with self._lock:
            if self._write_failed:
                return  # then the disk has them not
            for state in list(self._filters.values())[:-IN_MEMORY]:
                if state.file is not None and not state.evicted and state.lock.acquire(blocking=False):
                    state.evicted, state.memory = True, None
                    state.lock.release()

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
                self._emit("sequence.state_lost", path=str(state.file.path.parent), detail=error.strerror or str(error))
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
