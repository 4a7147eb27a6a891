"""`rmbgd once`: a file or a folder through the same pipeline as the service's, without a daemon.

Originals stay where they are, nothing is remembered afterwards, and what cannot be done is reported, not quarantined.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from rmbgd import naming as names
from rmbgd.clock import SystemClock
from rmbgd.config.load import Config, EngineSettings, Folder, Recipe, ServiceSettings
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import EngineContext, EngineFactory
from rmbgd.engine.wiring import default_devices
from rmbgd.errors import ConfigError, explain
from rmbgd.events import EVENTS, Emit
from rmbgd.fs import version_of
from rmbgd.heartbeat import Heartbeats
from rmbgd.imaging.encode import SUFFIXES
from rmbgd.imaging.pillow import configure_opencv, configure_pillow
from rmbgd.pipeline.pipeline import Pipeline, PipelineContext
from rmbgd.pipeline.queue import NoReceivers
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.service.threads import ThreadFailure, ThreadGroup
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Candidate, Job

NAME = "once"
STAGING = ".rmbgd-once-"  # folders in OUT that begin so hold what a run has not finished


@dataclass(slots=True)
class Summary:
    """What became of the files. `skipped`: their output was there already."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)  # (path, why)


def sources_of(source: Path) -> tuple[Path, list[str], list[OSError]]:
    """The folder that paths are relative to, and the files: one, or all below a folder but hidden and linked; and what
    kept folders below it from being read. Raises ConfigError, and OSError where `source` cannot be read itself."""
    if source.is_file():
        return source.parent, [source.name], []
    if not source.is_dir():
        raise ConfigError(f"{source}: neither a file nor a folder; nothing to do")
    os.listdir(source)
    found, unread = [], list[OSError]()
    for directory, folders, files in os.walk(source, onerror=unread.append):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        paths = (os.path.join(directory, each) for each in sorted(files) if not each.startswith("."))
        found += [os.path.relpath(path, source) for path in paths if not os.path.islink(path)]
    return source, found, unread


@contextmanager
def staging(place: Path) -> Iterator[Path]:
    """A folder in `place` for the time of a run; removes those of runs that were killed. Raises OSError.

    The run that owns such a folder has it locked, and no process keeps a lock when it ends, however it ends.
    """
    for left in place.glob(f"{STAGING}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as stack:
        folder = _owned_folder(place, stack)
        try:
            yield folder
        finally:
            with suppress(OSError):  # under another name no thread of an interrupted run puts a file into it
                folder = folder.rename(f"{folder}.ended")
            shutil.rmtree(folder, ignore_errors=True)


def _owned_folder(place: Path, stack: ExitStack) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=place))
    except OSError as error:
        error.filename = os.fspath(place)  # nobody knows the other name
        raise
    try:
        stack.enter_context(_locked(folder))
    except (BlockingIOError, FileNotFoundError):  # another run took it for one that was left
        return _owned_folder(place, stack)
    except OSError:  # a file system without locks: then nobody removes it either
        pass
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder that is there. Raises OSError, and BlockingIOError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)
        yield
    finally:
        os.close(descriptor)


def once(
    source: Path,
    output: Path,
    recipe: Recipe,
    *,
    engine: EngineSettings,
    service: ServiceSettings,
    emit: Emit,
    overwrite: bool = False,
    build_devices: EngineFactory = default_devices,
) -> Summary:
    """Cutouts of `source` (a file or a folder) below `output`, or as `output` when both are single files.

    An output that is there already is left alone, and its input skipped, unless `overwrite`. `emit` hears image.done
    and image.failed per file, with paths below the source. Raises ConfigError, and what broke if a part broke.
    """
    root, paths, unread = sources_of(source.absolute())
    suffixes = sorted({*SUFFIXES.values(), ".tiff"})
    single = output.name if source.is_file() and output.suffix in suffixes and not output.is_dir() else None
    place = (output.parent if single else output).absolute()
    if place.exists() and not place.is_dir():
        names_one = f", or for one image a file that ends in {', '.join(suffixes)}"
        raise ConfigError(f"{place}: is a file; name a folder{names_one if source.is_file() else ''}")
    if place == root and not single:
        raise ConfigError(f"{place}: results would be written among the sources; name another folder")
    place.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    problems = [(str(each.filename), explain(each).removeprefix(f"{each.filename}: ")) for each in unread]
    summary = Summary(failed=len(unread), problems=problems)
    began = clock.monotonic()
    with staging(place) as staged:
        folder = Folder(name=NAME, input=root, output=staged, failed=staged, originals="keep", recipe="default")
        config = Config(service=service, engine=engine, recipe={"default": recipe}, folder=[folder])
        moving = _MovingEmit(staged, place, single, emit, summary)
        outputs = {path: single or names.output_names(path, SUFFIXES[recipe.format])[0] for path in paths}
        wanted = [path for path in paths if overwrite or not (place / outputs[path]).exists()]
        summary.skipped = len(paths) - len(wanted)
        if wanted:
            run_pipeline(config, moving, build_devices, partial(_feed, root, wanted, summary))
    summary.seconds = clock.monotonic() - began
    emit("run.summary", done=summary.done, failed=summary.failed, skipped=summary.skipped, seconds=summary.seconds)
    return summary


class _MovingEmit:
    """An Emit that puts a finished cutout from the staging folder to its place before its event is emitted.

    The staged name stays as well: an equal image is answered with a copy of what stands there. Any finish thread.
    """

    def __init__(self, staging: Path, place: Path, single: str | None, emit: Emit, summary: Summary) -> None:
        self._staging, self._place, self._single, self._emit, self._summary = staging, place, single, emit, summary

    def __call__(self, event: str, /, **keys: object) -> None:
        if event == "image.done":
            try:
                self._move(str(keys["output"]))
            except OSError as error:  # a folder under the cutout's name, a full disk
                known = {key: keys[key] for key in EVENTS["image.postponed"].keys if key in keys}
                self("image.postponed", **known, why="storage", detail=explain(error))
                return
            self._summary.done += 1
        elif event in ("image.failed", "image.postponed"):
            self._summary.failed += 1
            self._summary.problems.append((str(keys["path"]), f"{keys.get('reason') or keys['why']}: {keys['detail']}"))
        self._emit(event, **keys)

    def _move(self, name: str) -> None:
        final = self._single or name
        for found, wanted in ((name, final), (names.sidecar_name(name), names.sidecar_name(final))):
            source, target = self._staging / found, self._place / wanted
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                moving = source.with_name(f"{source.name}.moving")
                try:
                    os.link(source, moving)
                except OSError:  # a file system without links
                    shutil.copy2(source, moving)
                os.replace(moving, target)


class _NoFolder:
    """No drop folder takes an image back: postponed is failed, and was counted as such."""

    def give_back(self, job: Job, why: str, detail: str) -> None: ...

    def ended(self, job: Job) -> None: ...

    def pause(self, reason: str) -> None: ...

    def resume(self, reason: str) -> None: ...


def run_pipeline(
    config: Config,
    emit: Emit,
    factory: EngineFactory,
    feed: Callable[[Pipeline, Callable[[Path, str], list[Job]]], None],
) -> None:
    """A pipeline for `config`'s one folder, until everything that `feed` sends is through. Raises what broke.

    `feed(pipeline, claim)` runs on a thread of its own and owns `pipeline.jobs`; `claim(root, path)` makes a file below
    a folder a job: none where the file has been claimed before. Raises OSError where there is no such file.
    """
    configure_pillow(config.limits)
    configure_opencv()
    clock = SystemClock()
    ended: SimpleQueue[ThreadFailure] = SimpleQueue()
    heartbeats = Heartbeats(clock)
    with ExitStack() as stack:
        ledger = Ledger(":memory:", clock)
        stack.callback(ledger.close)
        arena = Arena(config.pipeline.arena_bytes)
        stack.callback(arena.close)
        engine = EngineContext(config, arena, emit, clock, gives_up=True)
        stack.callback(engine.abort)
        storage_retry = StorageRetry(_NoFolder(), emit, clock)
        storage_retry.release()  # no operator makes room on a full disk meanwhile: report it and go on
        threads = ThreadGroup(ended.put)
        pipeline = Pipeline(
            PipelineContext(
                engine=engine,
                build_devices=factory,
                ledger=ledger,
                publisher=Publisher(config, ledger, clock, emit),
                storage_retry=storage_retry,
                source=_NoFolder(),
                new_heartbeat=heartbeats.new,
                start_thread=threads.start,
                on_ready=lambda _: None,
                on_room=lambda: None,
            )
        )

        def claim(root: Path, path: str) -> list[Job]:
            version, name = version_of(os.lstat(root / path)), config.folder[0].name
            now = clock.monotonic()
            return ledger.claim([Candidate(name, path, str(root), version, now, by_rename=False, final=True)])

        pipeline.start()
        threads.start("feed", lambda: feed(pipeline, claim))
        pipeline.let_run()
        while threads.join(0.2) and ended.empty():
            pass
        if not ended.empty():
            raise ended.get().error


def _feed(
    root: Path, paths: list[str], summary: Summary, pipeline: Pipeline, claim: Callable[[Path, str], list[Job]]
) -> None:
    """Claim and send one file after another, as the pipeline takes them."""
    with pipeline.jobs as jobs, suppress(NoReceivers):  # then the engine broke, and says so itself
        for path in paths:
            try:
                claimed = claim(root, path)
            except OSError as error:
                summary.failed += 1
                summary.problems.append((path, f"{error.strerror}"))
            else:
                for job in claimed:
                    jobs.send(job)
