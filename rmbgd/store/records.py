"""Plain values that the ledger takes and answers: jobs, candidates, output names, outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rmbgd import naming as names
from rmbgd.fs import FileVersion


@dataclass(frozen=True, slots=True)
class Leased:
    """What makes a job one of a queue that many machines share: events carry it, and outputs the fingerprint.

    lease        which delivery of which message: stream:sequence/delivery; "" of one that is only announced
    fingerprint  which version of the input was announced
    """

    lease: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class FrameTurn:
    """What makes a job a frame of a sequence.

    sequence  its name, a path below the drop folder
    number    of the frame; None where it has none
    ticket    its place in the order in which frames of its sequence were claimed; 0: it goes for itself, as `note` says
    previous  the ticket of the frame before it, or 0
    note      late_frame, doubled_number, no_number; empty for a frame in order
    """

    sequence: str
    number: int | None
    ticket: int
    previous: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One version of one input, claimed.

    source         where its bytes are now: inside <input>/.rmbgd when claimed by rename, else the input path itself
    relative_path  below the drop folder, decoded with surrogateescape
    attempt        1 for the first try; counted before the work, so it survives a crash
    final          the readiness policy has given up waiting: damage is now a refusal, not a reason to wait
    refilled       its content changed while its size did not, as this run saw; not in the ledger
    leased         None where it was claimed from a drop folder
    turn           None where it is no frame of a sequence; not in the ledger
    """

    job_id: int
    folder: str
    relative_path: str
    source: str
    version: FileVersion
    attempt: int
    first_seen: float
    claimed_at: float
    claimed_by_rename: bool
    final: bool = False
    refilled: bool = False
    leased: Leased | None = None
    turn: FrameTurn | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A complete file that may be claimed. `root` is the drop folder; `first_seen` in monotonic seconds."""

    folder: str
    relative_path: str
    root: str
    version: FileVersion
    first_seen: float
    by_rename: bool
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished(Job):
    """A job as the ledger remembers it: without its source, and `first_seen` in wall-clock seconds until `resume`."""

    state: str
    target: str | None
    sha256_out: str | None
    size_out: int | None
    reason: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class FileName:
    """Where one file of an image's set goes, below the root of the set.

    slot   which file of the set it is, for good: ".png" of a plain output, else what tells it from the others
    plain  its name, and `later` the one where another input has a plain name of this set
    """

    slot: str
    plain: str
    later: str

    @classmethod
    def of_output(cls, relative_path: str, extension: str) -> FileName:
        """Of the one output of an image, named and placed as the image is."""
        return cls(extension, *names.output_names(relative_path, extension))


@dataclass(frozen=True, slots=True)
class SetKey:
    """Which set is meant: of which input, below which root."""

    output: str
    folder: str
    relative_path: str


@dataclass(frozen=True, slots=True)
class SetFile:
    """A file of a set that is about to get its name. `facts` go into the outcome: its format, what was checked."""

    name: FileName
    sha256: str
    size: int
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """The name below `output` that belongs to one file of a set, and how the file looked that we last published there.

    base, number  the name it would have if nothing were taken, and which version of it this is
    """

    output: str
    path: str
    slot: str
    base: str
    number: int
    pending: str | None = None
    sha256: str | None = None
    size: int | None = None
    inode: int | None = None
    mtime_ns: int | None = None
    sidecar: bool = False

    @property
    def full(self) -> str:
        return os.path.join(self.output, self.path)


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file below the root of its set, and what identifies it there; the last two are 0 where only its bytes matter.

    `facts` as in SetFile.
    """

    slot: str
    path: str
    sha256: str
    size: int
    facts: Mapping[str, object] = field(default_factory=dict)
    inode: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """A finished set below `output`. Its first file is what is meant where one is spoken of."""

    output: str
    files: tuple[PublishedFile, ...]
    sidecar: bool = False

    @classmethod
    def announced(cls, targets: Sequence[Target], files: Sequence[SetFile]) -> Published:
        """What is about to be, under the names that it is to have."""
        pairs = zip(targets, files, strict=True)
        made = (PublishedFile(target.slot, target.path, file.sha256, file.size, file.facts) for target, file in pairs)
        return cls(targets[0].output, tuple(made))

    @property
    def path(self) -> str:
        return self.files[0].path

    @property
    def sha256(self) -> str:
        return self.files[0].sha256

    @property
    def size(self) -> int:
        return self.files[0].size

    @property
    def is_plain(self) -> bool:
        """Is it the one output of a recipe that lists none, and nothing is to be said of it?"""
        first = self.files[0]
        return len(self.files) == 1 and first.slot in names.PLAIN and "preset" not in first.facts

    @property
    def outputs(self) -> list[dict[str, object]]:
        """Its files, as image.done lists them."""
        told = ("path", "sha256", "size")
        return [{key: getattr(file, key) for key in told} | dict(file.facts) for file in self.files]


@dataclass(frozen=True, slots=True)
class Adopted:
    """A kept original that has its output already; `published` is None where whose the output is cannot be known.

    version  that was processed; None: an older one, and the output is to be replaced
    """

    key: SetKey
    version: FileVersion | None
    published: Published | None


@dataclass(frozen=True, slots=True)
class ContentKey:
    """What makes two answers equal: the bytes that came in, and the recipe with its model."""

    sha256_in: str
    recipe_hash: str


@dataclass(frozen=True, slots=True)
class Known:
    """The set that equal content got before. `report` is what the first computation said of the image."""

    key: ContentKey
    output: str
    files: tuple[PublishedFile, ...]
    report: Mapping[str, object]
