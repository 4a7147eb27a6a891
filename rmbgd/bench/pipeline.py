"""Measures files through the whole pipeline, as fast as it takes them: decode, engine, encode, publish.

What the intake adds (settling, claims by rename) is not part of it. Files are written just before they are claimed and
removed after their event, so that a long run needs no space.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rmbgd.bench.samples import Sample, Spread, Waits, bottleneck, busy, spread, versions
from rmbgd.config.load import Config, Folder, Recipe
from rmbgd.engine.devices import Devices, EngineContext, EngineFactory
from rmbgd.errors import EngineLost
from rmbgd.pipeline.pipeline import Pipeline
from rmbgd.pipeline.queue import NoReceivers, QueueStatistics
from rmbgd.service.oneshot import run_pipeline
from rmbgd.store.records import Job

WARM_UP = 8  # images that come out before the clock starts, at most: caches, first pages, the device's clocks


@dataclass(frozen=True, slots=True)
class Throughput:
    """A run of the pipeline. `busy` and `bound` as in samples; `total` is from claim to publication, ms, queues too.

    milliseconds  mean per image and stage, as image.done reports them
    """

    images: int
    seconds: float
    total: Spread
    milliseconds: dict[str, float]
    busy: dict[str, float]
    bound: str
    batch: float

    @property
    def per_second(self) -> float:
        return self.images / self.seconds


def pipeline_config(base: Path, recipe: Recipe, config: Config) -> Config:
    """`config` with one folder, below `base`, whose originals stay. Makes the directories."""
    for name in ("in", "out", "failed"):
        (base / name).mkdir()
    folder = Folder(
        name="bench",
        input=base / "in",
        output=base / "out",
        failed=base / "failed",
        originals="keep",
        recipe="default",
    )
    tables = {name: getattr(config, name) for name in Config.model_fields if name not in ("recipe", "folder")}
    return Config(**tables, recipe={"default": recipe}, folder=[folder])


def run(
    config: Config,
    images: Sequence[Sample],
    factory: EngineFactory,
    *,
    seconds: float,
    most: int,
    warm_up: int = WARM_UP,
) -> Throughput:
    """About `seconds` of it, or `most` images, after `warm_up` images (at least one) that do not count.

    Raises what broke, and EngineLost when images did not come out.
    """
    watch = _Watch(config, seconds, most, max(1, warm_up))

    def feed(pipeline: Pipeline, claim: Callable[[Path, str], list[Job]]) -> None:
        watch.pipeline = pipeline
        root = config.folder[0].input
        with pipeline.jobs as jobs:
            for name, data in versions(images):
                if watch.enough.is_set():  # the last ones are still in the pipeline: it was full to the end
                    return
                (root / name).write_bytes(data)
                try:
                    for job in claim(root, name):
                        jobs.send(job)
                except NoReceivers:  # the pipeline broke, and says so itself
                    return

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
        self._done = 0
        self._began = self._ended = 0.0
        self._before: Waits | None = None
        self._after: Waits | None = None
        self._totals: list[float] = []
        self._stages: dict[str, float] = {}
        self._batches = 0
        self._refused = ""

    def __call__(self, event: str, /, **keys: object) -> None:
        if event in ("image.failed", "image.postponed", "engine.fault"):  # a device that fails ends the measurement
            with self._lock:
                if not self.enough.is_set():
                    self._refused = f"{keys.get('path', keys.get('device'))}: {keys['detail']}"
            self._end()
        elif event == "image.done":
            folder = self._config.folder[0]
            for path in (folder.output / str(keys["output"]), folder.input / str(keys["path"])):
                with suppress(FileNotFoundError):
                    path.unlink()
            milliseconds, batch = keys["milliseconds"], keys["batch"]
            assert isinstance(milliseconds, dict)
            assert isinstance(batch, int)
            self._note(milliseconds, batch)

    def _note(self, milliseconds: dict[str, float], batch: int) -> None:
        now, waits = time.monotonic(), waits_of(self.pipeline.statistics())
        with self._lock:
            self._done += 1
            if self._done <= self._warm_up:
                self._began, self._before = now, waits
                return
            if self.enough.is_set():
                return
            self._ended, self._after = now, waits
            self._totals.append(milliseconds["total"])
            self._batches += batch
            for stage, value in milliseconds.items():
                self._stages[stage] = self._stages.get(stage, 0.0) + value
            ended = len(self._totals) >= self._most or now - self._began >= self._seconds
        if ended:
            self._end()

    def _end(self) -> None:
        self.enough.set()
        self.give_up()

    def result(self) -> Throughput:
        if self._refused or self._before is None or self._after is None:
            raise EngineLost(f"the pipeline did not finish its images: {self._refused or 'none came out'}")
        count, seconds, pipeline = len(self._totals), self._ended - self._began, self._config.pipeline
        means = {stage: value / count for stage, value in self._stages.items()}
        shares = busy(
            self._before,
            self._after,
            seconds,
            decoders=pipeline.decode_threads,
            finishers=pipeline.finish_threads,
        )
        return Throughput(
            images=count,
            seconds=seconds,
            total=spread(self._totals),
            milliseconds=means,
            busy=shares,
            bound=bottleneck(shares, means),
            batch=self._batches / count,
        )


def waits_of(channels: Sequence[QueueStatistics]) -> Waits:
    """The pipeline's queues, by name, as samples.busy wants them."""
    named = {each.name: each for each in channels}
    return Waits(
        jobs_empty=named["jobs"].receive_waited,
        frames_full=named["frames"].send_waited,
        frames_empty=named["frames"].receive_waited,
        arrivals_full=named["arrivals"].send_waited,
        arrivals_empty=named["arrivals"].receive_waited,
    )
