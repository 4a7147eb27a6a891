"""The GPU's engine, whole, with the host in the device's place: against the CPU's engine, and when things go wrong."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from rmbgd.backends.cpu.backend import CpuBackend
from rmbgd.backends.cuda import backend as engine
from rmbgd.backends.cuda import batch, memory_plan, network
from rmbgd.backends.cuda import memory as pool
from rmbgd.backends.cuda.device import CaptureFailed
from rmbgd.backends.factory import create
from rmbgd.engine.selftest import golden_difference
from rmbgd.engine.types import OutputPlane
from rmbgd.errors import UNCLEAN_CAPTURE, EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.models.inference import alpha_of, put_images
from rmbgd.models.kernels.runtime import Availability
from rmbgd.testing.device import HostDevice
from tests.backends.conftest import MEBI, OPTIONS, Canvas, ball, by_host
from tests.backends.cuda.conftest import Green

GIBI = 1 << 30


def veil(height: int, width: int) -> np.ndarray:
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


def assorted(canvas: Canvas) -> list:
    """Every output, with and without alpha of their own, cleaned and not, refined and not; smaller and larger than the
    network."""
    return [
        canvas.place(1, ball(400, 517), source_alpha=veil(400, 517)),
        canvas.place(2, ball(400, 517)),
        canvas.place(3, ball(240, 320), output=OutputPlane.ALPHA8),
        canvas.place(4, ball(333, 77), source_alpha=veil(333, 77), output=OutputPlane.ALPHA16),
        canvas.place(5, ball(5, 700), clean=False),
        canvas.place(6, ball(1, 1)),
        canvas.place(7, ball(320, 320), source_alpha=veil(320, 320), output=OutputPlane.ALPHA8),
        canvas.place(8, ball(330, 660), source_alpha=veil(330, 660)),
        canvas.place(9, ball(650, 400), output=OutputPlane.ALPHA16),
        replace(canvas.place(10, ball(650, 400), output=OutputPlane.ALPHA16), refine=False),
    ]


def worst(canvas: Canvas, works, expected: list[np.ndarray]) -> float:
    """Largest difference of any plane, in levels of 255."""
    pairs = [(canvas.plane(work).astype(int), plane) for work, plane in zip(works, expected, strict=True)]
    return max(np.abs(found - plane).max() / (257 if plane.dtype == np.uint16 else 1) for found, plane in pairs)


def details(description, what: str) -> list[str]:
    return [limit.detail for limit in description.limits if limit.what == what]


def test_every_plane_is_that_of_the_cpus_engine(make, green, canvas):
    """Within one level, and so are the mattes as they are reported; what is read was not changed."""
    works = assorted(canvas)
    expected, mattes = by_host(canvas, works)
    inputs = [canvas.slot(work).rgb.copy() for work in works]
    report = make().segment(works)
    assert [asdict(answer.matte) for answer in report.answers] == [pytest.approx(matte, abs=1e-4) for matte in mattes]
    assert worst(canvas, works, expected) <= 1
    assert all(np.array_equal(canvas.slot(work).rgb, rgb) for work, rgb in zip(works, inputs, strict=True))


def test_a_second_look_finds_what_the_cpus_engine_finds(make, green, canvas):
    """Of several images of a batch, the first among them; outputs are the same byte for byte as without."""
    green.after = lambda logits, _: logits / 2 + torch.linspace(1.5, -1.5, logits.shape[3])
    works = assorted(canvas)
    engine = make()
    engine.segment(works)
    planes = [canvas.plane(work) for work in works]
    works = [replace(work, second_look=work.image_id != 3) for work in works]
    _, mattes = by_host(canvas, works)
    found = [asdict(answer.matte) for answer in engine.segment(works).answers]
    assert [matte["disagreement"] is None for matte in mattes] == [work.image_id == 3 for work in works]
    assert [matte.pop("disagreement") for matte in found] == [
        pytest.approx(matte.pop("disagreement"), abs=1e-3) for matte in mattes
    ]
    assert found == [pytest.approx(matte, abs=1e-4) for matte in mattes]
    assert all(np.array_equal(canvas.plane(work), plane) for work, plane in zip(works, planes, strict=True))


def test_a_second_look_without_finite_alpha_says_nothing(make, green, canvas):
    engine = make()
    green.after = lambda logits, _: logits / 2
    work = replace(canvas.place(1, ball(300, 400)), second_look=True)
    assert engine.segment([work]).answers[0].matte.disagreement == pytest.approx(0, abs=1e-3)
    times = iter([1.0, math.inf])
    green.after = lambda logits, _: logits / 2 * next(times)
    assert engine.segment([work]).answers[0].matte.disagreement is None


def test_more_than_staging_holds_goes_through_it_all_the_same(make, green, canvas, monkeypatch):
    """Images that push each other out are brought again; an image larger than the ring goes by way of the host."""
    monkeypatch.setattr(memory_plan, "STAGING_LEAST", 2 * MEBI)  # room for two images
    works = [canvas.place(n, ball(300 + 10 * n, 400), clean=n != 2) for n in range(4)]
    works.append(canvas.place(4, ball(700, 600), source_alpha=veil(700, 600)))
    works.append(canvas.place(5, ball(200, 200)))
    expected, _ = by_host(canvas, works)
    engine = make(replace(OPTIONS, staging_bytes=2 * MEBI))
    assert engine._pool.staging.fits(works[0].region)
    assert not engine._pool.staging.fits(works[4].region)
    for size in (1, 4, 6):
        engine.segment(works[-size:])
        assert worst(canvas, works[-size:], expected[-size:]) <= 1


@pytest.mark.parametrize("triton", [False, True])
def test_without_kernels_the_host_finishes_what_would_take_too_much_memory(make, green, canvas, monkeypatch, triton):
    jobs = Mock()
    engine = make()
    monkeypatch.setattr(batch, "PLAIN_PIXELS", 40 * 40)
    monkeypatch.setattr(batch, "finish_images", jobs)
    monkeypatch.setattr(network.CudaNetwork, "triton", triton)
    engine.segment([canvas.place(n, ball(40, width)) for n, width in enumerate((40, 41))])
    assert [job.width for call in jobs.call_args_list for job in call.args[2]] == ([40, 41] if triton else [40])


def test_images_are_finished_in_groups_whose_levels_fit_into_memory(make, green, canvas, monkeypatch):
    jobs = Mock(side_effect=batch.finish_images)
    monkeypatch.setattr(batch, "finish_images", jobs)
    works = [canvas.place(n, ball(200, 300)) for n in range(4)]
    expected, _ = by_host(canvas, works)
    engine = make()
    jobs.reset_mock()
    engine.segment(works)
    each = jobs.call_args.args[2][0].working_bytes((320, 320))
    monkeypatch.setattr(batch, "WORKING_BYTES", 3 * each)
    engine.segment(works)
    assert [len(call.args[2]) for call in jobs.call_args_list] == [4, 3, 1]
    assert worst(canvas, works, expected) <= 1


def test_an_image_is_the_same_in_company_and_alone(make, green, canvas):
    rng = np.random.default_rng(1)
    shapes = [(320, 320), (333, 444), (333, 444), (100, 900)]
    works = [canvas.place(n, rng.integers(0, 256, (*shape, 3), np.uint8)) for n, shape in enumerate(shapes)]
    engine = make()
    report = engine.segment(works)
    together = [canvas.plane(work) for work in works]
    for work in works:
        engine.segment([work])
    assert [answer.batch for answer in report.answers] == [4, 4, 4, 4]
    for work, plane in zip(works, together, strict=True):
        assert np.array_equal(canvas.plane(work)[..., 3], plane[..., 3])
    assert worst(canvas, works, together) <= 1  # colours: the libraries' sums may run in another order


def test_empty_places_of_a_batch_change_nothing(make, green, canvas):
    """They hold NaN, and three images in a batch of four are computed as if they were alone."""
    works = assorted(canvas)[:3]
    expected, _ = by_host(canvas, works)
    engine = make()
    network = engine._networks["u2netp"]
    network.seconds = {1: 1.0, 2: 1.9, 4: 2.0}  # a batch of four is then quicker than one of two and a single
    with torch.inference_mode():
        network.inputs.fill_(float("nan"))
    report = engine.segment(works)
    assert [answer.batch for answer in report.answers] == [3, 3, 3]
    assert report.not_finite == []
    assert worst(canvas, works, expected) <= 1


def test_the_description_says_how_memory_was_divided(make, green):
    description = make(start=False).start()
    assert description.batch_sizes == (1, 2, 4)
    assert set(description.seconds) == {1, 2, 4}
    assert description.detail["staging_bytes"] == OPTIONS.staging_bytes
    assert [limit.what for limit in description.limits] == ["kernels"]
    assert json.loads(json.dumps(asdict(description)))["device"] == "cpu"


def test_memory_that_others_take_later_is_told_once(make, green, canvas, monkeypatch):
    monkeypatch.setattr(pool, "CHECK_AFTER", 2)
    work, device = canvas.place(1, ball(8, 8)), HostDevice()
    engine = make(device=device)

    def told(free: int) -> list[str]:
        device._memory = (free, 8 * GIBI)
        return [limit.what for _ in range(6) for limit in engine.segment([work]).limits]

    assert told(7 * GIBI) == []
    assert told(GIBI // 3) == ["memory_low"]
    assert told(3 * GIBI // 4) == []
    assert told(GIBI // 3) == []
    assert told(2 * GIBI) == []
    assert told(GIBI // 3) == ["memory_low"]


def test_no_page_locked_memory_is_told(make, green, canvas):
    description = make(device=HostDevice(pins="the limit is 64 kB"), start=False).start()
    told = "no memory is page-locked, so copies wait for each other: the limit is 64 kB"
    assert details(description, "pinned") == [told]


def test_no_more_of_the_arena_is_locked_than_was_asked_for(make, green):
    device = HostDevice()
    make(replace(OPTIONS, pinned_bytes=1 << 20), device)
    assert device.pinned == 1 << 20


@pytest.mark.parametrize(("capability", "used"), [((9, 0), "bfloat16"), ((7, 5), "float32")])
def test_a_network_too_large_for_float16_computes_in_a_wider_type(make, green, capability, used):
    green.after = lambda logits, module: logits * (math.inf if module.weight.dtype is torch.float16 else 1.0)
    device = HostDevice(capability=capability)
    description = make(replace(OPTIONS, precision="float16"), device, start=False).start()
    assert description.models["u2netp"]["precision"] == used
    assert details(description, "precision") == [f"u2netp: alpha is not finite in float16: {used} is used"]


def test_kernels_that_do_not_run_leave_plain_ones(make, green, monkeypatch):
    def answers(module, inputs, *, triton: bool):
        if triton:
            raise ValueError("out of resource: shared memory")
        return alpha_of(module(inputs))

    choose = Mock()
    monkeypatch.setattr(engine, "triton_for", lambda *_: Availability(True, "a test"))
    monkeypatch.setattr(network, "use_kernels", choose)
    monkeypatch.setattr(network, "mattes", answers)
    monkeypatch.setattr(network, "check_kernels", lambda _: None)
    monkeypatch.setattr(network, "put_images", lambda *given, **how: put_images(*given, **how | {"triton": False}))
    description = make(start=False).start()
    assert [call.kwargs["triton"] for call in choose.call_args_list] == [True, False]
    told = "u2netp runs on plain kernels: ValueError: out of resource: shared memory"
    assert details(description, "kernels") == [told]


def test_between_batches_the_golden_image_is_the_cpus_and_memory_is_sound(make, green, arena):
    engine, host = make(), CpuBackend(arena.block, OPTIONS)
    host.start()
    mean, peak = golden_difference(engine.golden("u2netp").alpha, host.golden("u2netp").alpha, 0.0)
    assert mean < 1e-4
    assert peak < 1e-3
    assert [engine.canary(1500).bad for _ in range(2)] == [0, 0]


def test_an_image_whose_alpha_is_not_finite_is_named_and_not_written(make, green, canvas):
    """The others of its batch are answered; its plane stays as it is, also by way of the host."""
    works = assorted(canvas)[:3]
    expected, _ = by_host(canvas, works)
    engine = make()

    def spoil(logits: torch.Tensor, _: Green) -> torch.Tensor:
        logits[1:2, 0, 5, 5] = float("inf")
        return logits

    green.after = spoil
    engine._networks["u2netp"].seconds = {4: 1.0}  # all in one batch
    report = engine.segment(works)
    assert report.not_finite == [2]
    assert [answer.image_id for answer in report.answers] == [1, 3]
    assert (canvas.plane(works[1]) == 7).all()
    assert worst(canvas, works[::2], expected[::2]) <= 1
    engine._pool.staging.fits = lambda _: False
    assert engine.segment(works).not_finite == [2]
    assert (canvas.plane(works[1]) == 7).all()


def test_the_first_memory_test_takes_nothing_from_what_batches_need(make, green, monkeypatch):
    """What is cached for them is given back before, so that the test's blocks come from the device, and taken anew."""
    device, did = HostDevice(), []
    engine = make(device=device)
    for name in ("empty_cache", "reserve", "allocate"):
        monkeypatch.setattr(device, name, lambda *given, name=name: did.append((name, *given)))
    for _ in range(2):
        engine.canary(10)
    reserved = did.index(("reserve", engine._pool.plan.working))
    assert did[:2] == [("empty_cache",), ("allocate",)]
    assert did[reserved - 1] == ("empty_cache",)
    assert {name for name, *_ in did[reserved + 1 :]} == {"allocate"}


def test_weights_that_are_nonsense_do_not_start(make, green):
    green.after = lambda logits, _: logits * float("nan")
    with pytest.raises(EngineNonsense, match="golden image"):
        make()


def short_above(images: int):
    def before(inputs: torch.Tensor) -> None:
        if len(inputs) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return before


def test_a_shortage_while_images_are_computed_is_reported_at_once(make, green, canvas):
    """A fresh process divides what is free; here nothing is tried again, and nothing given up."""
    works, device = assorted(canvas)[:4], HostDevice()
    engine = make(device=device)
    green.before = before = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(EngineMemory, match="out of memory"):
        engine.segment(works)
    assert before.call_count == 1
    assert (device.graphs_discarded, engine._pool.sizes) == (0, (1, 2, 4))


def test_a_plan_that_was_too_bold_is_cut_at_start(make, green):
    green.before = short_above(2)
    description = make(start=False).start()
    assert description.batch_sizes == (1, 2)
    assert "batch" in {limit.what for limit in description.limits}


def test_a_device_without_room_for_one_image_does_not_start(make, green):
    green.before = short_above(0)
    with pytest.raises(EngineMemory):
        make()


def test_a_graph_without_room_costs_the_largest_batch_and_no_other_graph(make, green):
    """Its memory is given up before the next size is tried."""
    captured = []

    def capture(body):
        captured.append(body.args[0])
        if body.args[0] == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return body

    device = HostDevice(capture=capture)
    engine = make(device=device, start=False)
    description = engine.start()
    assert description.batch_sizes == engine._networks["u2netp"].graph_sizes == (1, 2)
    assert (captured, device.graphs_discarded) == ([4, 2, 1], 1)
    assert engine._networks["u2netp"].inputs.shape[0] == 2
    assert [limit.what for limit in description.limits] == ["kernels", "batch"]


def test_wherever_memory_runs_out_at_start_an_engine_is_whole_or_not_there(make, green, canvas):
    """After the weights, until memory is given up: smaller batches are offered then, and images come out as ever."""
    works = [canvas.place(n, ball(60, 40)) for n in range(3)]
    expected, _ = by_host(canvas, works)
    sizes, failing = set(), 0
    while (1, 2) not in sizes:
        device = HostDevice()
        failing = 3 * failing + 10

        def load(body, device=device, failing=failing) -> int:
            device.peak_bytes = lambda body: body() and 0
            device.allocations_left = failing
            return device.peak_bytes(body)

        def capture(body, device=device):
            body()
            return body

        def free_again(device=device) -> None:
            device.graphs_discarded += 1
            device.allocations_left = None

        device.peak_bytes, device.capture_graph, device.discard_graphs = load, capture, free_again
        engine = make(replace(OPTIONS, batch_maximum=2), device, start=False)
        with suppress(EngineMemory):
            sizes.add(engine.start().batch_sizes)
            device.allocations_left = None
            engine.segment(works)
            assert worst(canvas, works, expected) <= 1
    assert sizes == {(1,), (1, 2)}


def test_a_capture_that_ends_uncleanly_ends_the_process(make, green):
    lost = EngineLost("4096 bytes are not given back", cause=UNCLEAN_CAPTURE)
    with pytest.raises(EngineLost) as raised:
        make(device=HostDevice(capture=Mock(side_effect=lost)))
    assert raised.value.cause == "unclean_capture"


def test_no_warm_up_needs_memory_beside_that_of_graphs(make, green):
    """All of them come before the first capture; afterwards no kernel is launched but by replaying a graph."""
    seen = []
    green.before = lambda inputs: seen.append(len(inputs))

    def capture(body):
        seen.append(f"graph {body.args[0]}")
        replayed = partial(seen.append, "replay")
        return lambda: replayed() or body()

    make(device=HostDevice(capture=capture))
    first = seen.index("graph 4")
    assert seen[first - 3 : first] == [4, 2, 1]
    assert all(before in ("replay", size) for before, size in pairwise(seen[first:]) if isinstance(size, int))


def test_every_kind_of_image_is_finished_once_before_the_engine_is_ready(make, green, canvas, monkeypatch):
    """Each output plane, colours cleaned, where one side is smaller than the network's; the arena is not touched."""
    jobs = Mock(side_effect=batch.finish_images)
    monkeypatch.setattr(batch, "finish_images", jobs)
    canvas.arena.block[:] = 7
    make()
    done = [job for call in jobs.call_args_list for job in call.args[2]]
    assert {(job.pixel_bytes, bool(job.levels)) for job in done} == {(4, True), (1, False), (2, False)}
    assert {(job.height > 320, job.width < 320) for job in done} == {(True, True)}
    assert (canvas.arena.block == 7).all()


def test_the_seconds_of_a_batch_are_those_of_network_and_finish(make, green, monkeypatch):
    """In time that passes only where the network computes (1 s an image) and images are finished (10 s each)."""
    now = 0.0

    def compute(inputs: torch.Tensor) -> None:
        nonlocal now
        now += len(inputs)

    def finish(images, mattes, jobs, *, inputs, triton) -> None:
        nonlocal now
        now += 10 * len(jobs)

    green.before = compute
    monkeypatch.setattr(batch, "finish_images", finish)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now)
    assert make(start=False).start().seconds == {1: 11.0, 2: 22.0, 4: 44.0}


def test_the_largest_batch_is_recorded_first(make, green, canvas):
    """So that the others find its memory; and batches go through recordings."""
    recorded, replayed = [], []

    def capture(body):
        recorded.append(body.args[0])
        return lambda: replayed.append(body.args[0]) or body()

    engine = make(device=HostDevice(capture=capture))
    replayed.clear()
    engine.segment(assorted(canvas)[:7])
    assert recorded == replayed == [4, 2, 1]


def test_graphs_can_be_switched_off(make, green, canvas):
    engine = make(replace(OPTIONS, graphs=False), HostDevice(capture=pytest.fail), start=False)
    assert [limit.what for limit in engine.start().limits] == ["kernels"]
    engine.segment(assorted(canvas))


def test_a_recording_that_fails_is_told_once_and_images_go_on(make, green, canvas):
    """No second try for smaller batches; the planes are the same."""
    capture, works = Mock(side_effect=CaptureFailed("not permitted")), assorted(canvas)
    expected, _ = by_host(canvas, works)
    engine = make(device=HostDevice(capture=capture), start=False)
    description = engine.start()
    engine.segment(works)
    told = "batches of 4 (u2netp) and smaller are launched kernel by kernel: not permitted"
    assert details(description, "graphs") == [told]
    assert capture.call_count == 1
    assert worst(canvas, works, expected) <= 1


def test_a_recording_that_answers_otherwise_is_not_used(make, green):
    description = make(device=HostDevice(capture=lambda body: lambda: None), start=False).start()
    assert "answers otherwise than its kernels do" in details(description, "graphs")[0]


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), EngineLost),
        (RuntimeError("shapes cannot be multiplied"), RuntimeError),
    ],
)
def test_an_error_of_torch_is_told_with_its_text(make, green, canvas, raised, error):
    """The device's ends the process; a bug stays what it is, and the next batch finds everything in order."""
    engine, works = make(), assorted(canvas)
    green.before = Mock(side_effect=raised)
    with pytest.raises(error, match=str(raised)):
        engine.segment(works)
    green.before = lambda _: None
    assert len(engine.segment(works).answers) == len(works)


def test_a_batch_has_one_model(make, green, canvas):
    works = [canvas.place(1, ball(10, 10)), replace(canvas.place(2, ball(10, 10)), model="other")]
    with pytest.raises(ValueError, match="one model"):
        make().segment(works)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_lost(arena):
    options = {"models": {"u2netp": {"source": "u2netp"}}, "models_directory": "/nonexistent", "device": "cuda:0"}
    with pytest.raises(EngineLost) as lost:
        create(arena.block, options).start()
    assert lost.value.cause == "no_device"


def test_an_engine_can_be_closed_in_any_state(make, green):
    started = make()
    started.canary(1)
    for either in (make(start=False), started, started):
        either.close()
    assert started._device is None


def test_a_network_that_takes_the_frame_before_is_refused(make, green, monkeypatch):
    known = engine.resolve("u2netp", OPTIONS.models_directory)
    entry = replace(known.entry, recurrent=True)
    monkeypatch.setattr(engine, "resolve", lambda *_: replace(known, entry=entry))
    with pytest.raises(ModelError, match=r"only the CPU does; set engine\.device"):
        make()
