"""The engine worker with a real child process: it answers, and every way to fail is told truthfully."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rmbgd.engine.arena import Arena
from rmbgd.engine.types import OutputPlane
from rmbgd.engine.worker import ChildProcess, EngineWorker, _abandoned, expected_seconds
from rmbgd.errors import EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.testing.engine import expected_alpha
from tests.engine.processes import PATIENCE, SpyHeartbeat, wait_until_gone

pytestmark = pytest.mark.integration

FAKE = "rmbgd.testing.engine:create"


class Workshop:
    """Makes workers, and keeps what their children wrote."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.lines: list[str] = []
        self.made: list[EngineWorker] = []

    def worker(self, *script: str, factory: str = FAKE, batch_timeout: float = PATIENCE, **settings) -> EngineWorker:
        start_timeout = settings.pop("start_timeout", PATIENCE)
        heartbeat = settings.pop("heartbeat", None)
        start_process = settings.pop("start_process", ChildProcess)
        hang_minimum = settings.pop("hang_minimum", None)
        worker = EngineWorker(
            self.arena,
            factory,
            settings | ({"script": list(script)} if factory == FAKE else {}),
            start_timeout=start_timeout,
            batch_timeout=batch_timeout,
            on_output=self.lines.append,
            hang_minimum=hang_minimum,
            heartbeat=heartbeat,
            start_process=start_process,
        )
        self.made.append(worker)
        return worker


@pytest.fixture
def workshop(images) -> Iterator[Workshop]:
    workshop = Workshop(images.arena)
    yield workshop
    for worker in workshop.made:
        worker.close()


@pytest.mark.parametrize("output", list(OutputPlane))
def test_the_child_fills_the_output_plane_in_shared_memory(images, workshop, output):
    """What the child computes from the pixels in the arena stands in the arena, bit for bit."""
    worker = workshop.worker()
    description = worker.start()
    works = [images.put(7, output=output, source_alpha=True), images.put(8, output=output, height=3, width=100)]
    report = worker.run(works)

    assert description.device == "fake"
    assert description.batch_sizes == (1, 2, 4, 8, 16)
    assert [(a.image_id, a.model, a.batch, a.tries) for a in report.answers] == [(7, "fake", 2, 1), (8, "fake", 2, 1)]
    levels = 65535 if output is OutputPlane.ALPHA16 else 255
    for work in works:
        slot = images.slot(work)
        alpha = slot.alpha if slot.rgba is None else slot.rgba[..., 3]
        assert np.array_equal(alpha, expected_alpha(slot.rgb, slot.source_alpha, levels=levels))


def test_neither_side_imports_torch_for_a_fake():
    """The service's process and a child with a fake engine come up without torch."""
    program = (
        "import sys, rmbgd.engine.child, rmbgd.engine.worker, rmbgd.testing.engine; assert 'torch' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_kill_9_in_the_middle_of_a_batch_is_an_engine_lost(images, workshop):
    """The caller gets EngineLost that names the signal, at once and not at the deadline."""
    heartbeat = SpyHeartbeat()
    worker = workshop.worker("hang", heartbeat=heartbeat)
    worker.start()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(worker.run, [images.put()])
        heartbeat.blocked.wait(PATIENCE)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(EngineLost, match="SIGKILL"):
            answer.result(PATIENCE)

    assert worker.pid is None


def test_a_child_killed_by_itself_is_an_engine_lost(images, workshop):
    """A child that the kernel takes leaves EngineLost, also for calls that come later."""
    worker = workshop.worker("kill")
    worker.start()
    with pytest.raises(EngineLost, match="SIGKILL"):
        worker.run([images.put()])
    with pytest.raises(EngineLost, match="not running"):
        worker.run([images.put(2)])


def test_a_stopped_child_is_killed_at_the_deadline(images, workshop):
    """A child that stands still past its deadline is gone afterwards, and the caller knows why."""
    worker = workshop.worker(batch_timeout=0.2)
    worker.start()
    pid = worker.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineLost, match=r"no answer within 0.2 s.*hung.*SIGKILL"):
        worker.run([images.put()])

    assert wait_until_gone(pid)


def test_a_hanging_child_writes_its_stacks_before_it_is_killed(images, workshop):
    """Shortly before the deadline the child writes where every thread stands; that ends up in the output lines."""
    worker = workshop.worker("hang", batch_timeout=0.5)
    worker.start()
    with pytest.raises(EngineLost, match="hung"):
        worker.run([images.put()])

    assert any("testing/engine.py" in line and "_act" in line for line in workshop.lines)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("nonsense", "not finite"),
        ("wrong_count", "answered for"),
        ("wrong_image", r"asked for images \[1\] it answered for \[-1\]"),
    ],
)
def test_nonsense_is_told_and_ends_the_child(images, workshop, step, why):
    """An answer that cannot be raises EngineNonsense, and the process that gave it is gone."""
    worker = workshop.worker(step)
    worker.start()
    pid = worker.pid
    with pytest.raises(EngineNonsense, match=why):
        worker.run([images.put()])

    assert wait_until_gone(pid)


def test_shortage_of_memory_leaves_the_child_alive(images, workshop):
    """EngineMemory is not sticky: the same process answers the next, smaller batch."""
    worker = workshop.worker(memory_limit=1)
    worker.start()
    pid = worker.pid
    with pytest.raises(EngineMemory):
        worker.run([images.put(1), images.put(2)])
    report = worker.run([images.put(3)])

    assert report.answers[0].image_id == 3
    assert worker.pid == pid


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"start": "exit:3"}, "status 3"),
        ({"start": "kill"}, "SIGKILL"),
        ({"start": "lost"}, "device is lost.*status 70"),
        ({"start": "hang", "start_timeout": 1.0}, "no answer within 1 s"),
        ({"factory": "rmbgd.engine.nothing:create"}, "ModuleNotFoundError"),
        ({"unheard_of": 1}, "TypeError"),
    ],
)
def test_a_child_that_dies_at_start_says_why(workshop, settings, why):
    """Whatever goes wrong before the engine is ready raises EngineLost with the cause, and leaves no process."""
    worker = workshop.worker(**settings)
    with pytest.raises(EngineLost, match=why):
        worker.start()

    assert worker.pid is None


def test_a_device_that_is_not_there_is_told_apart(workshop):
    """The cause of an EngineLost crosses the process border."""
    with pytest.raises(EngineLost) as told:
        workshop.worker(start="no_device").start()

    assert told.value.cause == "no_device"


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (subprocess, "Popen", BlockingIOError(11, "Resource temporarily unavailable")),
        (socket, "socketpair", OSError(24, "Too many open files")),
        (threading.Thread, "start", RuntimeError("can't start new thread")),
    ],
)
def test_a_process_that_cannot_be_started_is_an_engine_lost(workshop, monkeypatch, owner, name, error):
    """No process slot, no descriptor or no thread left for a child is a fault that passes, and nothing is left open."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    descriptors = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(EngineLost, match=f"cannot be started.*{error.args[-1]}"):
            workshop.worker().start()

    assert set(os.listdir("/proc/self/fd")) <= descriptors


def test_a_model_that_cannot_be_used_stays_the_operators_fault(workshop):
    """ModelError crosses the process border with its text."""
    with pytest.raises(ModelError, match=r"^the script says that the weights are damaged$"):
        workshop.worker(start="model").start()


@pytest.mark.parametrize("state", ["idle", "working", "stopped"])
def test_no_child_outlives_a_parent_that_is_killed(tmp_path, state):
    """SIGKILL for the parent ends the child too, whatever the child is doing."""
    program = tmp_path / "parent.py"
    program.write_text(
        f"""
import sys, threading
from rmbgd.engine.arena import Arena
from rmbgd.engine.types import OutputPlane
from rmbgd.engine.worker import EngineWorker, expected_seconds
from tests.engine.image_store import ImageStore

with Arena(1 << 20) as arena, ImageStore(arena) as images:
    worker = EngineWorker(arena, "{FAKE}", {{"script": ["hang"]}}, start_timeout=60, batch_timeout=60, on_output=print)
    # started by a thread that is gone before anything else happens
    thread = threading.Thread(target=worker.start)
    thread.start()
    thread.join()
    print(worker.pid, flush=True)
    if "{state}" == "working":
        worker.run([images.put()])
    threading.Event().wait()
"""
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        if state == "stopped":
            os.kill(child, signal.SIGSTOP)
        parent.kill()

    assert wait_until_gone(child)


def test_the_child_outlives_the_thread_that_started_it(images, workshop):
    """The parent-death signal is bound to threads; a worker started by one that has ended still answers."""
    worker = workshop.worker()
    thread = threading.Thread(target=worker.start)
    thread.start()
    thread.join()

    assert worker.run([images.put()]).answers[0].image_id == 1


def test_signals_to_the_whole_group_do_not_end_the_child(images, workshop):
    """SIGTERM and SIGINT, as systemd and terminals send them, are the parent's business."""
    worker = workshop.worker()
    worker.start()
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)

    assert worker.run([images.put()]).answers[0].image_id == 1


def test_the_kernel_prefers_the_child_when_memory_is_short(workshop):
    """The child raises its own out-of-memory score by 500."""
    worker = workshop.worker()
    worker.start()
    own = int(Path("/proc/self/oom_score_adj").read_text())

    assert int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text()) == min(1000, own + 500)


def test_a_child_that_nobody_can_kill_is_abandoned(images, workshop):
    """When SIGKILL has no effect within the bound the caller goes on without the process, and says so."""
    spared: list[subprocess.Popen] = []
    start_process = partial(ChildProcess, kill=spared.append, reap_seconds=0.1)
    worker = workshop.worker("hang", batch_timeout=0.1, start_process=start_process)
    worker.start()
    with pytest.raises(EngineLost, match=r"cannot be killed.*abandoned") as told:
        worker.run([images.put()])

    assert told.value.cause == "unkillable"
    assert worker.pid is None
    assert spared[0] in _abandoned
    spared[0].kill()
    spared[0].wait(PATIENCE)
    workshop.worker().start()  # looks after the abandoned
    assert spared[0] not in _abandoned


def test_an_owner_in_a_hurry_does_not_wait_for_a_process_stuck_in_the_kernel(images, workshop):
    """He has his answer when his patience is over, not the bound for reaping; closing waits, and abandons it."""
    spared: list[subprocess.Popen] = []
    start_process = partial(ChildProcess, kill=spared.append, reap_seconds=0.1)
    worker = workshop.worker("hang", batch_timeout=0.1, start_process=start_process)
    worker.start()
    worker.attach(SpyHeartbeat(), patience=0.01)
    with pytest.raises(EngineLost, match="not gone yet") as told:
        worker.run([images.put()])

    assert told.value.cause == ""
    assert worker.lingers
    assert not worker.abandoned
    with pytest.raises(EngineLost, match="not running"):
        worker.run([images.put(2)])
    worker.close()
    assert worker.abandoned
    assert not worker.lingers
    spared[0].kill()
    spared[0].wait(PATIENCE)


def test_an_owner_in_a_hurry_learns_how_a_process_went_that_goes(images, workshop):
    """One that can be killed is gone at once, and nothing lingers."""
    worker = workshop.worker("hang", batch_timeout=0.1)
    worker.start()
    pid = worker.pid
    worker.attach(SpyHeartbeat(), patience=PATIENCE)
    with pytest.raises(EngineLost, match="SIGKILL"):
        worker.run([images.put()])

    assert not worker.lingers
    assert worker.ended
    assert wait_until_gone(pid)


def test_twenty_restarts_leave_no_descriptor_and_no_thread_behind(images, workshop):
    """Processes that end in every way give back what they held."""
    steps = ["kill", "nonsense", "wrong_count", "ok"]

    def round_trip(step: str) -> None:
        worker = workshop.worker(step)
        worker.start()
        with contextlib.suppress(EngineLost, EngineNonsense):
            worker.run([images.put()])
        worker.close()

    def held() -> tuple[int, int]:
        gc.collect()  # of other tests, too
        return len(os.listdir("/proc/self/fd")), sum(thread.name == "engine" for thread in threading.enumerate())

    round_trip("ok")
    before = held()
    for turn in range(20):
        round_trip(steps[turn % 4])
    after = held()

    assert after <= before


def test_an_aborted_worker_ends_its_owners_wait(images, workshop):
    """Another thread takes the process away; the owner's call raises at once."""
    heartbeat = SpyHeartbeat()
    worker = workshop.worker("hang", heartbeat=heartbeat)
    worker.start()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(worker.run, [images.put()])
        heartbeat.blocked.wait(PATIENCE)
        worker.abort()
        with pytest.raises(EngineLost, match="SIGKILL"):
            answer.result(PATIENCE)


def test_a_worker_aborted_before_its_start_does_not_start(workshop):
    """An abort that comes first is not forgotten."""
    worker = workshop.worker()
    worker.abort()
    with pytest.raises(EngineLost, match="SIGKILL"):
        worker.start()


@pytest.mark.parametrize(
    ("measured", "images", "seconds"),
    [({}, 3, 0.0), ({1: 2.0}, 1, 2.0), ({1: 2.0}, 3, 6.0), ({1: 2.0, 4: 5.0}, 2, 5.0), ({1: 2.0, 4: 5.0}, 8, 10.0)],
)
def test_what_a_batch_should_take_follows_from_what_was_measured(measured, images, seconds):
    """The next larger measured size, or the largest in proportion; nothing where nothing was measured."""
    assert expected_seconds(measured, images) == seconds


def test_a_slow_machine_is_not_a_hung_one(images, workshop):
    """A batch may take ten times what it took at start, however short the timeout set."""
    worker = workshop.worker("delay:0.5", batch_timeout=0.1, seconds=1.0)
    worker.start()

    assert worker.run([images.put()]).answers[0].image_id == 1


def test_a_gpu_s_batch_is_hung_after_ten_times_its_measured_time(images, workshop):
    """Where the GPU said what a batch takes, nobody waits for the time that a slow CPU is given."""
    worker = workshop.worker("hang", hang_minimum=0.2, seconds=0.01)
    worker.start()

    with pytest.raises(EngineLost, match=r"no answer within 0\.2\d* s to 'segment'"):
        worker.run([images.put()])


@pytest.mark.parametrize(
    ("measured", "count", "pixels", "seconds"),
    [
        (0.01, 1, 0, 1.0),  # quick: the least
        (0.2, 4, 0, 8.0),  # ten times T(4)
        (0.2, 1, 50_000_000, 12.0),  # a large image's way there and back
        (0.0, 1, 0, 60.0),  # not measured: as for a CPU
    ],
)
def test_the_deadline_of_a_gpu_s_batch(workshop, measured, count, pixels, seconds):
    """The larger of a second and ten times the measured time, with the pixels beyond the network's added."""
    worker = workshop.worker(hang_minimum=1.0, seconds=measured)
    worker.start()

    assert worker._deadline(count, pixels) == pytest.approx(seconds)


def test_a_look_at_a_gpu_has_a_deadline_too(workshop):
    """The golden image and the canary may take longer than a batch, their first time, but not as long as a CPU."""
    worker = workshop.worker(hang_minimum=0.02, seconds=0.001, orders="")
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)

    with pytest.raises(EngineLost, match=r"no answer within 0\.2 s to 'canary'"):
        worker.canary(64)


def test_closing_is_allowed_in_any_state(workshop):
    """Before start, twice, after a fault: nothing happens."""
    worker = workshop.worker()
    worker.close()
    worker.start()
    pid = worker.pid
    worker.close()
    worker.close()

    assert wait_until_gone(pid)
