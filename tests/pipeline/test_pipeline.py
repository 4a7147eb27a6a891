"""The three stages wired together, with an engine that is an exact function of the pixels, and real files."""

import errno
import io
import os
import pkgutil
import threading

import numpy as np
import pytest
from PIL import Image

from rmbgd.clock import SystemClock
from rmbgd.config.load import parse
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.supervisor import DeviceViews
from rmbgd.engine.types import MatteReport
from rmbgd.engine.wiring import cpu_supervisor
from rmbgd.errors import StorageFault
from rmbgd.events import RecordedEvents
from rmbgd.fs import FileVersion
from rmbgd.heartbeat import NullHeartbeat
from rmbgd.pipeline.finish import verdict_of
from rmbgd.pipeline.pipeline import Pipeline, PipelineContext
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.service.threads import ThreadGroup
from rmbgd.store.ledger import Ledger
from rmbgd.store.records import Candidate
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import InProcessWorker, in_process

pytestmark = pytest.mark.timeout(60)


class RecordedIntake:
    def __init__(self):
        self.returned = []

    def give_back(self, job, why, detail):
        self.returned.append((job.relative_path, why))

    def ended(self, job):
        """Nothing else waits for it."""


class Works:
    """A line with everything around it, fed by hand with files that stay in place."""

    def __init__(self, base, engine=None, devices=None, folder=None, **recipe):
        self.input = base / "input"
        self.output = base / "output"
        for name in ("input", "output", "failed"):
            (base / name).mkdir()
        roots = {n: str(base / n) for n in ("input", "output", "failed")}
        folder = {"name": "shop", "originals": "keep"} | roots | (folder or {})
        self.config = parse(
            {
                "folder": [folder],
                "recipe": {"default": {"model": "fake"} | recipe},
                "pipeline": {"arena_bytes": 32 << 20},
                "limits": {"pixels": 1_000_000},
            }
        )
        clock = SystemClock()
        self.events, self.intake, self.broken = RecordedEvents(), RecordedIntake(), []
        self.ledger = Ledger(":memory:", clock)
        self.arena = Arena(self.config.pipeline.arena_bytes)
        self.made = []
        self.engine_ready, self.tick = threading.Event(), threading.Event()
        options = {"models": ("fake",)} | (engine or {})
        self.engine = EngineContext(self.config, self.arena, self.events, clock)
        self.crew = ThreadGroup(self.broken.append)
        self.hold = StorageRetry(self.intake, self.events, clock)
        self.clock = clock
        around = PipelineContext(
            engine=self.engine,
            build_devices=devices or in_process(lambda context: self.backend(context, **options)),
            ledger=self.ledger,
            publisher=Publisher(self.config, self.ledger, clock, self.events),
            storage_retry=self.hold,
            source=self.intake,
            new_heartbeat=lambda _name: NullHeartbeat(),
            start_thread=self.crew.start,
            on_ready=lambda _description: self.engine_ready.set(),
            on_room=lambda: None,
        )
        self.line = Pipeline(around)

    def backend(self, context, **options):
        self.made.append(FakeBackend(context.arena.block, **options))
        return self.made[-1]

    def claim(self, *names, final=False):
        candidates = []
        for name in names:
            found = os.stat(self.input / name)
            version = FileVersion(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            candidates.append(Candidate("shop", name, str(self.input), version, 0.0, by_rename=False, final=final))
        return self.ledger.claim(candidates)

    def run(self, *names, final=False):
        """Everything through the line, to its end."""
        return self.work(self.claim(*names, final=final))

    def work(self, jobs):
        self.line.start()
        with self.line.jobs as sender:
            for job in jobs:
                sender.send(job)
        self.line.let_run()
        assert [] == self.crew.join(30)
        assert [] == [each.traceback() for each in self.broken]
        return self

    def close(self):
        self.ledger.close()
        self.arena.close()

    def opened(self, name):
        with Image.open(self.output / name) as image:
            image.load()
            return image


@pytest.fixture
def works(tmp_path):
    made = []

    def make(**options):
        made.append(Works(tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pixels(seed=0, height=40, width=60):
    array = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)
    array[: height // 2, :, 1] = 255
    return array


def save(works, name, array, **options):
    Image.fromarray(array).save(works.input / name, **options)


def test_the_published_pixels_are_exact(works):
    """Alpha is what the engine answered, colours are the photo's; one event names device, model and every stage."""
    it = works(edge_colours="keep", hidden_colours="keep")
    array = pixels()
    save(it, "a.png", array)
    it.run("a.png")

    result = np.asarray(it.opened("a.png"))
    assert np.array_equal(array[..., 1], result[..., 3])
    assert np.array_equal(array, result[..., :3])
    [done] = it.events.named("image.done")
    assert ("fake", "fake", "ok") == (done["device"], done["model"], done["verdict"])
    assert {"wait", "decode", "queue", "engine", "encode", "sync", "total"} == done["milliseconds"].keys()


def test_equal_images_are_computed_once(works):
    """The same bytes under three names: three outputs, one computation."""
    it = works()
    for name in ("a.png", "b.png", "c.png"):
        save(it, name, pixels())
    it.run("a.png", "b.png", "c.png")

    assert 1 == sum(len(batch) for batch in it.made[-1].batches)
    assert {"a.png", "b.png", "c.png"} == {path.name for path in it.output.iterdir() if path.suffix == ".png"}
    assert [False, True, True] == sorted(event["reused"] for event in it.events.named("image.done"))


def test_an_image_without_subject_is_empty_not_garbage(works):
    """Faint alpha everywhere gives the verdict, a sidecar that says so, and a fully transparent image."""
    it = works()
    faint = pixels()
    faint[..., 1] = np.random.default_rng(1).integers(0, 100, faint.shape[:2])
    save(it, "a.png", faint)
    it.run("a.png")

    assert "empty" == it.events.named("image.done")[0]["verdict"]
    assert not np.asarray(it.opened("a.png"))[..., 3].any()
    assert (it.output / "a.png.json").exists()


def test_an_image_without_subject_can_be_refused(works):
    """on_empty = "refuse" sets it aside with its reason."""
    it = works(on_empty="refuse")
    dark = pixels()
    dark[..., 1] = 3
    save(it, "a.png", dark)
    it.run("a.png")

    assert ["no_subject"] == [event["reason"] for event in it.events.named("image.failed")]


def test_a_bad_image_does_not_hold_up_the_others(works):
    """Text named .png is refused with a reason; its neighbours come out, and all memory is given back."""
    it = works()
    (it.input / "bad.png").write_bytes(b"<?php echo 1; ?>")
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        save(it, name, pixels(number % 5))
    it.run(*names, "bad.png")

    assert ["unidentified"] == [event["reason"] for event in it.events.named("image.failed")]
    assert 12 == len(it.events.named("image.done"))
    assert 0 == it.arena.statistics().leased_bytes


@pytest.mark.parametrize("final", [False, True])
def test_a_half_file_goes_back_until_waiting_is_over(works, final):
    """Damage that more bytes could mend is put back; `final` turns waiting into a refusal."""
    it = works()
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 200, 200)).save(buffer, "PNG")
    (it.input / "half.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    it.run("half.png", final=final)

    assert it.intake.returned == ([] if final else [("half.png", "incomplete")])
    assert [event["reason"] for event in it.events.named("image.failed")] == (["truncated"] if final else [])


def test_a_replaced_input_is_not_answered_with_the_old_result(works):
    """Another version stands at the path by now: nothing is published, the job goes back."""
    it = works()
    save(it, "a.png", pixels(1))
    jobs = it.claim("a.png")
    save(it, "new.png", pixels(2))
    os.replace(it.input / "new.png", it.input / "a.png")
    it.work(jobs)

    assert [("a.png", "changed")] == it.intake.returned
    assert [] == [path.name for path in it.output.iterdir()]


def test_a_ledger_that_cannot_be_asked_sends_the_image_back(works, monkeypatch):
    """The disk under the ledger is at fault: the image waits in its folder, and the service goes on."""
    it = works()
    save(it, "a.png", pixels())

    def refuse(*_):
        raise StorageFault("io_error", "disk I/O error")

    monkeypatch.setattr(it.ledger, "same_content", refuse)
    it.run("a.png")

    assert [("a.png", "storage")] == it.intake.returned


@pytest.mark.parametrize(
    ("number", "tries", "returned", "refused"),
    [
        (errno.EIO, 3, [], ["io_error"]),  # a bad sector stays bad, a passing fault of the link does not
        (errno.ESTALE, 1, [("a.png", "vanished")], []),
        (errno.EACCES, 1, [("a.png", "storage")], []),
    ],
)
def test_what_cannot_be_read_is_refused_only_for_bad_sectors(works, monkeypatch, number, tries, returned, refused):
    """Whatever else the system says is the machine's fault: the image waits in its folder."""
    it, asked = works(), []

    def fail(*_):
        asked.append(number)
        raise OSError(number, os.strerror(number))

    save(it, "a.png", pixels())
    monkeypatch.setattr("rmbgd.pipeline.decode.read_limited", fail)
    it.run("a.png")

    assert (tries, returned) == (len(asked), it.intake.returned)
    assert refused == [event["reason"] for event in it.events.named("image.failed")]


@pytest.mark.parametrize(
    "where",
    ["rmbgd.pipeline.decode.read_limited", "rmbgd.pipeline.decode.decode_into", "rmbgd.pipeline.finish.encode"],
)
def test_shortage_of_memory_is_not_the_images_fault(works, monkeypatch, where):
    """Reading, decoding or encoding gets none: the image and its twin wait in their folder, the others are served."""
    it = works()
    for name in ("a.png", "twin.png"):
        save(it, name, pixels())
    save(it, "other.png", pixels(7))
    other = (it.input / "other.png").read_bytes()
    real, asked = pkgutil.resolve_name(where), []

    def short(first, *more, **named):
        asked.append(first)
        if len(asked) <= 2:
            raise MemoryError
        return real(first, *more, **named)

    monkeypatch.setattr(where, short)
    it.run("a.png", "twin.png", "other.png")

    assert {"memory"} == {why for _, why in it.intake.returned}
    assert [] == it.events.named("image.failed")
    assert 3 == len(it.intake.returned) + len(it.events.named("image.done"))
    assert 0 == it.arena.statistics().leased_bytes
    assert other == (it.input / "other.png").read_bytes()
    assert [] == [name for name in os.listdir(it.output) if name.startswith(".")]


def test_recipes_ask_for_masks_and_colours(works, tmp_path):
    """content = mask gives the alpha alone, with 16 bits when asked."""
    it = works(content="mask", mask_bits=16)
    array = pixels()
    save(it, "a.png", array)
    it.run("a.png")
    assert np.array_equal(array[..., 1].astype(np.uint16) * 257, np.asarray(it.opened("a.png")))


def test_an_engine_that_never_starts_lets_everything_go_back(works):
    """When the start fails for good, the jobs return to their folders and every thread ends."""
    it = works(engine={"start": "model"})
    save(it, "a.png", pixels())
    jobs = it.claim("a.png")
    it.line.start()
    drained = threading.Thread(target=it.line.take_back)
    with it.line.jobs as sender:
        for job in jobs:
            sender.send(job)
    drained.start()
    assert [] == it.crew.join(30)
    drained.join(10)

    assert ["infer"] == [each.stage for each in it.broken]
    assert [("a.png", "stopping")] == it.intake.returned


class TwoDevices:
    """Two workers without processes; which of the devices is usable is told by the test."""

    def __init__(self, **options):
        self.usable = [True, True]
        self.backends = []
        self.options = options

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


def twelve(it):
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        save(it, name, pixels(number))
    return names


def test_every_device_has_a_thread_and_takes_from_the_one_queue(works):
    """Each is closed at the end; together they compute every image once."""
    devices = TwoDevices(script=["delay:0.05"] * 20)
    it = works(devices=devices)
    it.run(*twelve(it))

    batches = [batch for backend in devices.backends for batch in backend.batches]
    assert 12 == sum(len(batch) for batch in batches)
    assert 12 == len(it.events.named("image.done"))
    assert [True, True] == [backend.closed for backend in devices.backends]


def test_a_device_that_is_away_leaves_every_image_to_the_other(works):
    """Its thread takes none, and ends with the other's."""
    devices = TwoDevices()
    devices.usable[0] = False
    it = works(devices=devices)
    it.run(*twelve(it))
    assert {"cuda:1"} == {event["device"] for event in it.events.named("image.done")}


def test_batching_is_an_event_before_the_first_image(works):
    """Of the device that was ready first, once; an idle service has said how it will batch."""
    it = works(devices=TwoDevices())
    it.line.start()
    it.engine_ready.wait(30)
    emitted = it.events.named("engine.batching")
    it.line.jobs.close()
    it.line.let_run()

    assert [] == it.crew.join(30)
    assert emitted
    assert len(emitted) == len(it.events.named("engine.batching"))


def test_a_device_that_comes_back_takes_what_waits(works):
    """None is usable; then one is, and the thread that waits takes the image."""
    devices = TwoDevices()
    it = works(devices=devices)
    save(it, "a.png", pixels())
    it.line.start()
    it.engine_ready.wait(30)
    devices.set(False, False)
    with it.line.jobs as sender:
        sender.send(it.claim("a.png")[0])
    it.line.let_run()
    while it.line.statistics()[1].total == 0:
        it.tick.wait(0.01)
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
    """Empty without a subject, full without a background, by absolute values."""
    matte = MatteReport(image_id=1, coverage=coverage, peak=peak, solid=solid, soft=0.0)
    assert verdict == verdict_of(matte, empty_below=empty_below)
