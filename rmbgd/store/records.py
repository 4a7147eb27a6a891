"""Plain values that the ledger takes and answers: jobs, candidates, output names, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rmbgd.fs import FileVersion


@dataclass(frozen=True, slots=True)
class Job:
    """One version of one input, claimed.

    source         where its bytes are now: inside <input>/.rmbgd when claimed by rename, else the input path itself
    relative_path  below the drop folder, decoded with surrogateescape
    attempt        1 for the first try; counted before the work, so it survives a crash
    final          the readiness policy has given up waiting: damage is now a refusal, not a reason to wait
    refilled       its content changed while its size did not, as this run saw; not in the ledger
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
class OutputKey:
    """Which output is meant: of which input, in which output folder, in which format (".png")."""

    output: str
    folder: str
    relative_path: str
    extension: str


@dataclass(frozen=True, slots=True)
class Target:
    """The name below `output` that belongs to one input, and how the file looked that we last published there."""

    output: str
    path: str
    pending: str | None = None
    sha256: str | None = None
    size: int | None = None
    inode: int | None = None
    mtime_ns: int | None = None
    sidecar: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """A finished output: `path` below `output`, and what identifies it there."""

    output: str
    path: str
    sha256: str
    size: int
    inode: int
    mtime_ns: int
    sidecar: bool = False


@dataclass(frozen=True, slots=True)
class Adopted:
    """A kept original that has its output already; `published` is None where whose the output is cannot be known.

    version  that was processed; None: an older one, and the output is to be replaced
    """

    key: OutputKey
    version: FileVersion | None
    published: Published | None


@dataclass(frozen=True, slots=True)
class ContentKey:
    """What makes two answers equal: the bytes that came in, and the recipe with its model."""

    sha256_in: str
    recipe_hash: str


@dataclass(frozen=True, slots=True)
class Known:
    """The answer that equal content got before. `report` is what the first computation said of the image."""

    key: ContentKey
    output: str
    path: str
    sha256: str
    size: int
    report: Mapping[str, object]
