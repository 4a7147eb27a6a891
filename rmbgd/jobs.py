r"""The values that travel through the pipeline, in the order in which they arise.

Values only: no behaviour, no files, no threads.

Job -> Frame -> Cutout     |  published
 \      \________________|  Rejection: refused, with a reason
  \_______________________|  Postponed: looks unfinished, back to waiting
   \______________________|  Duplicate: same bytes, same recipe, the answer is already known
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rmbgd.errors import Reason

if TYPE_CHECKING:
    from rmbgd.engine.arena import Lease
    from rmbgd.engine.base import Answer, Region
    from rmbgd.intake.ledger import Known


@dataclass(frozen=True, slots=True)
class Version:
    """Which content of a path is meant: changes whenever the file is replaced or rewritten.

    ctime counts before a claim only: our own rename changes it.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Job:
    """One version of one input, claimed.

    source         where its bytes are now: inside <input>/.rmbgd when claimed by rename, else the input path itself
    relative_path  below the drop folder, decoded with surrogateescape
    attempt        1 for the first try; counted before the work, so it survives a crash
    final          the settle policy has given up waiting: damage is now a refusal, not a reason to wait
    """

    job_id: int
    folder: str
    relative_path: str
    source: str
    version: Version
    attempt: int
    first_seen: float
    claimed_at: float
    claimed_by_rename: bool
    final: bool = False


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the file said of itself, kept for the event and for the output's metadata.

    format       Pillow's name: JPEG, PNG, ...
    mode         the mode as stored, before conversion
    size         (width, height) after orientation
    orientation  EXIF value as found, 1 if none
    icc_profile  the profile that belongs to the RGB that was decoded, or None for sRGB
    dpi          (x, y) or None
    metadata     the allow-listed text fields that were present: name -> value
    sha256       of the file's bytes, hex
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    metadata: dict[str, str]
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Timing:
    """Milliseconds per stage of one job; each key is written by the one thread that runs the stage."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + seconds * 1000.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded picture: its planes lie in the lease, which the finish stage gives back."""

    job: Job
    region: Region
    lease: Lease
    facts: SourceFacts
    timing: Timing
    ready_at: float


@dataclass(frozen=True, slots=True)
class Cutout:
    """A frame whose output plane holds the answer."""

    frame: Frame
    answer: Answer


@dataclass(frozen=True, slots=True)
class Rejection:
    """A picture that is refused. `lease` is given back by the finish stage when there is one."""

    job: Job
    reason: Reason
    detail: str
    stage: str
    timing: Timing
    facts: SourceFacts | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Postponed:
    """A picture that cannot be judged yet: back to the folder, attempts unchanged.

    why  "incomplete" (an upload may still be under way) | "storage" (the disk is at fault) | "changed" | "stopping"
         | "vanished" | "memory" (the kernel gave none: limits of the process, strict accounting)
    """

    job: Job
    why: str
    detail: str
    timing: Timing
    facts: SourceFacts | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A job whose content and recipe were answered before: published by copying the known output."""

    job: Job
    facts: SourceFacts
    known: Known
    timing: Timing


Arrival = Cutout | Rejection | Postponed | Duplicate
"""What reaches the finish stage, the one exit door."""
