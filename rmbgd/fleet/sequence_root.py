"""A root of frames: its inputs are whole sequences, as its key says: `take/frame_#` is the sequence `take/frame_`.

A version of a sequence is all of its frames with theirs. It has its answer when each frame has; frames and their
results stand in the root as single images do. A still among the frames is an input of its own.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from rmbgd.errors import Reason
from rmbgd.fleet.root import Entry, RootAnswer, RootInput, SequenceFrame
from rmbgd.fleet.share import NO_FILE, SharedRoot, fingerprint_of
from rmbgd.fs import version_of
from rmbgd.intake.ignored import Ignored
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.temporary import is_beneath
from rmbgd.sequence.numbering import frame_number, is_end_marker
from rmbgd.store.records import Job, Published

ANY = "#"  # stands for the number of a frame, as it does where frames are named by people
FRAMES = "frames-"  # begins the fingerprint of a sequence
_BITS = 128


def sequence_key(sequence: str) -> str:
    return ANY if sequence == "." else sequence + ANY


def is_of_sequence(fingerprint: str) -> bool:
    """Or else of one file: a still."""
    return fingerprint.startswith(FRAMES)


def sequence_of(key: str) -> str | None:
    """None for a key that names a file."""
    return (key[: -len(ANY)] or ".") if key.endswith(ANY) else None


@dataclass(slots=True)
class _Versions:
    """Of many files, in whatever order they are found: the sum of their digests."""

    count: int = 0
    total: int = 0
    age: float = math.inf  # s, as of an Entry, of the youngest
    unchanged: float = math.inf

    def add(self, frame: SequenceFrame, age: float = 0.0, unchanged: float = 0.0) -> None:
        self.age, self.unchanged = min(self.age, age), min(self.unchanged, unchanged)
        said = f"{frame.path}\0{frame.fingerprint}".encode("utf-8", "surrogateescape")
        self.count += 1
        self.total = (self.total + int.from_bytes(hashlib.sha256(said).digest()[: _BITS // 8])) % (1 << _BITS)

    @property
    def fingerprint(self) -> str:
        return f"{FRAMES}{self.count}-{self.total:0{_BITS // 4}x}"


class SequenceRoot:
    """A Root whose inputs are sequences. Jobs are single frames, but for one that stands for its whole sequence."""

    def __init__(self, files: SharedRoot) -> None:
        self._files = files
        self.folder, self.recipe, self.place = files.folder, files.recipe, files.place
        self.quiet = max(files.quiet, self.folder.sequence_quiet)

    # ------------------------------------------------------------------------------------------------ what stands

    def frames(self, key: str, fingerprint: str = "") -> list[SequenceFrame]:
        """In the order of their numbers; none where none is there. Raises OSError.

        fingerprint  as announced, which says what a key is that a file might have as well
        """
        sequence = sequence_of(key) if is_of_sequence(fingerprint or FRAMES) else None
        if sequence is None:
            return self._still(key)
        found, root, below = [], str(self.folder.input), posixpath.dirname(key)
        if not _is_there(os.path.join(root, below)) or not is_beneath(root, below):
            return []
        start, ignored = posixpath.basename(sequence).partition("*")[0], Ignored(self.folder.ignore)
        start = "" if sequence == "." else start
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                path = posixpath.join(below, entry.name)
                if not entry.name.startswith(start) or ignored.file(entry.name):
                    continue
                if (place := frame_number(path)) is not None and place.sequence == sequence:
                    with suppress(FileNotFoundError):
                        if (frame := _frame(path, entry.stat(follow_symlinks=False))) is not None:
                            found.append(frame)
        if not found and not is_of_sequence(fingerprint):
            return self._still(key)
        return sorted(found, key=lambda frame: (frame.number or 0, frame.path))

    def _still(self, key: str) -> list[SequenceFrame]:
        below = posixpath.dirname(key)
        path = os.path.join(self.folder.input, key)
        if not _is_there(path) or not is_beneath(str(self.folder.input), below):
            return []
        frame = _frame(key, os.lstat(path))
        return [frame] if frame is not None and frame.number is None else []

    def source(self, key: str, fingerprint: str) -> RootInput:
        frames = self.frames(key, fingerprint)
        below = posixpath.dirname(key)
        path = os.path.join(self.folder.input, below)
        if not frames:
            self._files.require_images()
            if _is_there(path) and not is_beneath(str(self.folder.input), below):
                why = "a folder on its way is a symbolic link, which may lead out of the root"
                return RootInput("refused", path, version_of(os.lstat(path)), why)
            return RootInput("gone")
        is_ready = _fingerprint(key, frames) == fingerprint or self._is_quiet(frames)
        version = version_of(os.stat(path))
        return RootInput("ready" if is_ready else "superseded", path, version, frames=tuple(frames))

    def _is_quiet(self, frames: list[SequenceFrame]) -> bool:
        """Has nobody written for so long that nobody will announce it? A frame may have been removed since, say."""
        newest = max(max(frame.version.mtime_ns, frame.version.ctime_ns) for frame in frames)
        return time.time() - newest / 1e9 >= self.quiet

    def fingerprint(self, key: str) -> str | None:
        if frames := self.frames(key):
            return _fingerprint(key, frames)
        self._files.require_images()
        return None

    def refusable(self, key: str, why: str, reason: Reason) -> RootInput:
        path = os.path.join(self.folder.input, posixpath.dirname(key))
        return RootInput("refused", path, version_of(os.stat(path)), why, reason)

    def discard(self, job: Job) -> None:
        """Nothing: frames are read where they stand."""

    def answer(self, key: str, fingerprint: str, *, refusals: bool = True) -> RootAnswer | None:  # noqa: ARG002
        frames = self.frames(key, fingerprint)
        if not frames or _fingerprint(key, frames) != fingerprint:
            return None
        if frames[0].path == key:
            return self.answer_of_frame(frames[0])
        if (refused := self.refusal(key, fingerprint)) is not None:
            return refused
        kind = "done"
        for frame in frames:
            if (found := self.answer_of_frame(frame)) is None:
                return None
            kind = "failed" if found.kind == "failed" else kind
        return RootAnswer("failed" if kind == "failed" else "done")

    def refusal(self, key: str, fingerprint: str) -> RootAnswer | None:
        """What the sequence got as a whole where it was refused. Raises OSError."""
        return self._files.refusal(key, fingerprint)

    def answer_of_frame(self, frame: SequenceFrame) -> RootAnswer | None:
        """Raises OSError."""
        return self._files.answer(frame.path, frame.fingerprint)

    def trouble(self) -> str:
        return self._files.trouble()

    def inputs(self, unread: list[str] | None = None) -> Iterator[Entry]:
        """Of each sequence when all of the root has been listed."""
        sequences: dict[str, _Versions] = {}
        for entry, frame in self._files.files(unread):
            if (found := _frame(entry.key, frame)) is None:
                continue
            if found.number is None:
                yield entry
                continue
            known = sequences.setdefault(sequence_key(_name(entry.key)), _Versions())
            known.add(found, entry.age, entry.unchanged)
        for key, known in sequences.items():
            yield Entry(key, known.fingerprint, known.age, known.unchanged)

    def remove_leftovers(self) -> int:
        return self._files.remove_leftovers()

    # ------------------------------------------------------------------------------------------------ publishing

    def open_set(self, job: Job) -> FileSet:
        return self._files.open_set(job)

    def publish(self, job: Job, files: FileSet, told: Mapping[str, object]) -> tuple[Published, bool]:
        return self._files.publish(job, files, told)

    def refuse(self, job: Job, story: Mapping[str, object]) -> None:
        if job.turn is None:  # of a whole sequence: no file has its name
            self._files.write_refusal(job, story)
        else:
            self._files.refuse(job, story)

    def withdraw_refusal(self, key: str) -> None:
        """An older version of the sequence was refused."""
        self._files.forget_refusal(key)

    def forget_refusal(self, key: str) -> bool:
        """Of the sequence, and of each of its frames."""
        keys = {key, *(frame.path for frame in self.frames(key))}
        return sum(self._files.forget_refusal(each) for each in keys) > 0


def _frame(path: str, status: os.stat_result) -> SequenceFrame | None:
    if not stat.S_ISREG(status.st_mode) or is_end_marker(path):
        return None
    place = frame_number(path)
    return SequenceFrame(path, None if place is None else place.number, version_of(status), fingerprint_of(status))


def _is_there(path: str) -> bool:
    """Raises OSError where nobody can say."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return False
    return True


def _name(path: str) -> str:
    place = frame_number(path)
    assert place is not None
    return place.sequence


def _fingerprint(key: str, frames: list[SequenceFrame]) -> str:
    if len(frames) == 1 and frames[0].path == key:
        return frames[0].fingerprint
    versions = _Versions()
    for frame in frames:
        versions.add(frame)
    return versions.fingerprint
