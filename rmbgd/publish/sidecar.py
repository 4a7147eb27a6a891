"""Sidecar files: the <output>.json beside a cutout says what was found, and whose cutout it is.

A sidecar is recognised by its content, so that a file of somebody else with that name is never overwritten, and one
that a crash left behind is not mistaken for somebody else's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from rmbgd import naming as names
from rmbgd.fs import FileSystem, FileVersion
from rmbgd.publish.temporary import Temporary
from rmbgd.store.records import Job, Target, Unfinished

JSON_BYTES = 1 << 20  # a larger file is none of ours


def write(target: Target, cutout: Temporary, job: Job, facts: Mapping[str, object], mode: int, fs: FileSystem) -> bool:
    """Publish the sidecar of `cutout`, replacing an older one of the same input. False: that name is taken.

    The folder is synced with the cutout itself.
    """
    path = sidecar_path(target)
    story = {"folder": job.folder, "path": job.relative_path, "job": job.job_id, "output": target.path}
    story |= {"sha256": cutout.sha256, "bytes": cutout.size, "source": source_of(job.version)}
    below = os.path.dirname(target.path)
    with Temporary(target.output, below, names.temporary_name(job.job_id, ".json"), mode, fs) as temporary:
        temporary.write(json.dumps(story | dict(facts), indent=1).encode() + b"\n")
        return temporary.publish(path, replace=is_ours(path, job))


def remove(target: Target, job: Job, fs: FileSystem) -> None:
    """Remove the sidecar of a version that was replaced, or that never came to be."""
    path = sidecar_path(target)
    if is_ours(path, job):
        fs.unlink(path)


def recover(target: Target, row: Unfinished, fs: FileSystem) -> bool:
    """After a crash: is there a sidecar of the row's own output? One of an older version is removed."""
    if is_of(target, row):
        return True
    remove(target, row, fs)
    return False


def is_of(target: Target, row: Unfinished) -> bool:
    """Was it written for the output that the row was about to publish?"""
    path = sidecar_path(target)
    return is_ours(path, row) and read_json(path).get("sha256") == row.sha256_out


def source_of(version: FileVersion) -> dict[str, int]:
    """Which version of the input an output was made from, as a sidecar says it: copies and backups keep both."""
    return {"bytes": version.size, "mtime_ns": version.mtime_ns}


def sidecar_path(target: Target) -> str:
    return os.path.join(target.output, names.sidecar_name(target.path))


def is_ours(path: str, of: Job) -> bool:
    """Was this sidecar written for the same input?"""
    found = read_json(path)
    return (found.get("folder"), found.get("path")) == (of.folder, of.relative_path)


def read_json(path: str) -> dict[str, object]:
    """Content of a sidecar or reason file; empty for anything that is none."""
    try:
        if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > JSON_BYTES:
            return {}
        with open(path, "rb") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
