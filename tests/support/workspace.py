"""One drop folder with everything that belongs to it, in a temporary directory: for tests of intake and publishing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmbgd.config.load import Config, parse
from rmbgd.errors import Reason
from rmbgd.events import RecordedEvents
from rmbgd.folder_lock import LOCK
from rmbgd.fs import FileSystem, SystemFileSystem, version_of
from rmbgd.naming import CLAIM_FOLDER, EXTENSIONS
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.publisher import Publisher
from rmbgd.store.claims import claim_by_rename
from rmbgd.store.ledger import Ledger
from rmbgd.store.outbox import JobOutcome, job_keys, refused
from rmbgd.store.records import Candidate, FileName, Job, Known, Published, Unfinished
from rmbgd.testing.clock import FakeClock


class Workspace:
    """`originals` and further keys are the folder's settings; `recipe` those of its recipe."""

    def __init__(
        self,
        base: Path,
        *,
        fs: FileSystem | None = None,
        clock: FakeClock | None = None,
        recipe: dict[str, object] | None = None,
        intake: dict[str, object] | None = None,
        **folder: object,
    ) -> None:
        self.base = base
        self.roots = {role: base / role for role in ("input", "output", "done", "failed")}
        for root in (*self.roots.values(), base / "state"):
            root.mkdir(exist_ok=True)
        self.config: Config = parse(
            {
                "service": {"state_directory": str(base / "state")},
                "intake": intake or {},
                "recipe": {"default": recipe or {}},
                "folder": [{"name": "shop"} | {role: str(path) for role, path in self.roots.items()} | folder],
            }
        )
        self.folder = self.config.folder[0]
        self.clock = clock or FakeClock()
        self.events = RecordedEvents()
        self.fs = fs or SystemFileSystem()
        self.ledger = Ledger(base / "state" / "ledger.sqlite", self.clock)
        self.publisher = Publisher(self.config, self.ledger, self.clock, self.events, self.fs)

    def close(self) -> None:
        self.ledger.close()

    def drop(self, path: str, data: bytes = b"image") -> Path:
        """Put a file into the input, as by a rename of something new."""
        full = self.roots["input"] / path
        full.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.base / "fresh"
        fresh.write_bytes(data)
        os.rename(fresh, full)
        return full

    def claim(self, path: str, *, by_rename: bool | None = None) -> Job:
        """What reconcile does with a file that is complete."""
        root = str(self.roots["input"])
        by_rename = self.folder.originals != "keep" if by_rename is None else by_rename
        version = version_of(os.lstat(os.path.join(root, path)))
        now = self.clock.monotonic()
        (job,) = self.ledger.claim([Candidate("shop", path, root, version, now, by_rename)])
        if by_rename:
            claim_by_rename(root, path, os.path.basename(job.source), SystemFileSystem())
        return job

    def publish(self, job: Job, data: bytes = b"cutout", **given: Any) -> Published:
        return self.publisher.publish(job, self.plain(job, data), **{"outcome": done(job)} | given)

    def plain(self, job: Job, data: bytes) -> Callable[[FileSet], None]:
        """Writes the one output of a recipe that lists none."""
        extension = EXTENSIONS[self.config.recipe_of(self.folder).format]
        return lambda files: files.create(FileName.of_output(job.relative_path, extension)).write(data)

    def work(self, path: str, data: bytes = b"cutout", **given: Any) -> Published:
        return self.publish(self.claim(path), data, **given)

    def known(self, sha256_in: str = "in") -> Known:
        known = self.ledger.same_content(sha256_in, "recipe")
        assert known is not None
        return known

    def files(self, role: str) -> dict[str, bytes]:
        """Relative path -> content of every file below a root, hidden ones too, but for the lock of the input."""
        root = os.fsencode(self.roots[role])
        found = {}
        for folder, _, names in os.walk(root):
            for name in names:
                full = os.path.join(folder, name)
                if (relative := os.fsdecode(os.path.relpath(full, root))) == f"{CLAIM_FOLDER}/{LOCK}":
                    continue
                found[relative] = os.readlink(full) if os.path.islink(full) else Path(os.fsdecode(full)).read_bytes()
        return found


OF_DONE: dict[str, object] = {
    "milliseconds": {"total": 9.0}, "device": "cpu", "model": "m", "width": 1, "height": 1, "format": "JPEG",
    "bytes_in": 8, "coverage": 0.5, "soft": 0.1, "verdict": "ok", "batch": 1, "reused": False, "sha256_in": "",
}  # fmt: skip


def done(job: Job) -> JobOutcome:
    """As the finish stage composes it, before it is published."""
    return JobOutcome("image.done", job_keys(job) | OF_DONE)


def torn(job: Job | Unfinished) -> JobOutcome:
    return refused(job_keys(job), Reason.CORRUPT, "torn", stage="decode", milliseconds={"decode": 1.0})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
