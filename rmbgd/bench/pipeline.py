"""Measures files through the whole pipeline, as fast as it takes them: decode, engine, encode, publish.

What the intake adds (settling, claims by rename) is not part of it. Files are written just before they are claimed and
removed after their event, so that a long run needs no space.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.bench.samples import Sample, Spread, bottleneck, busy, means, spread, versions, waited
from rmbgd.config.load import Config, Folder, Recipe
from rmbgd.engine.devices import Devices, EngineContext, EngineFactory
from rmbgd.errors import EngineLost
from rmbgd.pipeline.pipeline import Pipeline
from rmbgd.pipeline.queue import NoReceivers
from rmbgd.service.open_pipeline import run_pipeline
from rmbgd.store.records import Job

IMAGES_MAXIMUM = 100_000
WARM_UP = 8  # images that come out before the clock starts, at most: caches, first pages, the device's clocks


@dataclass(frozen=True, slots=True)
class Throughput:
    """A run of the pipeline. `busy` and `bound` as in samples."""

    images: int
    seconds: float
    total: Spread  # from claim to publication, ms, queues too
    milliseconds: dict[str, float]  # means per image and stage, as image.done reports them
    busy: dict[str, float]
    bound: str
    batch: float

    @property
    def per_second(self) -> float:
        return self.images / self.seconds


def pipeline_config(base: Path, recipe: Recipe, config: Config) -> Config:
    """`config` with one folder, below `base`, whose originals stay. Makes the directories."""
    folder = Folder(name="bench", input=base / "in", output=base / "out", failed=base / "failed", originals="keep")
    for path in (folder.input, folder.output, folder.failed):
        path.mkdir()
    return config.model_copy(update={"recipe": {folder.recipe: recipe}, "folder": [folder]})


def run(
    config: Config,
    images: Sequence[Sample],
    factory: EngineFactory,
    *,
    seconds: float,
    most: int = IMAGES_MAXIMUM,
    warm_up: int,
) -> Throughput:
    """About `seconds` of it, or `most` images, after `warm_up` images (at least one) that do not count.

    Raises what broke, and EngineLost when images did not come out.
    """
    watch = _Watch(config, seconds, most, max(1, warm_up))

    def feed(pipeline: Pipeline, claim: Callable[[Path, str], list[Job]]) -> None:
        watch.pipeline = pipeline
        root = config.folder[0].input
        with suppress(NoReceivers), pipeline.jobs as jobs:  # the pipeline that broke says so itself
            for name, data in versions(images):
                if watch.enough.is_set():  # the last ones are still in the pipeline: it was full to the end
                    return
                (root / name).write_bytes(data)
                for job in claim(root, name):
                    jobs.send(job)

    def made(context: EngineContext) -> Devices:
        watch.give_up = context.abort
        return factory(context)

    run_pipeline(config, watch, made, feed)
    return watch.result()


class _Watch:
    """An Emit. Called by the finish threads; all is guarded by the lock but `pipeline` and `give_up`, set before.

    When it has seen enough it takes the engine away: what is still in the pipeline is put back at once, without waiting
    for a slow device to work off full queues.
    """

    def __init__(self, config: Config, seconds: float, most: int, warm_up: int) -> None:
        self.pipeline: Pipeline
        self.give_up: Callable[[], None]
        self.enough = threading.Event()
        self._config, self._seconds, self._most, self._warm_up = config, seconds, most, warm_up
        self._lock = threading.Lock()
        self._events: list[Mapping[str, Any]] = []  # image.done, the warm-up included
        self._began = self._ended = 0.0
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._refused = ""

    def __call__(self, event: str, /, **keys: Any) -> None:
        if event in ("image.failed", "image.postponed", "engine.fault"):  # a device that fails ends the measurement
            with self._lock:
                if not self.enough.is_set():
                    self._refused = f"{keys.get('path', keys.get('device'))}: {keys['detail']}"
            self._end()
        elif event == "image.done":
            folder = self._config.folder[0]
            for path in (folder.output / keys["output"], folder.input / keys["path"]):
                path.unlink(missing_ok=True)
            self._note(keys)

    def _note(self, keys: dict[str, Any]) -> None:
        now, queues = time.monotonic(), self.pipeline.statistics()
        waits = waited({q.name: q.receive_waited for q in queues}, {q.name: q.send_waited for q in queues})
        with self._lock:
            if self.enough.is_set():
                return
            self._events.append(keys)
            counted = len(self._events) - self._warm_up
            if counted <= 0:
                self._began, self._before = now, waits
                return
            self._ended, self._after = now, waits
            ended = counted >= self._most or now - self._began >= self._seconds
        if ended:
            self._end()

    def _end(self) -> None:
        self.enough.set()
        self.give_up()

    def result(self) -> Throughput:
        if self._refused or not self._after:
            raise EngineLost(f"the pipeline did not finish its images: {self._refused or 'none came out'}")
        events, seconds, pipeline = self._events[self._warm_up :], self._ended - self._began, self._config.pipeline
        milliseconds = means([each["milliseconds"] for each in events])
        totals, batch = [each["milliseconds"]["total"] for each in events], sum(each["batch"] for each in events)
        threads = {"decode": pipeline.decode_threads, "finish": pipeline.finish_threads}
        shares = busy(self._before, self._after, seconds, threads)
        bound = bottleneck(shares, milliseconds)
        return Throughput(len(events), seconds, spread(totals), milliseconds, shares, bound, batch / len(events))
