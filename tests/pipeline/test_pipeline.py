"""The three stages wired together, with an engine that is an exact function of the pixels, and real files."""

import errno
import io
import os
import pkgutil
import threading
import time
from contextlib import ExitStack, closing
from itertools import chain, repeat
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
from PIL import Image

from rmbgd.clock import SystemClock
from rmbgd.config.load import parse
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.supervisor import DeviceViews
from rmbgd.engine.types import MatteReport, verdict_of
from rmbgd.engine.wiring import cpu_supervisor
from rmbgd.errors import StorageFault
from rmbgd.events import RecordedEvents
from rmbgd.fs import version_of
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline.pipeline import Pipeline, PipelineContext
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.service.threads import ThreadGroup
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Candidate
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import InProcessWorker, in_process

pytestmark = pytest.mark.timeout(60)


def pixels(seed=0, height=40, width=60):
    array = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    array[: height // 2, :, 1] = 255
    return array


class Works:
    """A line with everything around it, fed by hand with files that stay in place."""

    def __init__(self, base, engine=None, devices=None, own_preset=None, **recipe):
        roots = {name: base / name for name in ("input", "output", "failed", "review")}
        for root in roots.values():
            root.mkdir()
        self.input, self.output, self.review = roots["input"], roots["output"], roots["review"]
        folder = {"name": "shop", "originals": "keep"} | {name: str(root) for name, root in roots.items()}
        tables = {"recipe": {"default": {"model": "fake"} | recipe}, "pipeline": {"arena_bytes": 32 << 20}}
        tables |= {"preset": {"square": own_preset}} if own_preset else {}
        self.config = parse({"folder": [folder], "limits": {"pixels": 1_000_000}} | tables)
        clock = SystemClock()
        self.events, self.intake, self.broken = RecordedEvents(), Mock(), []
        self.ledger = Ledger(":memory:", clock)
        self.arena = Arena(self.config.pipeline.arena_bytes)
        self.made, self.engine_ready = [], threading.Event()
        options = {"models": ("fake",)} | (engine or {})
        self.engine = EngineContext(self.config, self.arena, self.events, clock)
        self.crew = ThreadGroup(self.broken.append)
        around = PipelineContext(
            engine=self.engine,
            build_devices=devices or in_process(lambda context: self.backend(context, **options)),
            ledger=self.ledger,
            publisher=Publisher(self.config, self.ledger, clock, self.events),
            storage_retry=StorageRetry(self.intake, self.events, clock),
            source=self.intake,
            new_heartbeat=lambda _name: NullHeartbeat(),
            start_thread=self.crew.start,
            on_ready=lambda _description: self.engine_ready.set(),
            on_room=lambda: None,
        )
        self.line = Pipeline(around)

    @property
    def returned(self):
        """(path, why) of every image that went back."""
        return [(call.args[0].relative_path, call.args[1]) for call in self.intake.give_back.call_args_list]

    @property
    def refused(self):
        return [event["reason"] for event in self.events.named("image.failed")]

    def save(self, name, array):
        Image.fromarray(array).save(self.input / name)

    def backend(self, context, **options):
        self.made.append(FakeBackend(context.arena.block, **options))
        return self.made[-1]

    def claim(self, *names, final=False):
        found = {name: version_of(os.stat(self.input / name)) for name in names}
        root, how = str(self.input), {"by_rename": False, "final": final}
        return self.ledger.claim([Candidate("shop", name, root, each, 0.0, **how) for name, each in found.items()])

    def run(self, final=False, **images):
        """Through the line to its end: what lies in the input, and these images beside it, `a` as a.png."""
        for name, array in images.items():
            self.save(f"{name}.png", array)
        self.work(self.claim(*sorted(os.listdir(self.input)), final=final))

    def work(self, jobs):
        self.line.start()
        with self.line.jobs as sender:
            for job in jobs:
                sender.send(job)
        self.line.let_run()
        assert [] == self.crew.join(30)
        assert [] == [each.traceback() for each in self.broken]

    def close(self):
        self.ledger.close()
        self.arena.close()

    def cutout(self):
        with Image.open(self.output / "a.png") as image:
            return np.asarray(image)


@pytest.fixture
def works(tmp_path):
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(closing(Works(tmp_path, **options)))


def test_the_published_pixels_are_exact(works):
    it, array = works(edge_colours="keep", hidden_colours="keep"), pixels()
    it.run(a=array)
    result = it.cutout()
    assert np.array_equal(array[..., 1], result[..., 3])
    assert np.array_equal(array, result[..., :3])
    [done] = it.events.named("image.done")
    assert ("fake", "fake", "ok") == (done["device"], done["model"], done["verdict"])
    assert {"wait", "decode", "queue", "engine", "encode", "sync", "processor", "total"} == done["milliseconds"].keys()


def test_equal_images_are_computed_once(works):
    it = works()
    it.run(a=pixels(), b=pixels(), c=pixels())
    assert 1 == sum(len(batch) for batch in it.made[-1].batches)
    assert {"a.png", "b.png", "c.png"} == {path.name for path in it.output.iterdir() if path.suffix == ".png"}
    assert [False, True, True] == sorted(event["reused"] for event in it.events.named("image.done"))


def test_an_image_without_subject_is_empty_not_garbage(works):
    it = works()
    faint = pixels()
    faint[..., 1] = np.random.default_rng(1).integers(0, 100, faint.shape[:2])
    it.run(a=faint)
    assert "empty" == it.events.named("image.done")[0]["verdict"]
    assert not it.cutout()[..., 3].any()
    assert (it.output / "a.png.json").exists()


def test_an_image_without_subject_can_be_refused(works):
    it, dark = works(on_empty="refuse"), pixels()
    dark[..., 1] = 3
    it.run(a=dark)
    assert ["no_subject"] == it.refused


def test_a_bad_image_does_not_hold_up_the_others(works):
    it = works()
    (it.input / "bad.png").write_bytes(b"<?php echo 1; ?>")
    it.run(**{f"{number}": pixels(number % 5) for number in range(12)})
    assert ["unidentified"] == it.refused
    assert 12 == len(it.events.named("image.done"))
    assert 0 == it.arena.statistics().leased_bytes


@pytest.mark.parametrize("final", [False, True])
def test_a_half_file_goes_back_until_waiting_is_over(works, final):
    it = works()
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 200, 200)).save(buffer, "PNG")
    (it.input / "half.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    it.run(final=final)
    assert it.returned == ([] if final else [("half.png", "incomplete")])
    assert it.refused == (["truncated"] if final else [])


def test_a_replaced_input_is_not_answered_with_the_old_result(works):
    it = works()
    it.save("a.png", pixels(1))
    jobs = it.claim("a.png")
    it.save("new.png", pixels(2))
    os.replace(it.input / "new.png", it.input / "a.png")
    it.work(jobs)
    assert [("a.png", "changed")] == it.returned
    assert [] == [path.name for path in it.output.iterdir()]


def test_a_ledger_that_cannot_be_asked_sends_the_image_back(works, monkeypatch):
    it = works()
    monkeypatch.setattr(it.ledger, "same_content", Mock(side_effect=StorageFault("io_error", "disk I/O error")))
    it.run(a=pixels())
    assert [("a.png", "storage")] == it.returned


@pytest.mark.parametrize(
    ("number", "tries", "returned", "refused"),
    [
        (errno.EIO, 3, [], ["io_error"]),  # a bad sector stays bad, a passing fault of the link does not
        (errno.ESTALE, 1, [("a.png", "vanished")], []),
        (errno.EACCES, 1, [("a.png", "storage")], []),
    ],
)
def test_what_cannot_be_read_is_refused_only_for_bad_sectors(works, monkeypatch, number, tries, returned, refused):
    it, read = works(), Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr("rmbgd.pipeline.decode.read_limited", read)
    it.run(a=pixels())
    assert (tries, returned, refused) == (read.call_count, it.returned, it.refused)


@pytest.mark.parametrize(
    "where",
    ["rmbgd.pipeline.decode.read_limited", "rmbgd.pipeline.decode.decode_into", "rmbgd.deliver.make.encode"],
)
def test_shortage_of_memory_is_not_the_images_fault(works, monkeypatch, where):
    it, twice = works(), chain([MemoryError] * 2, repeat(DEFAULT))
    monkeypatch.setattr(where, Mock(wraps=pkgutil.resolve_name(where), side_effect=twice))
    it.run(a=pixels(), other=pixels(7), twin=pixels())
    assert ({"memory"}, []) == ({why for _, why in it.returned}, it.refused)
    assert 3 == len(it.returned) + len(it.events.named("image.done"))
    assert 0 == it.arena.statistics().leased_bytes
    assert [] == [name for name in os.listdir(it.output) if name.startswith(".")]


def test_recipes_ask_for_masks_and_colours(works, tmp_path):
    it, array = works(content="mask", mask_bits=16), pixels()
    it.run(a=array)
    assert np.array_equal(array[..., 1].astype(np.uint16) * 257, it.cutout())


def test_an_engine_that_never_starts_lets_everything_go_back(works):
    it = works(engine={"start": "model"})
    it.save("a.png", pixels())
    it.line.start()
    drained = threading.Thread(target=it.line.take_back)
    with it.line.jobs as sender:
        sender.send(it.claim("a.png")[0])
    drained.start()
    assert [] == it.crew.join(30)
    drained.join(10)
    assert ["infer"] == [each.stage for each in it.broken]
    assert [("a.png", "stopping")] == it.returned


class TwoDevices:
    """Two workers without processes; which of the devices is usable is told by the test."""

    def __init__(self, **options):
        self.usable, self.backends, self.options = [True, True], [], options

    def __call__(self, context: EngineContext) -> Devices:
        self.views = DeviceViews()
        self.supervisors = [self.supervisor(context, number) for number in range(2)]
        return Devices(self.supervisors, self.views, [])

    def supervisor(self, context, number):
        def make():
            def backend():
                self.backends.append(FakeBackend(context.arena.block, device=f"cuda:{number}", **self.options))
                return self.backends[-1]

            return context.add(InProcessWorker(backend))

        supervisor = cpu_supervisor(context, self.views, make)
        well = supervisor._usable
        supervisor._usable = lambda: self.usable[number] and well()
        return supervisor

    def set(self, *usable):
        self.usable[:] = usable
        for supervisor in self.supervisors:
            supervisor.publish()


def test_every_device_has_a_thread_and_takes_from_the_one_queue(works):
    devices = TwoDevices(script=["delay:0.05"] * 20)
    it = works(devices=devices)
    it.run(**{f"{number}": pixels(number) for number in range(12)})
    assert 12 == sum(len(batch) for backend in devices.backends for batch in backend.batches)
    assert 12 == len(it.events.named("image.done"))
    assert [True, True] == [backend.closed for backend in devices.backends]


def test_batching_is_an_event_before_the_first_image(works):
    it = works(devices=TwoDevices())
    it.line.start()
    it.engine_ready.wait(30)
    emitted = it.events.named("engine.batching")
    it.line.jobs.close()
    it.line.let_run()
    assert [] == it.crew.join(30)
    assert 1 <= len(emitted) == len(it.events.named("engine.batching"))


def test_a_device_that_comes_back_takes_what_waits(works):
    devices = TwoDevices()
    it = works(devices=devices)
    it.save("a.png", pixels())
    it.line.start()
    it.engine_ready.wait(30)
    devices.set(False, False)
    with it.line.jobs as sender:
        sender.send(it.claim("a.png")[0])
    it.line.let_run()
    while it.line.statistics()[1].total == 0:
        time.sleep(0.01)
    devices.set(False, True)
    assert [] == it.crew.join(30)
    assert ["cuda:1"] == [event["device"] for event in it.events.named("image.done")]


@pytest.mark.parametrize(
    ("verdict", "coverage", "peak", "solid", "empty_below"),
    [
        pytest.param("empty", 0.3, 0.49, 0.0, 0.0, id="faint everywhere: nowhere reaches one half"),
        pytest.param("empty", 0.0001, 0.99, 0.0004, 0.0005, id="fewer solid pixels than the recipe's share"),
        pytest.param("ok", 0.01, 0.99, 0.0005, 0.0005, id="exactly the recipe's share is enough"),
        pytest.param("full", 0.9999, 1.0, 1.0, 0.0005, id="everything solid: nothing was removed"),
        pytest.param("ok", 0.97, 1.0, 0.97, 0.0005, id="a soft edge round a large subject"),
    ],
)
def test_what_a_matte_says(verdict: str, coverage: float, peak: float, solid: float, empty_below: float) -> None:
    matte = MatteReport(image_id=1, coverage=coverage, peak=peak, solid=solid, soft=0.0)
    assert verdict == verdict_of(matte, empty_below=empty_below)
