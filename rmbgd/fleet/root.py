"""A root: where images of a fleet are read and results written; folders on a share and buckets are both one.

Beside each result lies its record, which says from which version of which input it was made: that record, and the files
that it lists, are the truth; nothing of it is remembered elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, Protocol

import rmbgd
from rmbgd import naming as names
from rmbgd.config.load import Folder, Recipe
from rmbgd.errors import Reason
from rmbgd.fleet.message import Announcement, unusable
from rmbgd.fs import FileVersion
from rmbgd.pipeline.produce import planned
from rmbgd.publish.file_set import FileSet
from rmbgd.store.records import FileName, Job, Leased, Published, PublishedFile, Target

State = Literal["ready", "gone", "superseded", "refused"]
"""Of an input: as announced; not there; another version is; there, but nothing that a service reads."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input: its path below the root, and which version stands there.

    age        seconds since it came there
    unchanged  since it was written, as its own time says
    """

    key: str
    fingerprint: str
    age: float = 0.0
    unchanged: float = 0.0


@dataclass(frozen=True, slots=True)
class SequenceFrame:
    """One frame of a sequence: its path below the root, and which version stands there. number: None of a still."""

    path: str
    number: int | None
    version: FileVersion
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RootInput:
    """What stands where an announced image should be. `detail` says why it is refused, with `reason`.

    path    that the decoder reads
    frames  of a sequence, in the order of their numbers
    """

    state: State
    path: str = ""
    version: FileVersion | None = None
    detail: str = ""
    reason: Reason = Reason.NOT_REGULAR
    frames: Sequence[SequenceFrame] = ()


@dataclass(frozen=True, slots=True)
class RootAnswer:
    """What a version of an image got. `story` is the record: of a set, the sidecar; of a refusal, the reason file."""

    kind: Literal["done", "failed"]
    story: Mapping[str, object] = field(default_factory=dict)


class Root(Protocol):
    """One root of a worker. Usable from every thread. Raises OSError where the share or the bucket fails.

    folder  as the pipeline is to see it: paths of this machine
    recipe  with the settings of its presets
    place   where its inputs are, the same text for every root that reads them
    quiet   s since an input changed, before which it may be an upload that goes on
    """

    folder: Folder
    recipe: Recipe
    place: str
    quiet: float

    def source(self, key: str, fingerprint: str) -> RootInput:
        """The input as it is now, to be read at its path until `discard`."""
        ...

    def fingerprint(self, key: str) -> str | None:
        """Of the version that stands there; None: no image does."""
        ...

    def discard(self, job: Job) -> None:
        """Its input is not needed here any more."""
        ...

    def answer(self, key: str, fingerprint: str, *, refusals: bool = True) -> RootAnswer | None:
        """What this version got before, with this recipe; None: nothing, or not all of it, or more.

        `refusals`: also look whether it was refused, where that is a further question.
        """
        ...

    def trouble(self) -> str:
        """Why nothing of it can be read now; "" where it can be, and trouble is one image's own."""
        ...

    def open_set(self, job: Job) -> FileSet:
        """Files for its results. Raises SourceChanged where it is known by now that the input is another."""
        ...

    def publish(self, job: Job, files: FileSet, told: Mapping[str, object]) -> tuple[Published, bool]:
        """Give the files of a set their names, or none; `told` is remembered with it, for events that were lost.

        Also answers whether another worker has made it from the same version, before or at the same time. Raises
        StorageFault, ImageError where both of its names are another's, SourceChanged.
        """
        ...

    def refuse(self, job: Job, story: Mapping[str, object]) -> None:
        """Record beside the outputs that it is refused; the original stays. Raises StorageFault, ImageError."""
        ...

    def forget_refusal(self, key: str) -> bool:
        """So that it is tried again; False when there was none."""
        ...

    def inputs(self, unread: list[str] | None = None) -> Iterator[Entry]:
        """Every image that is no upload's companion. Folders that cannot be read are left out, and put into `unread`.

        Raises OSError where it is the whole root.
        """
        ...

    def refusable(self, key: str, why: str, reason: Reason) -> RootInput:
        """An input that cannot be read, to be refused for that reason. Raises OSError."""
        ...

    def remove_leftovers(self) -> int:
        """What workers left that died, and what no input belongs to any more; how many."""
        ...


# ---------------------------------------------------------------------------------------------------- records


def job_of(announced: Announcement, found: RootInput, now: float, *, lease: str = "", attempt: int = 1) -> Job:
    """`now`: monotonic seconds."""
    assert found.version is not None
    place = (announced.root, announced.key, found.path, found.version, attempt)
    leased = Leased(lease, announced.fingerprint)
    return Job(secrets.randbits(48), *place, now, now, claimed_by_rename=False, final=True, leased=leased)


def fingerprint_of_job(job: Job) -> str:
    assert job.leased is not None
    return job.leased.fingerprint


def first_name(recipe: Recipe, key: str, *, is_film: bool = False) -> FileName:
    """Of the first file of an input's set, which is known before anything is computed."""
    if is_film:
        return FileName.of_output(key, names.FILM_EXTENSIONS[recipe.film])
    first = next(planned(recipe, 1))
    extension = names.EXTENSIONS[first.look.format]
    if first.template is None:
        return FileName.of_output(key, extension)
    both = names.expand(first.template, key, extension, when=date.min, subject=first.subject)
    return FileName(first.template, *both)


_OF_ONE_RUN = {"job", "attempt", "lease", "milliseconds", "recovered", "duplicate"}
"""Keys of image.done that say nothing of the image."""


def record_of(job: Job, files: FileSet, targets: Sequence[Target], told: Mapping[str, object], recipe: str) -> bytes:
    """The record of a set, as the targets name it."""
    announced = files.announced(targets)
    story = {
        **(files.sidecar_facts or {}),
        "folder": job.folder,
        "path": job.relative_path,
        "job": job.job_id,
        "fingerprint": fingerprint_of_job(job),
        "recipe": recipe,
        "source": {"bytes": job.version.size, "mtime_ns": job.version.mtime_ns},
        "output": announced.path,
        "sha256": announced.sha256,
        "bytes": announced.size,
        "outputs": announced.outputs,
        "done": {key: value for key, value in told.items() if key not in _OF_ONE_RUN},
        "rmbgd": rmbgd.__version__,
    }
    return to_bytes(story)


def to_bytes(story: Mapping[str, object]) -> bytes:
    return json.dumps(story, indent=1).encode() + b"\n"


def done_again(story: Mapping[str, object]) -> dict[str, object]:
    """What image.done says of a set that stands, from its record."""
    done = story.get("done")
    told = dict(done) if isinstance(done, dict) else {}
    told |= {"output": story.get("output"), "bytes_out": story.get("bytes"), "sha256_out": story.get("sha256")}
    outputs = story.get("outputs")
    return told | ({"outputs": outputs} if isinstance(outputs, list) and len(outputs) > 1 else {})


def told_again(answer: RootAnswer, keys: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """The event of an answer that stands, and what it says with these keys: a worker that died may not have."""
    if answer.kind == "done":
        return "image.done", done_again(answer.story) | {"milliseconds": {}} | dict(keys) | {"recovered": True}
    told = {key: answer.story.get(key, "") for key in ("reason", "detail", "stage")}
    return "image.failed", {"milliseconds": {}} | dict(keys) | told | {"recovered": True}


def files_of(story: Mapping[str, object]) -> list[tuple[str, int, str]]:
    """Path below the root, bytes and SHA-256 of each file that a record lists; none of what is no record of ours."""
    outputs = story.get("outputs")
    files = [each for each in outputs if isinstance(each, dict)] if isinstance(outputs, list) else []
    found = [(str(each.get("path")), each.get("size"), str(each.get("sha256"))) for each in files]
    usable = all(type(size) is int and not unusable(path) for path, size, _ in found)
    return [(path, int(str(size)), digest) for path, size, digest in found] if usable else []


def published_of(root: str, story: Mapping[str, object]) -> Published:
    """As a record lists it, in its order."""
    outputs = story["outputs"] if isinstance(story["outputs"], list) else []
    made = []
    for (path, size, digest), each in zip(files_of(story), outputs, strict=True):
        facts = {key: value for key, value in each.items() if key not in ("path", "sha256", "size")}
        made.append(PublishedFile("", path, digest, size, facts))
    return Published(root, tuple(made), sidecar=True)


def reason_of_long(key: str) -> str:
    """The name of the file that says why an input was refused, where one beside it would be too long."""
    return f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.error.json"
