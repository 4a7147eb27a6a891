"""Images that wait for review, put there as the finish stage does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rmbgd import naming as names
from rmbgd.publish.file_set import FileSet
from rmbgd.store.outbox import JobOutcome, job_keys
from rmbgd.store.records import FileName
from tests.support.workspace import OF_DONE, Workspace

SET = {"s/a.png": b"cutout", "s/a_white.jpg": b"on white", "masks/a.png": b"mask"}


def built(base: Path, **given: object) -> Workspace:
    """With a review folder."""
    (base / "review").mkdir(exist_ok=True)
    it = Workspace(base, **{"review": str(base / "review")} | given)
    it.roots["review"] = Path(it.folder.review or "")
    return it


def doubt(it: Workspace, path: str = "s/a.jpg", files: Mapping[str, bytes] = SET, **keys: object) -> int:
    """Put an image's set and its preview into the review folder; answers its job.

    files  content by path, or of a plain output by its extension
    keys   as in image.done
    """
    it.drop(path)
    job = it.claim(path)

    def write(made: FileSet) -> None:
        made.review = True
        for name, data in files.items():
            plain = name.startswith(".")
            made.create(FileName.of_output(path, name) if plain else FileName(name, name, name)).write(data)
        made.create(FileName.of_output(path, names.PREVIEW)).write(b"preview of " + path.encode())

    told = JobOutcome("image.done", job_keys(job) | OF_DONE | {"verdict": "review", "reasons": ["soft inside"]} | keys)
    it.publisher.publish(job, write, told, sidecar_facts={"verdict": "review"})
    it.publisher.deliver(told)
    return job.job_id
