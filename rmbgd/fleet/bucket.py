"""A root in a bucket of S3-compatible storage: one HEAD, one GET and one PUT for an image that gives one file.

The record of a set is the metadata of its first object; of more than one file, an object <first>.json besides, which
the metadata names. So the HEAD of the first object tells what stands, and putting it, which comes last, publishes all.

Writes of the first object are conditional: only what was seen there is replaced. A worker with an older version, or a
second one with the same, is refused by the server. It then looks again, also whether its input is still the newest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rmbgd import naming as names
from rmbgd.config.load import Bucket, Folder, Recipe
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.fleet.message import unusable
from rmbgd.fleet.objects import ObjectFacts, ObjectStore, Place
from rmbgd.fleet.root import (
    Entry,
    RootAnswer,
    RootInput,
    files_of,
    fingerprint_of_job,
    first_name,
    published_of,
    reason_of_long,
    record_of,
    to_bytes,
)
from rmbgd.fs import SystemFileSystem, storage_faults, version_of
from rmbgd.intake.ignored import Ignored
from rmbgd.publish.file_set import FileSet
from rmbgd.publish.publisher import SourceChanged
from rmbgd.publish.sidecar import JSON_BYTES
from rmbgd.store.records import Job, Published, Target

TRIES = 8  # when other machines publish the same image at the same time
METADATA_BYTES_MAXIMUM = 1900  # of 2048 that an object may have, with names
RECORD, DIGEST, OWNER = "rmbgd", "rmbgd-sha256", "rmbgd-owner"  # names in the metadata
VARIANTS: Sequence[str] = ("plain", "later")  # of a name, in the order of trying
ETAG = "etag:"
NO_KEY = (errno.EILSEQ, errno.ENAMETOOLONG)  # of a name that no object can have
SEEN_MAXIMUM = 4096  # images; what was forgotten is looked at once more before it is published


class SpoolFileSystem(SystemFileSystem):
    """Files that a crash may take: they are copies, or not published yet."""

    def sync_file(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at one of the names that the first object of an input's set may have. `facts` None: nothing."""

    place: Place
    name: str
    variant: str
    facts: ObjectFacts | None
    record: Mapping[str, object]  # of its metadata; empty for an object of somebody else


class BucketRoot:
    """A Root. Of an image that is in work it remembers what stood where its result goes.

    folder      its spool, as Config.spool_of says
    file_bytes  of an input, at most
    """

    quiet = 0.0  # objects appear whole

    def __init__(self, bucket: Bucket, folder: Folder, recipe: Recipe, store: ObjectStore, file_bytes: int) -> None:
        self.folder, self.recipe, self.place = folder, recipe, str(Place.of(bucket.input))
        self._input, self._failed = Place.of(bucket.input), Place.of(bucket.failed)
        self._results = [Place.of(each) for each in (bucket.output, bucket.review) if each]
        self._store, self._file_bytes, self._fs = store, file_bytes, SpoolFileSystem()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], list[Standing]] = {}  # by key and fingerprint, oldest first; guarded by _lock

    # ------------------------------------------------------------------------------------------------ what stands

    def source(self, key: str, fingerprint: str) -> RootInput:
        path = os.path.join(self.folder.input, secrets.token_hex(8) + os.path.splitext(key)[1][:32])
        try:
            etag = fingerprint.removeprefix(ETAG)
            found = self._store.download(self._input, key, etag, path, self._file_bytes)
        except BaseException as error:  # whatever ends it, half an input does not stay
            with contextlib.suppress(OSError):
                os.unlink(path)
            if isinstance(error, OSError) and error.errno in NO_KEY:
                return RootInput("gone")  # no object has such a name
            raise
        match found:
            case "gone" | "superseded":
                return RootInput(found)
            case "large" | "archived":
                return self._unread(key, found)
        return RootInput("ready", path, version_of(os.lstat(path)))

    def _unread(self, key: str, why: str) -> RootInput:
        if why == "archived":
            text = "it is in an archive of the storage, which must restore it before it can be read"
            return self.refusable(key, text, Reason.NOT_REGULAR)
        found = self._store.head(self._input, key)
        size = found.size if found is not None else 0
        text = f"{size} bytes; at most {self._file_bytes} are allowed"
        unread = self.refusable(key, text, Reason.TOO_MANY_BYTES)
        assert unread.version is not None
        return replace(unread, version=replace(unread.version, size=size))

    def refusable(self, key: str, why: str, reason: Reason) -> RootInput:  # noqa: ARG002
        """By an empty file in its place."""
        path = os.path.join(self.folder.input, secrets.token_hex(8))
        Path(path).touch()
        return RootInput("refused", path, version_of(os.lstat(path)), why, reason)

    def fingerprint(self, key: str) -> str | None:
        found = self._store.head(self._input, key)
        return None if found is None else ETAG + found.etag

    def discard(self, job: Job) -> None:
        with self._lock:
            self._seen.pop((job.relative_path, fingerprint_of_job(job)), None)
        with contextlib.suppress(OSError):
            os.unlink(job.source)

    def answer(self, key: str, fingerprint: str, *, refusals: bool = True) -> RootAnswer | None:
        try:
            standing = self._look(key, at_length=refusals)
        except OSError as error:
            if error.errno not in NO_KEY:
                raise
            standing = []  # publishing says so
        else:
            self._remember(key, fingerprint, standing)
        mine = [each for each in standing if each.record]
        is_mine = len(mine) == 1 and self._is_of(mine[0].record, fingerprint)
        if is_mine and (story := self._whole(mine[0])) is not None:
            self._forget(key, fingerprint)
            return RootAnswer("done", story)
        if not refusals:
            return None
        story = self._refusal(key)
        if story is not None and self._is_of(story, fingerprint):
            self._forget(key, fingerprint)
            return RootAnswer("failed", story)
        return None

    def _remember(self, key: str, fingerprint: str, standing: list[Standing]) -> None:
        with self._lock:
            self._seen[key, fingerprint] = standing
            if len(self._seen) > SEEN_MAXIMUM:  # of images that were not begun here
                del self._seen[next(iter(self._seen))]

    def _forget(self, key: str, fingerprint: str) -> None:
        with self._lock:
            self._seen.pop((key, fingerprint), None)

    def _look(self, key: str, variants: Sequence[str] = VARIANTS, *, at_length: bool = True) -> list[Standing]:
        """At each place of results: what is ours, or the first name that is free; none where both are another's.

        `at_length`: also behind a name that is free, as its set may have had to take the other one.
        """
        found, name = [], first_name(self.recipe, key)
        for place in self._results:
            chosen: Standing | None = None
            for variant in variants:
                below = getattr(name, variant)
                facts = self._store.head(place, below)
                record = _record_in(facts)
                if record.get("owner") == self._owner(key):
                    chosen = Standing(place, below, variant, facts, record)
                    break
                if facts is None and chosen is None:
                    chosen = Standing(place, below, variant, None, {})
                    if not at_length:
                        break
            found += [] if chosen is None else [chosen]
        return found

    def _owner(self, key: str) -> str:
        return hashlib.sha256(json.dumps([self.folder.name, key]).encode()).hexdigest()[:32]

    def _is_of(self, record: Mapping[str, object], fingerprint: str) -> bool:
        return (record.get("fingerprint"), record.get("recipe")) == (fingerprint, self.folder.recipe)

    def _whole(self, standing: Standing) -> Mapping[str, object] | None:
        """Its story, if all of the set stands."""
        assert standing.facts is not None
        record = standing.record
        if record.get("files") == 1:
            file = {"path": standing.name, "sha256": record.get("sha256"), "size": standing.facts.size}
            more = record.get("facts")
            told = {"output": standing.name, "sha256": record.get("sha256"), "bytes": standing.facts.size}
            return {**record, **told, "outputs": [file | (more if isinstance(more, dict) else {})]}
        story = self._story(standing)
        if story is None or story.get("job") != record.get("job"):
            return None
        files = files_of(story)
        for path, size, digest in files[1:]:
            facts = self._store.head(standing.place, path)
            if facts is None or (facts.size, facts.metadata.get(DIGEST)) != (size, digest):
                return None
        return story if files and files[0][0] == standing.name else None

    def _story(self, standing: Standing) -> Mapping[str, object] | None:
        return _json(self._store.read(standing.place, names.sidecar_name(standing.name), JSON_BYTES))

    def trouble(self) -> str:
        try:
            for place in (self._input, *self._results, self._failed):
                self._store.reachable(place)
        except OSError as error:
            return f"{error.filename} cannot be used now: {error.strerror}"
        return ""

    def inputs(self, unread: list[str] | None = None) -> Iterator[Entry]:  # noqa: ARG002
        """In the order of the keys."""
        ignored, now = Ignored(self.folder.ignore), datetime.now(UTC)
        for each in self._store.list_all(self._input):
            if not unusable(each.key) and not ignored.path(each.key) and (self.folder.recursive or "/" not in each.key):
                age = (now - each.modified).total_seconds()
                yield Entry(each.key, ETAG + each.etag, age, age)

    def remove_leftovers(self) -> int:
        """Refusals of versions that were replaced since."""
        removed = 0
        for each in self._store.list_all(self._failed):
            story = _json(self._store.read(self._failed, each.key, JSON_BYTES)) or {}
            key, fingerprint = story.get("path"), story.get("fingerprint")
            if story.get("folder") != self.folder.name or not isinstance(key, str) or unusable(key):
                continue
            if self._reason_name(key) == each.key and self.fingerprint(key) not in (None, fingerprint):
                self._store.delete(self._failed, each.key)
                removed += 1
        return removed

    # ------------------------------------------------------------------------------------------------ publishing

    def open_set(self, job: Job) -> FileSet:
        """Flat in the spool, where names of objects may be too long for a file."""
        return FileSet(replace(job, relative_path="image"), str(self.folder.output), 0o600, self._fs)

    def publish(self, job: Job, files: FileSet, told: Mapping[str, object]) -> tuple[Published, bool]:
        key, fingerprint = job.relative_path, fingerprint_of_job(job)
        place, variants = self._results[files.review], VARIANTS
        with storage_faults(str(place)):
            files.seal()
            with self._lock:
                seen = self._seen.pop((key, fingerprint), None)
            # The condition of a PUT guards one object: not a set, nor what another place has of the image.
            alone = len(files.described) == 1 and self._store.has_conditions(place)
            if seen is None or not alone or len(self._results) > 1:
                self._check_unchanged(job)
            if not alone:
                seen = None
            old: list[tuple[Place, str]] = []
            for _ in range(TRIES):
                if seen is None:
                    seen = self._look(key, variants)
                here = next((each for each in seen if each.place == place), None)
                if here is None:
                    taken = first_name(self.recipe, key)
                    raise ImageError(Reason.OUTPUT_TAKEN, f"objects of others stand at {taken.plain} and {taken.later}")
                is_mine = self._is_of(here.record, fingerprint)
                again = is_mine and here.record.get("job") != job.job_id
                if is_mine and (story := self._whole(here)) is not None:
                    others = [each for each in seen if each is not here]
                    self._remove([(each.place, path) for each in others for path in self._paths(each)])
                    return published_of(str(place), story), again
                old += [(each.place, path) for each in seen for path in self._paths(each)]
                try:
                    stored = self._put(job, files, here, told)
                except FileExistsError as error:  # a file of the set has a name that is another's
                    if here.variant == VARIANTS[-1]:
                        text = f"an object of others stands at {error.filename}"
                        raise ImageError(Reason.OUTPUT_TAKEN, text) from None
                    variants, seen = VARIANTS[1:], None
                    continue
                if stored:
                    if rest := [each for each in old if each not in self._paths_now(files, here)]:
                        self._check_unchanged(job)  # or a newer version has it
                        self._remove(rest)
                    return files.announced(self._targets(files, here)), again
                seen = None  # somebody was quicker
                self._check_unchanged(job)
        raise StorageFault("io_error", "other workers publish this image again and again", path=str(place))

    def _check_unchanged(self, job: Job) -> None:
        """Raises SourceChanged."""
        now = self.fingerprint(job.relative_path)
        if now != fingerprint_of_job(job):
            why, told = ("vanished", "gone") if now is None else ("changed", "superseded")
            raise SourceChanged(why, f"{told} while it was worked on")

    def _paths(self, standing: Standing) -> list[str]:
        """Objects of what stands there; the first, which says what belongs to it, is the last."""
        if not standing.record:
            return []
        story = self._story(standing) if standing.record.get("files") != 1 else None
        listed = [path for path, *_ in files_of(story or {})]
        record = [names.sidecar_name(standing.name)] if standing.record.get("object") else []
        return [*listed[1:], *record, standing.name]

    def _remove(self, objects: Sequence[tuple[Place, str]]) -> None:
        for place, path in objects:
            self._store.delete(place, path)

    def _targets(self, files: FileSet, here: Standing) -> list[Target]:
        named = [(each, getattr(each.name, here.variant)) for each in files.described]
        place = str(here.place)
        return [Target(place, path, each.name.slot, path, 1, sha256=each.sha256) for each, path in named]

    def _paths_now(self, files: FileSet, here: Standing) -> set[tuple[Place, str]]:
        record = {(here.place, names.sidecar_name(here.name))} if _has_object(files) else set()
        return {(here.place, target.path) for target in self._targets(files, here)} | record

    def _put(self, job: Job, files: FileSet, here: Standing, told: Mapping[str, object]) -> bool:
        """Everything, the first file last; False when another stands there by now. Raises FileExistsError."""
        targets, owner = self._targets(files, here), self._owner(job.relative_path)
        record = record_of(job, files, targets, told, self.folder.recipe)
        of_set = list(zip(files.described, targets, files.paths, strict=True))
        for file, target, path in reversed(of_set[1:]):
            with open(path, "rb") as body:
                self._put_beside(here.place, target.path, body, owner, file.sha256)
        if _has_object(files):
            digest = hashlib.sha256(record).hexdigest()
            self._put_beside(here.place, names.sidecar_name(here.name), record, owner, digest)
        file, target, path = of_set[0]
        over = None
        if self._store.has_conditions(here.place):
            over = "" if here.facts is None else here.facts.etag
        metadata = {RECORD: self._brief(job, record, files), DIGEST: file.sha256}
        with open(path, "rb") as body:
            return self._store.put(here.place, target.path, body, sha256=file.sha256, metadata=metadata, over=over)

    def _put_beside(self, place: Place, path: str, body: bytes | IO[bytes], owner: str, sha256: str) -> None:
        """Raises FileExistsError where an object of somebody else stands."""
        metadata = {OWNER: owner, DIGEST: sha256}
        for _ in range(2):  # another worker may put the same image there between look and PUT
            facts = self._store.head(place, path)
            if facts is not None and facts.metadata.get(OWNER) != owner:
                break
            over = None if facts is not None or not self._store.has_conditions(place) else ""
            if not isinstance(body, bytes):
                body.seek(0)
            if self._store.put(place, path, body, sha256=sha256, metadata=metadata, over=over):
                return
        raise FileExistsError(errno.EEXIST, "an object of somebody else", f"{place}/{path}")

    def _brief(self, job: Job, record: bytes, files: FileSet) -> str:
        """The record as metadata; of a set, what finds and proves its object."""
        story, count = json.loads(record), len(files.described)
        brief = {"owner": self._owner(job.relative_path), "job": job.job_id, "files": count}
        brief |= {"object": _has_object(files)} | {name: story[name] for name in ("fingerprint", "recipe", "sha256")}
        more = {} if count > 1 else {"done": story["done"], "facts": dict(files.described[0].facts)}
        whole = json.dumps(brief | more, separators=(",", ":"))
        return whole if len(whole) <= METADATA_BYTES_MAXIMUM else json.dumps(brief, separators=(",", ":"))

    # ------------------------------------------------------------------------------------------------ refusals

    def refuse(self, job: Job, story: Mapping[str, object]) -> None:
        record = dict(story) | {"fingerprint": fingerprint_of_job(job), "recipe": self.folder.recipe}
        with storage_faults(str(self._failed)):
            self._check_unchanged(job)  # a newer version may have its result
            self._store.put(self._failed, self._reason_name(job.relative_path), to_bytes(record))

    def _reason_name(self, key: str) -> str:
        name = names.reason_name(key)
        return name if self._failed.may_hold(name) else reason_of_long(key)

    def _refusal(self, key: str) -> Mapping[str, object] | None:
        story = _json(self._store.read(self._failed, self._reason_name(key), JSON_BYTES))
        return story if story and (story.get("folder"), story.get("path")) == (self.folder.name, key) else None

    def forget_refusal(self, key: str) -> bool:
        if self._refusal(key) is None:
            return False
        self._store.delete(self._failed, self._reason_name(key))
        return True


def _has_object(files: FileSet) -> bool:
    """Is its record an object, besides the metadata?"""
    return len(files.described) > 1 or files.sidecar_facts is not None


def _record_in(facts: ObjectFacts | None) -> Mapping[str, object]:
    return {} if facts is None else _json(facts.metadata.get(RECORD, "").encode()) or {}


def _json(data: bytes | None) -> dict[str, object] | None:
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
