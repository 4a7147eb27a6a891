"""Files through the whole pipeline: real files, real stages, an engine whose speed is known."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rmbgd.bench import pipeline
from rmbgd.bench.samples import drawn
from rmbgd.config.load import Config, LimitSettings, PipelineSettings, Recipe
from rmbgd.engine.devices import EngineContext
from rmbgd.errors import EngineLost
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import in_process


def through(base: Path, *, most: int = 20, warm_up: int = 2, script: tuple[str, ...] = ()) -> pipeline.Throughput:
    config = pipeline.pipeline_config(base, Recipe(model="fake"), Config(pipeline=PipelineSettings(batch_maximum=4)))
    devices = in_process(lambda context: FakeBackend(context.arena.block, script, models=("fake",)))
    return pipeline.run(config, drawn(2, 64), devices, seconds=3600.0, most=most, warm_up=warm_up)


def test_every_table_of_the_configuration_counts(tmp_path: Path) -> None:
    """Only the folder and its recipe are the run's own."""
    given = Config(pipeline=PipelineSettings(finish_threads=7), limits=LimitSettings(side=4096))
    found = pipeline.pipeline_config(tmp_path, Recipe(format="tiff"), given)
    own = {"recipe", "folder"}
    assert given.model_dump(exclude=own) == found.model_dump(exclude=own)
    assert "tiff" == found.recipe_of(found.folder[0]).format


def test_as_many_as_asked_for_are_counted(tmp_path: Path) -> None:
    """The first ones are not, and the stages are those of the events."""
    found = through(tmp_path, most=20)
    assert 20 == found.images == found.total.count
    assert {"wait", "decode", "queue", "engine", "encode", "sync", "processor", "total"} == set(found.milliseconds)
    assert {"decode", "engine", "finish"} == set(found.busy)
    assert found.per_second == pytest.approx(20 / found.seconds)


def test_slow_engine_is_named(tmp_path: Path) -> None:
    found = through(tmp_path, most=12, script=("delay:0.05",) * 1000)
    assert "device" == found.bound
    assert found.busy["engine"] > 0.9


def test_run_leaves_few_files_behind(tmp_path: Path) -> None:
    """Cutouts and inputs go as soon as they were counted: a long run must not fill the disk."""
    through(tmp_path, most=60)
    default = PipelineSettings()
    queued = 2 * (default.queue * 2 + default.decode_threads + default.finish_threads + 4)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) <= queued


def test_fault_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineLost, match=r"did not finish its images: fake: the script says"):
        through(tmp_path, script=("ok",) * 3 + ("lost",) * 1000)


def test_what_is_queued_when_it_is_enough_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is taken away by the thread that counts the last image, before the pipeline has run empty."""
    by: list[str] = []
    monkeypatch.setattr(EngineContext, "abort", lambda _context: by.append(threading.current_thread().name))
    through(tmp_path, most=5)
    assert by[0].startswith("finish-")
