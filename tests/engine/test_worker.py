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
from unittest.mock import Mock

import numpy as np
import pytest

from rmbgd.config.settings import EngineSettings
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import MemoryTestPass, OutputPlane
from rmbgd.engine.worker import EngineWorker, _abandoned, oom_kills
from rmbgd.errors import KILLED_FROM_OUTSIDE, EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.testing.engine import expected_alpha
from tests.engine.image_store import ImageStore
from tests.engine.processes import PATIENCE, SpyHeartbeat, wait_until_gone
from tests.support.standstill import stand_still

pytestmark = pytest.mark.integration

FAKE = "rmbgd.testing.engine:create"
OF_WORKER = ("start_timeout", "batch_timeout", "hang_minimum")


class Workshop(contextlib.ExitStack):
    """Makes workers, and keeps what their children wrote; `settings` that are no worker's are the fake engine's."""

    def __init__(self, images: ImageStore) -> None:
        super().__init__()
        self.images, self.lines = images, []

    def worker(self, *script: str, factory: str = FAKE, **settings) -> EngineWorker:
        own = {"start_timeout": PATIENCE, "batch_timeout": PATIENCE}
        own |= {name: settings.pop(name) for name in OF_WORKER if name in settings}
        options = settings | ({"script": list(script)} if factory == FAKE else {})
        worker = EngineWorker(self.images.arena, factory, options, on_output=self.lines.append, **own)
        return self.enter_context(contextlib.closing(worker))

    def started(self, *script: str, **settings) -> EngineWorker:
        worker = self.worker(*script, **settings)
        worker.start()
        return worker

    def answers(self, worker: EngineWorker) -> bool:
        return worker.run([self.images.put(5)]).answers[0].image_id == 5


@pytest.fixture
def workshop(images) -> Iterator[Workshop]:
    with Workshop(images) as workshop:
        yield workshop


@pytest.fixture
def spared(monkeypatch, workshop) -> Iterator[list[subprocess.Popen]]:
    """Processes that SIGKILL did not reach, as if they were stuck in the kernel; ended with the test."""
    spared: list[subprocess.Popen] = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: spared.append(process))  # noqa: PLW0108 - a method
    monkeypatch.setattr("rmbgd.engine.worker.REAP_SECONDS", 0.1)
    yield spared
    monkeypatch.undo()
    for process in spared:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("output", list(OutputPlane))
def test_the_child_fills_the_output_plane_in_shared_memory(images, workshop, output):
    """RGBA keeps the colours and has the alpha; mask planes have the alpha alone; the input is untouched."""
    worker = workshop.worker()
    description = worker.start()
    works = [images.put(7, output=output, source_alpha=True), images.put(8, output=output, height=3, width=100)]
    before = [images.slot(work).rgb.copy() for work in works]
    report = worker.run(works)
    assert description.device == "fake"
    assert description.batch_sizes == (1, 2, 4, 8, 16)
    assert [(a.image_id, a.model, a.batch, a.tries) for a in report.answers] == [(7, "fake", 2, 1), (8, "fake", 2, 1)]
    levels = 65535 if output is OutputPlane.ALPHA16 else 255
    for slot, rgb in zip(map(images.slot, works), before, strict=True):
        alpha = slot.alpha if slot.rgba is None else slot.rgba[..., 3]
        assert np.array_equal(slot.rgb, rgb)
        assert slot.rgba is None or np.array_equal(slot.rgba[..., :3], rgb)
        assert np.array_equal(alpha, expected_alpha(rgb, slot.source_alpha, levels=levels))


def test_neither_side_imports_torch_for_a_fake():
    modules = "rmbgd.engine.child, rmbgd.engine.worker, rmbgd.testing.engine"
    program = f"import sys, {modules}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def send(number: int, worker: EngineWorker) -> None:
    os.kill(worker.pid, number)


@pytest.mark.parametrize(
    ("kill", "said", "cause"),
    [
        (partial(send, signal.SIGKILL), "killed from outside by SIGKILL", KILLED_FROM_OUTSIDE),
        (partial(send, signal.SIGHUP), "killed from outside by SIGHUP", KILLED_FROM_OUTSIDE),
        (EngineWorker.abort, "was killed by SIGKILL", ""),
        (partial(send, signal.SIGSEGV), "was killed by SIGSEGV", ""),
        (partial(send, signal.SIGABRT), "was killed by SIGABRT", ""),
    ],
)
def test_kill_in_the_middle_of_a_batch_is_an_engine_lost(images, workshop, kill, said, cause):
    """From anywhere, or from another thread of ours. The caller gets EngineLost that names the signal, at once and not
    at the deadline; and so does the next. Only what no program earns by itself, and we did not send, is from outside.
    """
    worker, heartbeat = workshop.started("hang"), SpyHeartbeat()
    worker.attach(heartbeat)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(worker.run, [images.put()])
        heartbeat.blocked.wait(PATIENCE)
        kill(worker)
        with pytest.raises(EngineLost, match=said) as told:
            answer.result(PATIENCE)
        assert told.value.cause == cause
    with pytest.raises(EngineLost, match="not running"):
        workshop.answers(worker)
    assert worker.pid is None


@pytest.mark.parametrize("struck", [0, 1, 2])
def test_the_oom_killer_is_named_when_it_struck_meanwhile(workshop, monkeypatch, struck):
    """The kernel counts for the whole control group; what was there when the process began says nothing of its end."""
    monkeypatch.setattr("rmbgd.engine.worker.oom_kills", Mock(side_effect=[5, 5 + struck]))
    worker = workshop.started("kill")
    with pytest.raises(EngineLost, match="killed from outside by SIGKILL") as told:
        workshop.answers(worker)
    assert (f"OOM killer has struck {5 + struck} times" in str(told.value)) == (struck > 0)


@pytest.mark.parametrize(
    ("membership", "events", "kills"),
    [
        ("4:memory:/x\n0::/system.slice/rmbgd.service\n", "low 0\noom 2\noom_kill 3\noom_group_kill 0\n", 3),
        ("0::/system.slice/rmbgd.service\n", None, 0),  # the controller is not there
        ("0::/system.slice/rmbgd.service\n", "low 0\n", 0),  # an older kernel
        ("4:memory:/system.slice/rmbgd.service\n", "oom_kill 3\n", 0),  # cgroup v1
        (None, None, 0),
    ],
)
def test_oom_kills_are_read_from_the_control_group(tmp_path, membership, events, kills):
    group, file = tmp_path / "system.slice" / "rmbgd.service", tmp_path / "cgroup"
    group.mkdir(parents=True)
    for path, text in ((file, membership), (group / "memory.events", events)):
        if text is not None:
            path.write_text(text)
    assert oom_kills(file, tmp_path) == kills


def test_a_hanging_child_writes_its_stacks_before_it_is_killed(workshop):
    """Shortly before the deadline the child writes where every thread stands; that ends up in the output lines. An
    owner in a hurry learns how it went, and nothing lingers: it can be killed."""
    worker = workshop.started("hang", batch_timeout=0.5)
    pid = worker.pid
    worker.attach(SpyHeartbeat(), patience=PATIENCE)
    with pytest.raises(EngineLost, match=r"hung.*was killed by SIGKILL") as told:
        workshop.answers(worker)
    assert told.value.cause == ""
    assert any("testing/engine.py" in line and "_act" in line for line in workshop.lines)
    assert (worker.lingers, worker.ended) == (False, True)
    assert wait_until_gone(pid)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("nonsense", "not finite"),
        ("wrong_count", "answered for"),
        ("wrong_image", r"asked for images \[5\] it answered for \[-1\]"),
    ],
)
def test_nonsense_is_told_and_ends_the_child(workshop, step, why):
    worker = workshop.started(step)
    with pytest.raises(EngineNonsense, match=why):
        workshop.answers(worker)
    assert worker.ended


def test_shortage_of_memory_leaves_the_child_alive(images, workshop):
    worker = workshop.started(memory_limit=1)
    pid = worker.pid
    with pytest.raises(EngineMemory):
        worker.run([images.put(1), images.put(2)])
    assert workshop.answers(worker)
    assert worker.pid == pid


@pytest.mark.parametrize(
    ("settings", "error", "why", "cause"),
    [
        ({"start": "exit:3"}, EngineLost, "status 3", ""),
        ({"start": "kill"}, EngineLost, "SIGKILL", KILLED_FROM_OUTSIDE),
        ({"start": "signal:SIGBUS"}, EngineLost, "SIGBUS", ""),
        ({"start": "lost"}, EngineLost, "device is lost.*status 70", ""),
        ({"start": "no_device"}, EngineLost, "no such device.*status 70", "no_device"),
        ({"start": "hang", "start_timeout": 1.0}, EngineLost, "no answer within 1 s", ""),
        ({"start": "model"}, ModelError, "^the script says that the weights are damaged$", ""),
        ({"factory": "rmbgd.engine.nothing:create"}, EngineLost, "ModuleNotFoundError", ""),
        ({"unheard_of": 1}, EngineLost, "TypeError", ""),
    ],
)
def test_a_child_that_dies_at_start_says_why(workshop, settings, error, why, cause):
    worker = workshop.worker(**settings)
    with pytest.raises(error, match=why) as told:
        worker.start()
    assert (getattr(told.value, "cause", ""), worker.pid) == (cause, None)


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
    descriptors = set(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, Mock(side_effect=error))
        with pytest.raises(EngineLost, match=f"cannot be started.*{error.args[-1]}"):
            workshop.worker().start()
    assert set(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("state", ["idle", "working", "stopped"])
def test_no_child_outlives_a_parent_that_is_killed(tmp_path, state):
    program = tmp_path / "parent.py"
    program.write_text(
        f"""
import sys, threading
from rmbgd.engine.arena import Arena
from rmbgd.engine.worker import EngineWorker
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
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        if state == "stopped":
            stand_still(child)
        parent.kill()
    assert wait_until_gone(child)


def test_the_child_outlives_the_thread_that_started_it_and_signals_to_the_group(workshop):
    """The parent-death signal is bound to threads; SIGTERM and SIGINT, as systemd and terminals send them, are the
    parent's business."""
    worker = workshop.worker()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(worker.start)
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
    assert workshop.answers(worker)


def test_the_kernel_prefers_the_child_when_memory_is_short(workshop):
    worker = workshop.started()
    own, its = (int(Path(f"/proc/{each}/oom_score_adj").read_text()) for each in ("self", worker.pid))
    assert its == min(1000, own + 500)


def test_a_child_that_nobody_can_kill_is_abandoned(workshop, spared):
    worker = workshop.started("hang", batch_timeout=0.1)
    with pytest.raises(EngineLost, match=r"cannot be killed.*abandoned") as told:
        workshop.answers(worker)
    assert (told.value.cause, worker.pid) == ("unkillable", None)
    assert spared[0] in _abandoned
    os.kill(spared[0].pid, signal.SIGKILL)
    spared[0].wait(PATIENCE)
    workshop.started()  # looks after the abandoned
    assert spared[0] not in _abandoned


def test_an_owner_in_a_hurry_does_not_wait_for_a_process_stuck_in_the_kernel(workshop, spared):
    """He has his answer when his patience is over, not the bound for reaping; closing waits, and abandons it."""
    worker = workshop.started("hang", batch_timeout=0.1)
    worker.attach(SpyHeartbeat(), patience=0.01)
    with pytest.raises(EngineLost, match="not gone yet") as told:
        workshop.answers(worker)
    assert told.value.cause == ""
    assert (worker.lingers, worker.abandoned) == (True, False)
    with pytest.raises(EngineLost, match="not running"):
        workshop.answers(worker)
    worker.close()
    assert (worker.lingers, worker.abandoned) == (False, True)
    workshop.images.close()
    assert workshop.images.arena.statistics().leased_bytes > 0, "its device may still write there"


def test_restarts_leave_no_descriptor_and_no_thread_behind(workshop):
    def round_trip(step: str) -> None:
        worker = workshop.started(step)
        with contextlib.suppress(EngineLost, EngineNonsense), contextlib.closing(worker):
            workshop.answers(worker)

    def held() -> tuple[int, int]:
        gc.collect()  # of other tests, too
        return len(os.listdir("/proc/self/fd")), sum(thread.name == "engine" for thread in threading.enumerate())

    round_trip("ok")
    before = held()
    for step in ["kill", "nonsense", "wrong_count", "ok"]:
        round_trip(step)
    assert held() <= before


@pytest.mark.parametrize(
    ("minimum", "measured", "count", "pixels", "seconds"),
    [
        (1.0, {}, 3, 0, 60.0),  # not measured: as for a CPU
        (1.0, {1: 0.01}, 1, 0, 1.1),
        (1.0, {1: 3.0}, 3, 0, 91.0),  # ten times what it takes, in proportion to the largest size measured
        (1.0, {1: 2.0, 4: 5.0}, 8, 0, 101.0),
        (1.0, {1: 2.0, 4: 5.0}, 2, 0, 51.0),  # the next larger size
        (1.0, {1: 0.2}, 1, 50_000_000, 13.0),  # a large image's way there and back
        (None, {1: 0.2}, 1, 50_000_000, 60.0),  # a CPU
        (None, {1: 7.0}, 1, 0, 70.0),  # a slow machine is not a hung one
    ],
)
def test_the_deadline_of_a_batch(workshop, minimum, measured, count, pixels, seconds):
    worker = workshop.worker(hang_minimum=minimum)
    worker._seconds = measured
    assert worker._deadline(count, pixels) == pytest.approx(seconds)


# Assumed, not measured: seconds of one image of a large network in a batch of one and in larger ones, bytes a second
# from pageable memory, seconds that a megapixel takes to finish without kernels, and those of loading kernels at the
# first image of its kind.
MACHINES = {
    "H200": (0.009, 0.0078, 5e9, 0.005, 1.5),
    "RTX 4080": (0.048, 0.044, 3e9, 0.01, 2.0),
    "Orin Nano": (0.35, 0.30, 1e9, 0.06, 4.0),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("megapixels", [0.1, 1.0, 12.0, 50.0])
def test_the_longest_that_one_request_may_take_fits_its_deadline(workshop, machine, megapixels):
    """The first image of its kind, which loads kernels, through pageable memory, finished without Triton, by a device
    that meanwhile runs at half its speed."""
    one, more, rate, finish, loading = machine
    worker = workshop.worker(hang_minimum=EngineSettings().hang_minimum)
    worker._seconds = {1: one} | {size: size * more for size in (2, 4, 8, 16)}
    for count in (1, 2, 3, 4, 5, 8, 13, 16):
        pixels = count * int(1e6 * megapixels)
        computing = sum(worker._seconds[size] for size in (1, 2, 4, 8, 16) if size & count)
        longest = loading + 2 * (computing + count * megapixels * finish + 7 * pixels / rate)
        assert longest < worker._deadline(count, pixels)
    checks = loading + 2 * 4 * one  # the golden image at its first time, and a pass of the memory test
    assert checks < worker._check_deadline


def test_a_gpu_has_a_deadline_for_batches_and_checks(workshop):
    """Where it said what a batch takes, nobody waits for the time that a slow CPU is given. The golden image and the
    canary may take longer, their first time, but not as long as a CPU."""
    worker, other = (workshop.started(hang_minimum=0.02, seconds=0.001) for _ in range(2))
    pids = [worker.pid, other.pid]
    for pid in pids:
        stand_still(pid)
    with pytest.raises(EngineLost, match=r"no answer within 0\.03\d* s to 'segment': hung.*SIGKILL"):
        workshop.answers(worker)
    with pytest.raises(EngineLost, match=r"no answer within 0\.2 s to 'canary': hung.*SIGKILL"):
        other.canary(64)
    assert all(wait_until_gone(pid) for pid in pids)


def test_a_child_is_looked_at_between_two_batches(workshop, tmp_path):
    """The golden image comes back as the engine computes it here; so do the blocks of a pass of the memory test; a look
    at a process that was killed is a fault like any other."""
    worker = workshop.started(orders=str(tmp_path))
    assert np.abs(worker.golden("fake").alpha - golden_image()[0][..., 1] / 255).max() <= 1 / 65535
    assert worker.canary(64) == MemoryTestPass(64, 0)
    (tmp_path / "canary").write_text("3")
    assert worker.canary(64) == MemoryTestPass(64, 3)
    assert worker.alive
    worker.abort()
    with pytest.raises(EngineLost):
        worker.golden("fake")
    assert (worker.alive, worker.ended) == (False, True)


def test_closing_is_allowed_in_any_state(workshop):
    """Before start, twice, after a fault: nothing happens. An abort before the start is not forgotten."""
    worker = workshop.worker()
    worker.close()
    worker.start()
    pid = worker.pid
    worker.close()
    worker.close()
    assert wait_until_gone(pid)
    aborted = workshop.worker()
    aborted.abort()
    with pytest.raises(EngineLost, match="SIGKILL"):
        aborted.start()
