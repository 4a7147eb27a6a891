"""Frames of a film through the queue of images: mattes back in order, memory given back on every way out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from rmbgd.clock import SystemClock
from rmbgd.config.load import Config, PipelineSettings
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import EngineContext
from rmbgd.engine.types import Answer, MatteReport, view
from rmbgd.errors import ImageError, Reason, StorageFault
from rmbgd.film.forms import FilmHeader
from rmbgd.film.process import FilmStopped
from rmbgd.fs import FileVersion
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline import films
from rmbgd.pipeline.films import FilmProgress, FilmStage, _DiskTrouble
from rmbgd.pipeline.items import Cutout, Frame, Rejection
from rmbgd.pipeline.queue import Receiver, Sender, queue
from rmbgd.sequence.turns import OrderGate
from rmbgd.store.records import Job

JOB = Job(7, "films", "a.mp4", "/in/a.mp4", FileVersion(1, 2, 3, 4), 1, 0.0, 0.0, True)
WIDTH, HEIGHT, ARENA_BYTES = 320, 240, 16 << 20
HEADER = FilmHeader("mov", "h264", "yuv420p", WIDTH, HEIGHT, 0, 0, 0.0, 25.0, 1, 0, False)


@dataclass
class Process:
    """A film's process that has `count` frames; green of each is its number."""

    count: int
    given: list[tuple[int, int]] = field(default_factory=list)
    number: int = 0
    on_next: Callable[[int], None] = lambda _number: None

    def next(self) -> tuple[int, float] | None:
        self.on_next(self.number)
        if self.number == self.count:
            return None
        self.number += 1
        return self.number - 1, (self.number - 1) / 25

    def take(self, rgb: np.ndarray, alpha: np.ndarray | None) -> None:
        assert alpha is None
        rgb[...] = (self.number - 1) % 251

    def give(self, number: int, alpha: np.ndarray) -> None:
        assert alpha.min() == alpha.max()
        self.given.append((number, int(alpha[0, 0])))


def answered(frame: Frame) -> Cutout:
    slot = view(frame.lease.block, frame.region)
    assert slot.alpha is not None
    slot.alpha[...] = slot.rgb[:, :, 1]
    answer = Answer(MatteReport(frame.job.job_id, 0.5, 1.0, 0.5, 0.1), "cpu", "u2netp")
    return Cutout(frame.job, frame.region, frame.lease, frame.facts, frame.timing, answer)


@contextmanager
def staged(device: Callable[[Receiver[Frame]], None]) -> Iterator[tuple[FilmStage, Arena, EngineContext]]:
    """A film stage, and a thread that does what devices do."""
    config = Config(pipeline=PipelineSettings(arena_bytes=512 << 20, batch_maximum=2))
    config = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"arena_bytes": ARENA_BYTES})})
    frames: Sender[Frame]
    received: Receiver[Frame]
    frames, received = queue(4, "frames")
    with Arena(ARENA_BYTES) as arena:
        context = EngineContext(config, arena, Mock(), SystemClock())
        stage: Any = FilmStage(context, {}, {}, Mock(), Mock(), frames, NullHeartbeat(), OrderGate())
        stage.progress = FilmProgress(JOB, HEADER, 0.0)
        thread = threading.Thread(target=device, args=(received,))
        thread.start()
        try:
            yield stage, arena, context
            assert arena.statistics().leased_bytes == 0
        finally:
            frames.close()
            thread.join()
            received.close()


def in_pairs_backwards(received: Receiver[Frame]) -> None:
    held: list[Frame] = []
    for frame in received:
        held.append(frame)
        if len(held) == 2:
            for each in reversed(held):
                assert each.answers is not None
                each.answers.send(answered(each))
            held.clear()
    for each in held:
        assert each.answers is not None
        each.answers.send(answered(each))


def one_by_one(received: Receiver[Frame]) -> None:
    for frame in received:
        assert frame.answers is not None
        frame.answers.send(answered(frame))


def test_mattes_go_back_in_order_whatever_order_devices_have() -> None:
    process = Process(40)
    with staged(in_pairs_backwards) as (stage, _, _):
        seen = stage._feed(JOB, process, HEADER)
    assert process.given == [(number, number) for number in range(40)]
    assert (seen.frames, seen.device, seen.peak) == (40, "cpu", 1.0)


def test_who_waits_for_memory_gets_it_in_the_middle_of_a_film(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in one piece, which is never free while a film has its own."""
    monkeypatch.setattr(films, "YIELD_AFTER", 0.0)
    process, got_at = Process(300), list[int]()
    with staged(one_by_one) as (stage, arena, _):

        def take_all() -> None:
            with arena.lease(ARENA_BYTES):
                got_at.append(process.number)

        other = threading.Thread(target=take_all)
        process.on_next = lambda number: other.start() if number == 20 else None
        stage._feed(JOB, process, HEADER)
        other.join()
    assert [number for number, _ in process.given] == list(range(300))
    assert 20 <= got_at[0] < 300


def test_a_stop_ends_a_film_and_its_memory_comes_back() -> None:
    process = Process(1000)
    with staged(one_by_one) as (stage, _, context):
        process.on_next = lambda number: context.stopping.set() if number == 10 else None
        with pytest.raises(FilmStopped):
            stage._feed(JOB, process, HEADER)
    assert len(process.given) <= 11


def test_a_frame_that_is_rejected_is_the_films_fault_and_is_named() -> None:
    def device(received: Receiver[Frame]) -> None:
        for count, frame in enumerate(received):
            assert frame.answers is not None
            if count == 5:
                refused = Rejection(frame.job, Reason.POISON, "it fails", "engine", frame.timing, None, frame.lease)
                frame.answers.send(refused)
            else:
                frame.answers.send(answered(frame))

    with staged(device) as (stage, _, _), pytest.raises(ImageError, match=r"frame 5: it fails") as caught:
        stage._feed(JOB, Process(30), HEADER)
    assert caught.value.reason is Reason.POISON


def test_a_process_that_dies_between_two_frames_leaves_nothing_leased() -> None:
    def die(number: int) -> None:
        if number == 7:
            raise ImageError(Reason.CORRUPT, "damaged")

    with staged(one_by_one) as (stage, _, _), pytest.raises(ImageError, match="damaged"):
        stage._feed(JOB, Process(30, on_next=die), HEADER)


def test_a_disk_that_ended_a_film_is_tried_again_when_there_is_room_or_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble, free = _DiskTrouble(), [500]
    monkeypatch.setattr(films, "free_bytes", lambda _root: free[0])
    trouble.check(str(tmp_path), 0.0)
    progress = FilmProgress(JOB, replace(HEADER, frames=100), 10.0, 25)
    trouble.learn(StorageFault("disk_full", "ENOSPC"), 250, progress, 40.0)
    with pytest.raises(StorageFault, match="some 1000 bytes") as caught:
        trouble.check(str(tmp_path), 41.0)
    assert caught.value.kind == "disk_full"
    free[0] = 1000
    trouble.check(str(tmp_path), 41.0)
    free[0] = 500
    trouble.check(str(tmp_path), 71.0)  # as long as the try had taken
    trouble.learn(StorageFault("io_error", "EIO"), 250, progress, 100.0)
    with pytest.raises(StorageFault) as caught:
        trouble.check(str(tmp_path), 101.0)
    assert caught.value.kind == "io_error"
