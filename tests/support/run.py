"""A run of intake and publishing that stops at a chosen step, as a killed service does; the next takes it up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Self
from unittest import mock

from rmbgd.fs import SystemFileSystem, version_of
from rmbgd.intake.startup_recovery import Recovered, Recovery
from rmbgd.naming import expand
from rmbgd.publish.file_set import FileSet
from rmbgd.store.claims import claim_by_rename, put_back
from rmbgd.store.outbox import JobOutcome
from rmbgd.store.records import Candidate, ContentKey, FileName, Job
from rmbgd.testing.fs import CrashingFs
from tests.support.workspace import Workspace, done, sha256, torn

DAY = date(2026, 1, 31)
SUBJECT = "{subject}"


def set_names(path: str, templates: Sequence[str], when: date = DAY) -> list[FileName]:
    """Of a set: a template that names the subject comes once for each, in their order."""
    found = []
    for place, template in enumerate(templates):
        subject = templates[: place + 1].count(template) if SUBJECT in template else None
        slot = template if subject is None else f"{template}#{subject}"
        found.append(FileName(slot, *expand(template, path, ".png", when=when, subject=subject)))
    return found


def set_files(path: str, templates: Sequence[str], data: bytes) -> dict[str, bytes]:
    """What a set of these names holds."""
    return {name.plain: set_content(name, data) for name in set_names(path, templates)}


def set_content(name: FileName, data: bytes) -> bytes:
    return name.slot.encode() + b" of " + data


def set_writer(wanted: Sequence[FileName], data: bytes, *, review: bool = False) -> Callable[[FileSet], None]:
    def write(files: FileSet) -> None:
        for name in wanted:
            files.create(name, format="png").write(set_content(name, data))
        files.review = review

    return write


STEPS_OF_THE_LEDGER = {"claim", "release", "publishing", "done", "failed", "next_attempt", "forget_content"}


def stepped(step: Callable[[], None], action: Callable[..., object]) -> Callable[..., object]:
    def stepping(*arguments: object, **given: object) -> object:
        step()
        return action(*arguments, **given)

    return stepping


class Run(Workspace):
    """One run of the service, from start to its end or to the step at which the world stops.

    Every operation on files is a step, and every commit of the ledger. With `templates`, each image gives a set.
    """

    def __init__(self, base: Path, after: int | None = None, *, templates: Sequence[str] = (), **given: object) -> None:
        super().__init__(base, fs=SystemFileSystem() if after is None else CrashingFs(after), **given)
        self.templates = templates
        self.root = str(self.roots["input"])
        self.step: Callable[[], None] = getattr(self.fs, "step", lambda: None)
        for name in STEPS_OF_THE_LEDGER:
            setattr(self.ledger, name, stepped(self.step, getattr(self.ledger, name)))
        names_ = self.ledger.output_names
        names_.move = stepped(self.step, names_.move)
        self.recovery = Recovery(self.config, self.ledger, self.publisher, self.events, fs=self.fs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.fs, CrashingFs):
            self.die()
        self.close()

    def die(self) -> None:
        """What waited for the next commit dies with the process."""
        self.ledger.database._deferred.clear()

    def claim(self, path: str) -> Job | None:
        version = version_of(os.lstat(os.path.join(self.root, path)))
        if self.ledger.handled("shop", path, version):
            return None
        by_rename, now = self.folder.originals != "keep", self.clock.monotonic()
        (job,) = self.ledger.claim([Candidate("shop", path, self.root, version, now, by_rename)])
        if by_rename:
            claim_by_rename(self.root, path, os.path.basename(job.source), self.fs)
        return job

    def put_back(self, job: Job) -> None:
        if job.claimed_by_rename:
            put_back(self.root, os.path.basename(job.source), job.relative_path, self.fs)
        self.ledger.release([job.job_id])

    def end(self, job: Job) -> None:
        """What the pipeline does: the content says how it ends."""
        data = Path(job.source).read_bytes()
        if data.startswith(b"bad"):
            outcome = torn(job)
            self.publisher.quarantine.set_aside(job, outcome)
            self.deliver(outcome)
        elif data.startswith(b"later") and job.attempt == 1 and self.clock.monotonic() < 2000:
            self.put_back(job)
        else:
            outcome, key = done(job), ContentKey(sha256(data), "recipe")
            known = self.ledger.same_content(key.sha256_in, key.recipe_hash)
            wanted = set_names(job.relative_path, self.templates)
            if known is None or self.publisher.publish_copy(job, known, outcome, wanted=wanted) is None:
                facts = {"verdict": "empty"} if data.startswith(b"empty") else None
                write = set_writer(wanted, data) if wanted else self.plain(job, b"cutout of " + data)
                self.publisher.publish(job, write, outcome, content=key, sidecar_facts=facts)
            self.deliver(outcome)

    def deliver(self, outcome: JobOutcome) -> None:
        """The world may stop before the event, and between the event and the note that it was delivered."""
        self.step()
        database = self.ledger.database
        with mock.patch.object(database, "defer", stepped(self.step, database.defer)):
            self.publisher.deliver(outcome)

    def work_off(self) -> Recovered:
        """Recover, then everything that waits, as the loop would."""
        found = self.recovery.recover()
        self.work_on()
        return found

    def work_on(self) -> None:
        """Behind recovery."""
        while (job := self.recovery.suspects.next()) is not None:
            self.end(job)
        self.work_waiting()

    def work_waiting(self) -> None:
        for path in sorted(self.files("input")):
            if not path.startswith(".rmbgd/") and (job := self.claim(path)) is not None:
                self.end(job)
