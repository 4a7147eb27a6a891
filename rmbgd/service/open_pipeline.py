"""A pipeline without a daemon around it: for `rmbgd once`, for benchmarks, and in processes that others start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rmbgd import naming as names
from rmbgd.clock import SystemClock
from rmbgd.config.load import Config
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import EngineContext, EngineFactory
from rmbgd.engine.types import EngineDescription
from rmbgd.errors import RmbgdError
from rmbgd.events import Emit
from rmbgd.fleet.publisher import RootPublisher
from rmbgd.fleet.root import Root
from rmbgd.fs import version_of
from rmbgd.heartbeat import Heartbeats
from rmbgd.imaging.pillow import configure_opencv, configure_pillow
from rmbgd.pipeline.items import Rejection, ResultPublisher
from rmbgd.pipeline.pipeline import FOLLOWERS_MAXIMUM, Pipeline, PipelineContext
from rmbgd.pipeline.queue import NoReceivers
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.service.threads import ThreadFailure, ThreadGroup
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Candidate, Job
from rmbgd.wording import printable

ENDS = ("image.done", "image.failed", "image.postponed")
STOP_PATIENCE = 5.0  # s for threads that have nothing left to do


class ImageStuck(RmbgdError):
    """An image does not end, and nobody says why."""


class PipelineBroke(RmbgdError):
    """Of whatever kind the cause is, and not every kind can be sent to another process."""


class _NoFolder:
    """No drop folder takes an image back: postponed is failed, and was counted as such."""

    def moved(self, job: int, stage: str) -> None: ...

    def give_back(self, job: Job, why: str, detail: str) -> None: ...

    def ended(self, job: Job) -> None: ...

    def pause(self, reason: str) -> None: ...

    def resume(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Assembled:
    pipeline: Pipeline
    threads: ThreadGroup
    ledger: Ledger


@contextmanager
def _assembled(
    config: Config,
    emit: Emit,
    factory: EngineFactory,
    on_failure: Callable[[ThreadFailure], None],
    on_ready: Callable[[EngineDescription], None] = lambda _: None,
    roots: Mapping[str, Root] | None = None,
) -> Iterator[_Assembled]:
    """A pipeline, not started, and what it needs. Results go to `config`'s folders, or to `roots` where there are."""
    configure_pillow(config.limits)
    configure_opencv()
    clock = SystemClock()
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
        files = Publisher(config, ledger, clock, emit)
        results: ResultPublisher = files if roots is None else RootPublisher(roots, files.quarantine, emit)
        threads = ThreadGroup(on_failure)
        pipeline = Pipeline(
            PipelineContext(
                engine=engine,
                build_devices=factory,
                ledger=ledger,
                publisher=results,
                storage_retry=storage_retry,
                source=_NoFolder(),
                new_heartbeat=heartbeats.new,
                start_thread=threads.start,
                on_ready=on_ready,
                on_room=lambda: None,
                followers=FOLLOWERS_MAXIMUM if roots is None else 0,
            )
        )
        yield _Assembled(pipeline, threads, ledger)


def run_pipeline(
    config: Config,
    emit: Emit,
    factory: EngineFactory,
    feed: Callable[[Pipeline, Callable[[Path, str], list[Job]]], None],
) -> None:
    """A pipeline for `config`'s folders, until everything that `feed` sends is through. Raises what broke.

    `feed(pipeline, claim)` runs on a thread of its own and owns `pipeline.jobs`; `claim(root, path)` makes a file below
    an input folder a job: none where the file has been claimed before. Where two folders have one input, films are of
    that whose kind says so. Raises OSError where there is no such file.
    """
    folders = {(str(folder.input), folder.kind == "films"): folder.name for folder in config.folder}
    clock = SystemClock()
    ended: SimpleQueue[ThreadFailure] = SimpleQueue()
    with _assembled(config, emit, factory, ended.put) as run:

        def claim(root: Path, path: str) -> list[Job]:
            version, now = version_of(os.lstat(root / path)), clock.monotonic()
            place = str(root)
            folder = folders.get((place, names.is_film(path))) or folders[place, not names.is_film(path)]
            return run.ledger.claim([Candidate(folder, path, str(root), version, now, by_rename=False, final=True)])

        run.pipeline.start()
        run.threads.start("feed", lambda: feed(run.pipeline, claim))
        run.pipeline.let_run()
        while run.threads.join(0.2) and ended.empty():
            pass
        if not ended.empty():
            raise ended.get().error


class OpenPipeline:
    """A pipeline for images of roots; any number of threads wait for theirs.

    emit    hears what is no image's own
    device  in use when it was ready; "none" where images wait for one

    Raises what keeps the engine from starting.
    """

    def __init__(self, config: Config, roots: Mapping[str, Root], emit: Emit, factory: EngineFactory) -> None:
        self._emit = emit
        self._images: dict[int, Future[tuple[str, Mapping[str, Any]]]] = {}  # by job; single operations
        self._broke: Future[None] = Future()
        ready: Future[EngineDescription] = Future()

        def fail(failure: ThreadFailure) -> None:
            broke = PipelineBroke(printable(f"the pipeline broke: {type(failure.error).__name__}: {failure.error}"))
            with suppress(InvalidStateError):  # it was told before
                ready.set_exception(failure.error)
            with suppress(InvalidStateError):
                self._broke.set_exception(broke)
            for future in list(self._images.values()):  # who comes later looks first whether it is broken
                with suppress(InvalidStateError):
                    future.set_exception(broke)

        with ExitStack() as stack:
            run = stack.enter_context(_assembled(config, self._hear, factory, fail, ready.set_result, roots))
            stack.callback(run.threads.join, STOP_PATIENCE)
            self._jobs = stack.enter_context(run.pipeline.jobs)
            self._rejections = stack.enter_context(run.pipeline.exit_stage())
            run.pipeline.start()
            run.pipeline.let_run()
            self.device = ready.result().device
            self._stack = stack.pop_all()

    def process(self, what: Job | Rejection, patience: float) -> tuple[str, Mapping[str, Any]]:
        """The event that ends an image, one of ENDS, with its keys.

        Raises ImageStuck when it has not ended after `patience` seconds, and what broke the pipeline.
        """
        job = what.job if isinstance(what, Rejection) else what
        future = self._images[job.job_id] = Future()
        try:
            if self._broke.done():
                self._broke.result()
            if isinstance(what, Rejection):
                self._rejections.send(what)
            else:
                self._jobs.send(what)
            return future.result(patience)
        except TimeoutError:
            raise ImageStuck(printable(f"{job.relative_path}: it has not ended after {patience:g} s")) from None
        except NoReceivers:
            self._broke.result(patience)  # the thread that broke says so a moment later
            raise
        finally:
            self._images.pop(job.job_id, None)

    def close(self) -> None:
        """When no thread waits for an image any more."""
        self._stack.close()

    def _hear(self, event: str, /, **keys: Any) -> None:
        future = self._images.get(keys["job"]) if event in ENDS else None
        if future is None:
            self._emit(event, **keys)
        else:
            with suppress(InvalidStateError):  # the pipeline broke a moment before
                future.set_result((event, keys))
