"""Decisions about images that wait for review: approved sets go to the output, rejected ones to the failed folder.

The decision is recorded first, and carried out by steps that may be repeated: killed between any two of them, the next
start ends it the same way. What people decide by moving files is found out by `look`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.config.load import Folder
from rmbgd.errors import ImageError, Reason, RmbgdError, StorageFault
from rmbgd.events import Emit
from rmbgd.fs import FileSystem, SystemFileSystem, open_regular, storage_faults
from rmbgd.mounts import is_there
from rmbgd.publish import sidecar
from rmbgd.publish.file_set import FileSet, holds, stands
from rmbgd.publish.publisher import Publisher
from rmbgd.publish.temporary import copy, hash_of, make_folders, move_exactly
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import FileName, Published, PublishedFile, SetKey, Target, Unfinished
from rmbgd.store.review import Review

STATES = {"approved": "approving", "rejected": "rejecting"}
SEARCHED = 50_000  # files below a folder among which one is looked for that was moved and is not at its own path


class UndecidableReview(RmbgdError):
    """The decision cannot be carried out; the image waits as before."""


class Whereabouts(StrEnum):
    """Where a file of a set is that was put into the review folder."""

    WAITS = "waits"
    EDITED = "edited"
    OUTPUT = "output"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ReviewSet:
    """What waits of one image below `root`: its files, the first one first, and the preview that is none of them."""

    root: str
    review: Review
    job: Unfinished
    files: tuple[Target, ...]
    preview: Target | None

    @property
    def all(self) -> tuple[Target, ...]:
        return (*self.files, *filter(None, (self.preview,)))


@dataclass(slots=True)
class Search:
    """Looks for moved files below some folders, by size and content; reads each folder once, up to SEARCHED files."""

    alive: Callable[[], None] = lambda: None
    _sizes: dict[str, dict[int, list[str]]] = field(default_factory=dict)

    def find(self, root: str, path: str, size: int, sha256: str, *, besides: str = "") -> Iterator[str]:
        """Paths below `root` of files with these bytes; the likeliest is `path`. Nothing below `besides` counts."""
        if _size_of(os.path.join(root, path)) == size and _holds(os.path.join(root, path), sha256):
            yield path
        if root not in self._sizes:
            self._sizes[root] = self._read(root, besides)
        yield from (each for each in self._sizes[root].get(size, ()) if _holds(os.path.join(root, each), sha256))

    def _read(self, root: str, besides: str) -> dict[int, list[str]]:
        sizes: dict[int, list[str]] = {}
        left = SEARCHED
        for here, folders, files in os.walk(root):
            self.alive()
            folders[:] = [name for name in folders if os.path.join(here, name) != besides]
            for name in itertools.islice(files, left):
                size = None if names.is_temporary(name) else _size_of(os.path.join(here, name))
                if size is not None:
                    sizes.setdefault(size, []).append(os.path.relpath(os.path.join(here, name), root))
            left -= len(files)
            if left <= 0:
                break
        return sizes


class Reviewer:
    """`approve` and `reject` are the control thread's, `resume` and `look` the review thread's.

    Raises StorageFault: the decision stays, and `resume` carries it out when the disk lets it.
    """

    def __init__(
        self,
        folders: Iterable[Folder],
        publisher: Publisher,
        ledger: Ledger,
        clock: Clock,
        emit: Emit,
        fs: FileSystem | None = None,
    ) -> None:
        self._folders = {folder.name: folder for folder in folders}
        self._publisher, self._ledger, self._clock, self._emit = publisher, ledger, clock, emit
        self._fs = fs or SystemFileSystem()
        self._deciding = threading.Lock()  # one decision at a time
        self._roots: dict[str, tuple[object, ...]] = {}  # by folder: its directories, when something waited in them
        self._was_gone: set[int] = set()  # jobs whose files were nowhere at the last look
        # Path -> (how it looked to stat, is it as it was put there): a large file is not read at every look.
        self._judged: dict[str, tuple[tuple[int, int, int], bool]] = {}

    def approve(self, job_id: int, person: str) -> bool:
        """Publish the set as it stands now. False: that was done before. Raises UndecidableReview."""
        return self._decide(job_id, "approved", person)

    def reject(self, job_id: int, person: str) -> bool:
        """Set the set aside, with a file that says why. False: that was done before. Raises UndecidableReview."""
        return self._decide(job_id, "rejected", person)

    def resume(self, review: Review) -> None:
        """Carry out what was decided by a command before. Raises UndecidableReview."""
        with self._deciding:
            current = self._ledger.reviews.find(review.job_id)
            if current is not None and current.state in STATES.values():
                self._carry_out(current, {"recovered": True})

    def _decide(self, job_id: int, decision: str, person: str) -> bool:
        reviews = self._ledger.reviews
        with self._deciding:
            review = reviews.begin(job_id, STATES[decision], person)
            if review is not None:
                self._carry_out(review, {})
                return True
            known = reviews.find(job_id)
        if known is None:
            raise UndecidableReview("no image of this number waits for review; see `rmbgd review list`")
        if known.state == decision:
            return False
        if known.state == "open":
            raise UndecidableReview("a newer version of it is in work; decide when that is done")
        raise UndecidableReview(f"it is {known.state} already")

    def _carry_out(self, review: Review, told: Mapping[str, object]) -> None:
        try:
            found = self._set_of(review)
            if review.state == "approving":
                self._approve(found, told)
            else:
                self._reject(found, told)
        except UndecidableReview:
            self._ledger.reviews.reopen(review)
            raise
        except ImageError as error:  # a name or a size that the other disk does not take
            self._ledger.reviews.reopen(review)
            raise UndecidableReview(str(error)) from error

    def _set_of(self, review: Review) -> ReviewSet:
        folder, job = self._folders.get(review.folder), self._ledger.ended(review.job_id)
        if folder is None or folder.review is None or job is None:
            raise UndecidableReview(f"folder '{review.folder}' has no review directory any more")
        root = str(folder.review)
        had = self._ledger.output_names.of(SetKey(root, review.folder, review.path))
        preview = had.pop(names.PREVIEW, None)
        published = [target for target in had.values() if target.sha256 is not None]
        files = sorted(published, key=lambda target: (target.path != job.target, target.path))
        return ReviewSet(root, review, job, tuple(files), preview)

    # ---------------------------------------------------------------------------------------------- approved

    def _approve(self, found: ReviewSet, told: Mapping[str, object]) -> None:
        job, review, output = found.job, found.review, str(self._folders[found.review.folder].output)
        key = SetKey(output, review.folder, review.path)
        if not found.files:
            raise UndecidableReview("nothing of it is known any more; reject it, and drop the original again")
        with self._publisher.open_set(job) as files:
            self._copy(found, key, files)
            published, besides = self._publisher.give_names(
                files, job, key, lambda made: self._ledger.reviews.publishing(key, made)
            )
        self._ledger.reviews.published(found.root, review, published, besides)
        with storage_faults(found.root):
            for target, file in zip(found.files, published.files, strict=True):
                if holds(target.full, file.sha256):
                    self._fs.unlink(target.full)
            self._clear(found)
        self._tell(review, "approved", {"how": "command", "output": published.path, **told})
        self._ledger.reviews.approved(found.root, review, published)

    def _copy(self, found: ReviewSet, key: SetKey, files: FileSet) -> None:
        """Each file from where it is: it waits, or was moved to the output, by somebody or just before a crash."""
        search, ours = Search(), self._ledger.output_names.of(key)
        for target in found.files:
            source, at = target.full, target.path
            if not os.path.lexists(source):
                known = ours.get(target.slot)
                likely = known.path if known is not None else target.path
                size, sha256 = target.size or 0, target.sha256 or ""
                candidates = search.find(key.output, likely, size, sha256, besides=found.root)
                at = next((each for each in candidates if not self._ledger.output_names.is_anothers(key, each)), "")
                source = os.path.join(key.output, at)
            if not at or not os.path.isdir(found.root):
                text = f"{target.path} is nowhere any more: put it back into the review folder, or reject the image"
                raise UndecidableReview(text)
            plain = target.slot in names.PLAIN
            name = FileName.of_output(found.review.path, target.slot) if plain else None
            temporary = files.create(name or FileName(target.slot, target.base, target.base))
            with storage_faults(source), open(open_regular(source), "rb") as file:
                if copy(file.fileno(), temporary.fileno()) != hash_of(source):
                    raise UndecidableReview(f"{source} is being written to; try again")

    # ---------------------------------------------------------------------------------------------- rejected

    def _reject(self, found: ReviewSet, told: Mapping[str, object]) -> None:
        review, failed = found.review, str(self._folders[found.review.folder].failed)
        detail = f"rejected in review by {review.person}"
        with storage_faults(failed):
            if not is_there(found.root, require_mount=False):
                raise StorageFault("missing", "the review folder is not there", path=found.root)
            self._set_aside(found, failed, detail)
        with storage_faults(found.root):
            self._clear(found)
        self._tell(review, "rejected", {"how": "command", **told})
        self._ledger.reviews.rejected(found.root, review, detail)

    def _set_aside(self, found: ReviewSet, failed: str, detail: str) -> None:
        """All files of the set get the same version of their names, of which none is taken."""
        job = found.job
        sources = {target: hash_of(target.full)[0] if os.path.lexists(target.full) else "" for target in found.files}
        for target in sources:
            make_folders(failed, os.path.dirname(target.path), self._fs)
        for number in itertools.count(1):
            places = {target: names.version_of(target.path, number) for target in sources}
            reason = os.path.join(failed, names.reason_name(next(iter(places.values()), "")))
            begun = sidecar.read_json(reason).get("job") == job.job_id  # before a crash
            there = [(target, full) for target, path in places.items() if os.path.lexists(full := f"{failed}/{path}")]
            if any(not holds(full, sources[target]) if sources[target] else not begun for target, full in there):
                continue
            if not self._explain(found, failed, list(places.values()), detail):
                continue
            for target, path in places.items():
                if sources[target] and os.path.lexists(os.path.join(failed, path)):
                    self._fs.unlink(target.full)  # copied just before a crash
                elif sources[target]:
                    move_exactly(failed, path, target.full, job.job_id, self._fs)
            for below in {os.path.dirname(path) for path in places.values()}:
                self._fs.sync_folder(os.path.join(failed, below))
            return

    def _explain(self, found: ReviewSet, failed: str, paths: Sequence[str], detail: str) -> bool:
        """Write the reason file beside the first of `paths`; False where that of another one stands."""
        if not paths:
            return True
        why = {"reason": str(Reason.REJECTED_IN_REVIEW), "detail": detail, "stage": "review"}
        story = self._publisher.quarantine.story(self._ledger.resume(found.job), why) | {"files": list(paths)}
        return self._publisher.quarantine.write_reason(failed, paths[0], found.job.job_id, story)

    # ---------------------------------------------------------------------------------------------- what people moved

    def look(self, review: Review, search: Search) -> str:
        """Find out what people did with an open one; answers what is to be asked, or nothing."""
        with self._deciding:
            current = self._ledger.reviews.find(review.job_id)
            if current is None or current.state != "open":
                return ""
            try:
                found = self._set_of(review)
            except UndecidableReview as error:
                return str(error)
            folder = self._folders[review.folder]
            if not all(os.path.isdir(root) for root in (found.root, folder.output, folder.failed)):
                return ""  # a disk is away
            return self._judge(found, folder, search)

    def _judge(self, found: ReviewSet, folder: Folder, search: Search) -> str:
        job_id, roots = found.review.job_id, _identities(found.root, str(folder.output), str(folder.failed))
        if any(os.path.lexists(target.full) for target in found.all):
            self._roots[folder.name] = roots
        at = {target: self._find(target, found, folder, search) for target in found.files}
        kinds = {where for where, _ in at.values()}
        was_gone = job_id in self._was_gone
        self._was_gone.discard(job_id)
        if kinds <= {Whereabouts.WAITS}:
            return ""
        if kinds == {Whereabouts.OUTPUT}:
            self._moved_to_output(found, str(folder.output), {target: path for target, (_, path) in at.items()})
            return ""
        if kinds <= {Whereabouts.FAILED, Whereabouts.GONE}:
            if kinds == {Whereabouts.GONE}:
                self._was_gone.add(job_id)
                if roots != self._roots.get(folder.name):
                    return "its files are gone: approve or reject"
                if not was_gone:  # an editor that saves takes a file away for a moment
                    return ""
            self._moved_away(found, [path for _, path in at.values() if path])
            return ""
        return question(kinds)

    def _find(self, target: Target, found: ReviewSet, folder: Folder, search: Search) -> tuple[Whereabouts, str]:
        """Where a file of the set is, and its path there."""
        output, size, sha256 = str(folder.output), target.size or 0, target.sha256 or ""
        waits = os.path.lexists(target.full)
        for where, root in ((Whereabouts.OUTPUT, output), (Whereabouts.FAILED, str(folder.failed))):
            full = os.path.join(root, target.path)
            if _size_of(full) == size and not self._is_known(target.path, found, root) and _holds(full, sha256):
                return where, target.path
        if waits:
            return (Whereabouts.WAITS if self._is_unchanged(target) else Whereabouts.EDITED), target.path
        for where, root in ((Whereabouts.OUTPUT, output), (Whereabouts.FAILED, str(folder.failed))):
            key = SetKey(root, found.review.folder, found.review.path)
            for path in search.find(root, target.path, size, sha256, besides=found.root):
                if not self._ledger.output_names.is_anothers(key, path):  # a mask of another image may be the same
                    return where, path
        return Whereabouts.GONE, ""

    def _is_unchanged(self, target: Target) -> bool:
        status = os.lstat(target.full)
        looks = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._judged.get(target.full)
        if known is None or known[0] != looks:
            known = self._judged[target.full] = looks, _stands(target)
        return known[1]

    def _is_known(self, path: str, found: ReviewSet, root: str) -> bool:
        """Is it there as the output of another image, or of an older version, that happens to be the same?"""
        key = SetKey(root, found.review.folder, found.review.path)
        if self._ledger.output_names.is_anothers(key, path):
            return True
        known = next((target for target in self._ledger.output_names.of(key).values() if target.path == path), None)
        status = os.lstat(os.path.join(root, path))
        return known is not None and (status.st_ino, status.st_mtime_ns) == (known.inode, known.mtime_ns)

    def _moved_to_output(self, found: ReviewSet, output: str, paths: Mapping[Target, str]) -> None:
        files = []
        for target, path in paths.items():
            status = os.lstat(os.path.join(output, path))
            file = PublishedFile(target.slot, path, target.sha256 or "", status.st_size)
            files.append(replace(file, inode=status.st_ino, mtime_ns=status.st_mtime_ns))
        with storage_faults(found.root):
            self._clear(found, copies=True)
        self._tell(found.review, "approved", {"how": "moved", "output": files[0].path})
        self._ledger.reviews.approved(found.root, found.review, Published(output, tuple(files)))

    def _moved_away(self, found: ReviewSet, paths: Sequence[str]) -> None:
        """To the failed folder, where they are at `paths`; without any, nobody knows where to."""
        detail = "moved from the review folder to the failed folder" if paths else "removed from the review folder"
        with storage_faults(str(self._folders[found.review.folder].failed)):
            self._explain(found, str(self._folders[found.review.folder].failed), paths, detail)
        with storage_faults(found.root):
            self._clear(found, copies=True)
        self._tell(found.review, "rejected", {"how": "moved" if paths else "gone"})
        self._ledger.reviews.rejected(found.root, found.review, detail)
        self._was_gone.discard(found.review.job_id)

    # ---------------------------------------------------------------------------------------------- both

    def _clear(self, found: ReviewSet, *, copies: bool = False) -> None:
        """Remove the preview, the sidecar, and with `copies` the files too, where they stand as they were put there."""
        for target in (*(found.files if copies else ()), *filter(None, (found.preview,))):
            if _stands(target):
                self._fs.unlink(target.full)
        for target in found.all:
            self._judged.pop(target.full, None)
        for target in found.files[:1]:
            sidecar.remove(target, found.job, self._fs)
        for below in {os.path.dirname(target.full) for target in found.all}:
            with contextlib.suppress(FileNotFoundError):
                self._fs.sync_folder(below)

    def _tell(self, review: Review, decision: str, told: Mapping[str, object]) -> None:
        """Before it is recorded as over: an event may come twice, but is not lost."""
        by = {} if review.person is None else {"person": review.person}
        seconds = round(max(0.0, self._clock.wall().timestamp() - review.since), 3)
        at = {"job": review.job_id, "folder": review.folder, "path": review.path}
        self._emit("review.decided", **at, decision=decision, **by, seconds=seconds, **told)


def question(kinds: set[Whereabouts]) -> str:
    """What is to be asked about a set whose files are in these places."""
    if kinds <= {Whereabouts.WAITS, Whereabouts.EDITED}:
        return "it was changed: approve it as it is now, or reject" if Whereabouts.EDITED in kinds else ""
    return "moved in part: approve or reject"


def look_beside(root: str, files: Sequence[Target]) -> str:
    """What is to be asked, by the review folder alone; for those who only read."""
    if not os.path.isdir(root):
        return "the review folder is not there"
    there = [os.path.lexists(target.full) for target in files]
    if not any(there):
        return "its files are gone: approve or reject"
    kinds = {
        (Whereabouts.WAITS if _stands(file) else Whereabouts.EDITED)
        for file, is_there in zip(files, there, strict=True)
        if is_there
    }
    return question(kinds | ({Whereabouts.GONE} if not all(there) else set()))


def _identities(*roots: str) -> tuple[object, ...]:
    """Which directories these are: others, when a disk was mounted over them, or is away."""
    return tuple((status.st_dev, status.st_ino) for status in map(os.stat, roots))


def _size_of(path: str) -> int | None:
    """Of a regular file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_size if os.path.isfile(path) and not os.path.islink(path) else None


def _holds(path: str, sha256: str) -> bool:
    try:
        return holds(path, sha256)
    except OSError:
        return False


def _stands(target: Target) -> bool:
    try:
        return stands(target)
    except (OSError, ImageError):
        return False
