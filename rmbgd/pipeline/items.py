r"""The values that travel through the pipeline, in the order in which they arise.

Job -> Frame -> Cutout     |  published; of a film, FilmCutout
 \      \________________|  Rejection: refused, with a reason
  \_______________________|  Postponed: looks unfinished, back to waiting
   \______________________|  Duplicate: same bytes, same recipe, the answer is already known
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rmbgd.engine.arena import Lease
from rmbgd.engine.retry import NEW, History
from rmbgd.engine.types import Answer, Region
from rmbgd.errors import Reason
from rmbgd.film.forms import FilmHeader
from rmbgd.film.process import FilmResult
from rmbgd.imaging.formats import SourceFacts
from rmbgd.pipeline.queue import QueueStatistics, Sender
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.temporary import Temporary
from rmbgd.store.outbox import JobOutcome
from rmbgd.store.records import ContentKey, FileName, Job, Known, Published


@dataclass(slots=True)
class Timing:
    """Milliseconds per stage of one job; each key is written by the one thread that runs the stage.

    Between `begin` and `end` the calling thread works on the job, and its processor time counts as the job's.
    """

    milliseconds: dict[str, float] = field(default_factory=dict)
    _processor: float = 0.0
    _begun: float | None = None

    def begin(self) -> None:
        self._begun = time.thread_time()

    def end(self) -> None:
        self._processor, self._begun = self.processor, None

    @property
    def processor(self) -> float:
        """Seconds so far."""
        return self._processor + (0.0 if self._begun is None else time.thread_time() - self._begun)

    def add(self, stage: str, seconds: float) -> None:
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + seconds * 1000.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded image: its planes lie in the lease, which the finish stage gives back.

    ready_at  monotonic s; its place in the queue. history: what devices made of it so far
    answers   where its answer goes; None: to the finish stage
    film      the job of the film that it is a frame of
    """

    job: Job
    region: Region
    lease: Lease
    facts: SourceFacts
    timing: Timing
    ready_at: float
    history: History = NEW
    answers: Sender[Arrival] | None = None
    film: int | None = None

    @property
    def owner(self) -> int:
        """The job that people know it by."""
        return self.job.job_id if self.film is None else self.film


@dataclass(frozen=True, slots=True)
class Cutout:
    """A frame whose output plane holds the answer."""

    job: Job
    region: Region
    lease: Lease
    facts: SourceFacts
    timing: Timing
    answer: Answer


@dataclass(frozen=True, slots=True)
class WrittenFilm:
    """The temporary that holds a film until it is an output, or is not wanted."""

    file: Temporary

    def release(self) -> None:
        """From any thread, once or more often."""
        self.file.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class FilmCutout:
    """A film that was made, frame by frame, and waits for its name.

    answer  of all frames together; facts: of the film that it was made of
    """

    job: Job
    facts: SourceFacts
    timing: Timing
    answer: Answer
    header: FilmHeader
    result: FilmResult
    lease: WrittenFilm


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image that is refused. `lease` is given back by the finish stage when there is one."""

    job: Job
    reason: Reason
    detail: str
    stage: str
    timing: Timing
    facts: SourceFacts | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Postponed:
    """An image that cannot be judged yet: back to the folder, attempts unchanged.

    why  "incomplete" (an upload may still be under way) | "storage" (the disk is at fault) | "changed" | "stopping"
         | "vanished" | "memory" (the kernel gave none: limits of the process, strict accounting)
         | "review" (an equal image waits for people, so that there is nothing to copy)
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
    lease: None = None


Arrival = Cutout | FilmCutout | Rejection | Postponed | Duplicate
"""What reaches the finish stage, the one exit."""


STAGES = ("decode", "engine", "finish")
"""In which an image is worked on, in order."""


class JobSource(Protocol):
    """Where jobs come from and go back to: the intake of the service, or the list of files of `rmbgd once`."""

    def moved(self, job: int, stage: str) -> None:
        """The job with this number goes on to this stage, one of STAGES: the source keeps it alive."""
        ...

    def give_back(self, job: Job, why: str, detail: str) -> None: ...

    def ended(self, job: Job) -> None: ...  # done or refused

    def pause(self, reason: str) -> None:
        """Start no jobs of the folder that `reason` names: "kind:folder"."""
        ...

    def resume(self, reason: str) -> None: ...


class ResultPublisher(Protocol):
    """Where results go: files that the ledger knows, or a root that many machines share.

    Every method but `deliver` raises StorageFault when the disk is at fault (call again later), ImageError when the
    name or the size is, SourceChanged when the input is another by now. Whatever it raises, no temporary is left.
    """

    def publish(
        self,
        job: Job,
        write: Callable[[FileSet], None],
        outcome: JobOutcome,
        *,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
    ) -> Published:
        """Make the files that `write` makes the set of the job's input, all or none; `outcome` gets what came of it.

        `content` and `report` make the set known for equal images, unless it goes to people.
        """
        ...

    def publish_copy(
        self,
        job: Job,
        known: Known,
        outcome: JobOutcome,
        *,
        wanted: Sequence[FileName] = (),
        sidecar_facts: Mapping[str, object] | None = None,
    ) -> Published | None:
        """Publish the set that equal content got before; `wanted`: names of its files here, none of a plain one.

        None when a file of it is not there any more or is another: compute it.
        """
        ...

    def refuse(self, job: Job, outcome: JobOutcome) -> None:
        """Record that it is refused, and why."""
        ...

    def deliver(self, outcome: JobOutcome) -> None:
        """Emit the event of a job that was published or refused, once it is stored and whole."""
        ...


class JobConsumer(Protocol):
    """What the intake feeds: the pipeline, or what announces images to other machines. Built and ended by its owner."""

    @property
    def jobs(self) -> Sender[Job]:
        """The sender closes it at the end."""
        ...

    def start(self) -> None: ...

    def exit_stage(self) -> Sender[Arrival]:
        """Another sender to the stage that ends jobs, for the intake, which rejects some images."""
        ...

    def take_back(self) -> None:
        """Put back what is only a path. Returns when the last producer of jobs has gone and nothing waits any more."""
        ...

    def statistics(self) -> list[QueueStatistics]: ...

    def film(self) -> Mapping[str, object] | None:
        """How far the film in work is, for the status file."""
        ...
