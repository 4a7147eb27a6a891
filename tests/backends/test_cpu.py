"""The torch engine on the CPU: exact resizing, nothing written before all is known, the embedded model's accuracy."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rmbgd.backends import cpu as torch_engine
from rmbgd.backends.cpu import CpuBackend
from rmbgd.backends.planes import DEVIATION, MEAN
from rmbgd.engine import golden_image
from rmbgd.engine.arena import Arena
from rmbgd.engine.types import ModelChoice, Options, OutputPlane, Region, Slot, Work, region_bytes, view
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.models.u2net import build_u2netp
from tests.engine.processes import PATIENCE
from tests.support.shared_data import shared

OPTIONS = Options({"u2netp": ModelChoice("u2netp")}, Path("/nonexistent"), threads=1)
BLOCK = 1 << 23


@pytest.fixture(scope="module")
def arena():
    with Arena(BLOCK) as arena:
        yield arena


@pytest.fixture(scope="module")
def started(arena):
    """An engine with the embedded model, and what it said of itself."""
    engine = CpuBackend(arena.block, OPTIONS)
    description = engine.start()
    yield engine, description
    engine.close()


@pytest.fixture
def engine(started):
    return started[0]


@pytest.fixture
def network(engine, monkeypatch):
    """The loaded network, whose module is quick for the duration of a test: its logits are 4 x the green input."""
    network = engine._networks["u2netp"]
    monkeypatch.setattr(network, "module", green)
    return network


def green(inputs: torch.Tensor) -> torch.Tensor:
    return 4 * inputs[:, 1:2]


class Canvas:
    """Places images in the arena one after the other, without leases: a test has the arena for itself."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.offset = 0

    def place(self, image_id: int, rgb: np.ndarray, *, source_alpha=None, output=OutputPlane.RGBA8, clean=True) -> Work:
        height, width = rgb.shape[:2]
        region = Region(self.offset, height, width, source_alpha is not None, output)
        self.offset += region_bytes(height, width, source_alpha=source_alpha is not None, output=output)
        slot = view(self.arena.block, region)
        slot.rgb[...] = rgb
        if source_alpha is not None:
            slot.source_alpha[...] = source_alpha
        plane = slot.alpha if slot.rgba is None else slot.rgba
        plane[...] = 7
        return Work(image_id, region, "u2netp", clean)

    def slot(self, work: Work) -> Slot:
        return view(self.arena.block, work.region)


@pytest.fixture
def canvas(arena) -> Canvas:
    return Canvas(arena)


def ball(height: int, width: int) -> np.ndarray:
    rgb, _ = golden_image.golden_image()
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def normalised(rgb: np.ndarray) -> torch.Tensor:
    """The authors' preprocessing: Pillow's bilinear, /255, mean and deviation; float32 [1, 3, 320, 320]."""
    small = image_to_network(rgb, 320, 320).astype(np.float32) / 255
    return torch.from_numpy(((small - MEAN) / DEVIATION).astype(np.float32)).permute(2, 0, 1)[None]


def matte_of(module, rgb: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.sigmoid(module(normalised(rgb)))[0, 0].numpy()


@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_networks_input_is_within_one_level_of_pillow(started, height, width, seed):
    """Whatever the image's size, enlarged or reduced, each value is within one level of Pillow's bilinear."""
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    engine = started[0]
    network = engine._networks["u2netp"]
    with torch.inference_mode():
        engine._set_inputs(network, [rgb])
        values = network.inputs[0].permute(1, 2, 0).numpy()
    levels = (values * DEVIATION + MEAN) * 255

    assert np.abs(levels - image_to_network(rgb, 320, 320)).max() <= 1.01


@pytest.mark.slow
def test_the_embedded_model_is_applied_as_its_authors_do(engine, canvas):
    """Through the engine the alpha of an image is that of the network by itself, within two levels."""
    rgb = ball(400, 517)
    work = canvas.place(1, rgb)
    engine.segment([work])
    matte = matte_of(build_u2netp(device="cpu", dtype=torch.float32), rgb)
    expected = np.rint(255 * matte_to_image(matte, *rgb.shape[:2]))

    assert np.abs(canvas.slot(work).rgba[..., 3] - expected).max() <= 2


@pytest.mark.parametrize("clean", [False, True])
def test_an_rgba_plane_is_matte_resized_and_composed(engine, network, canvas, clean):
    """The cutout is that of the parts by themselves: network, resize, compose; alpha within five levels for this
    steep network, which turns one level of its input into 4.5 of alpha."""
    rgb = ball(400, 517)
    source_alpha = np.full(rgb.shape[:2], 200, np.uint8)
    work = canvas.place(1, rgb, source_alpha=source_alpha, clean=clean)
    engine.segment([work])
    alpha = matte_to_image(matte_of(green, rgb), *rgb.shape[:2])
    expected = np.empty((*rgb.shape[:2], 4), np.uint8)
    compose_rgba(rgb, alpha, source_alpha, expected, clean=clean)
    result = canvas.slot(work)

    assert np.abs(result.rgba[..., 3].astype(int) - expected[..., 3]).max() <= 5
    assert (np.array_equal(result.rgba[..., :3], rgb)) != clean
    assert np.array_equal(result.rgb, rgb)


@pytest.mark.parametrize("output", [OutputPlane.ALPHA8, OutputPlane.ALPHA16])
def test_a_mask_plane_holds_the_alpha_alone(engine, network, canvas, output):
    """Alpha at 8 and at 16 bits, within five levels of 255."""
    rgb = ball(300, 200)
    work = canvas.place(1, rgb, output=output)
    engine.segment([work])
    expected = np.empty_like(canvas.slot(work).alpha)
    quantise_alpha(matte_to_image(matte_of(green, rgb), *rgb.shape[:2]), None, expected)
    step = 257 if output is OutputPlane.ALPHA16 else 1

    assert np.abs(canvas.slot(work).alpha.astype(int) - expected).max() <= 5 * step


def test_an_image_is_the_same_in_company_and_alone(engine, network, canvas):
    """Neighbours in a batch change nothing."""
    noise = np.random.default_rng(1).integers(0, 256, (333, 444, 3), np.uint8)
    works = [canvas.place(n, rgb) for n, rgb in enumerate([ball(320, 320), noise, ball(100, 900)])]
    report = engine.segment(works)
    together = [canvas.slot(work).rgba.copy() for work in works]
    for work in works:
        engine.segment([work])

    assert [(a.image_id, a.batch) for a in report.answers] == [(0, 3), (1, 3), (2, 3)]
    for work, image in zip(works, together, strict=True):
        assert np.array_equal(canvas.slot(work).rgba, image)


def test_the_report_measures_the_matte(engine, network, canvas):
    """Coverage, peak, solid and soft shares are those of the network's alpha."""
    rgb = ball(240, 320)
    matte = engine.segment([canvas.place(1, rgb)]).answers[0].matte
    expected = matte_of(green, rgb)

    assert matte.coverage == pytest.approx(expected.mean(), abs=5e-3)
    assert matte.peak == pytest.approx(expected.max(), abs=2e-2)
    assert matte.solid == pytest.approx((expected >= 0.5).mean(), abs=1e-2)
    assert matte.soft == pytest.approx(((expected > 0.05) & (expected < 0.95)).mean(), abs=1e-2)


def test_one_alpha_that_is_not_finite_spoils_the_batch_and_writes_nothing(engine, network, canvas):
    """NaN for one image raises EngineNonsense that names its place; no plane of the batch was touched."""
    works = [canvas.place(n, ball(200, 200)) for n in range(2)]

    def half_nan(inputs: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(inputs), 1, 320, 320)
        logits[1, 0, 5, 5] = float("nan")
        return logits

    network.module = half_nan
    with pytest.raises(EngineNonsense, match=r"images \[1\] of a batch of 2"):
        engine.segment(works)

    assert all((canvas.slot(work).rgba == 7).all() for work in works)


@pytest.mark.slow
def test_shortage_of_memory_is_named(engine, network, canvas):
    """What torch's allocator for the CPU really says becomes EngineMemory; the engine answers afterwards."""
    work = canvas.place(1, ball(200, 200))
    network.module = lambda inputs: torch.empty(1 << 50)
    with pytest.raises(EngineMemory, match="memory"):
        engine.segment([work])
    network.module = green

    assert engine.segment([work]).answers[0].image_id == 1


def test_a_bug_is_not_taken_for_shortage_of_memory(engine, network, canvas):
    """Other errors of torch stay what they are."""
    network.module = lambda inputs: torch.zeros(2, 3) @ torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        engine.segment([canvas.place(1, ball(200, 200))])


def test_weights_that_answer_wrongly_do_not_start(arena, monkeypatch):
    """An embedded model that no longer finds the ball on the golden image raises EngineNonsense."""
    real = torch_engine.load_model

    def spoilt(*arguments, **keywords):
        loaded = real(*arguments, **keywords)
        loaded.module.fuse.bias.data -= 20.0
        return loaded

    monkeypatch.setattr(torch_engine, "load_model", spoilt)
    with pytest.raises(EngineNonsense, match="golden image came out wrong"):
        CpuBackend(arena.block, OPTIONS).start()


def test_a_model_that_is_not_there_is_the_operators_fault(arena):
    """An unknown source raises ModelError that says what to do."""
    options = Options({"x": ModelChoice("birefnet")}, Path("/nonexistent"))
    with pytest.raises(ModelError, match="rmbgd models fetch birefnet"):
        CpuBackend(arena.block, options).start()


def test_only_measured_sizes_are_offered(arena, monkeypatch):
    """With no time to measure only single images go; with time, every size up to the maximum of the CPU."""
    real = torch_engine.load_model

    def quick(*arguments, **keywords):
        provenance = real(*arguments, **keywords).provenance
        return SimpleNamespace(module=green, provenance=replace(provenance, model="green"))

    monkeypatch.setattr(torch_engine, "load_model", quick)
    monkeypatch.setattr(torch_engine, "MEASURE_SECONDS", 0.0)
    hasty = CpuBackend(arena.block, OPTIONS).start()
    monkeypatch.setattr(torch_engine, "MEASURE_SECONDS", 1000.0)
    patient = CpuBackend(arena.block, OPTIONS).start()

    assert hasty.batch_sizes == (1,)
    assert patient.batch_sizes == (1, 2, 4)
    assert set(patient.seconds) == {1, 2, 4}


def test_the_description_says_what_was_loaded(started):
    """Digest, licence, precision and the overlap on the golden image stand in the description, fit for JSON."""
    description = started[1]
    facts = description.models["u2netp"]

    assert description.device == "cpu"
    assert len(facts["sha256"]) == 64
    assert (facts["licence"], facts["precision"]) == ("Apache-2.0", "float32")
    assert facts["overlap"] > 0.98
    assert json.loads(json.dumps(facts))["model"] == "u2netp"


def test_the_known_image_is_the_same_everywhere():
    """Its bytes are drawn by a formula and do not drift; its matte covers the ball."""
    rgb, truth = golden_image.golden_image()

    assert rgb.shape == (240, 320, 3)
    assert truth.mean() == pytest.approx(np.pi * 72**2 / (240 * 320), abs=1e-3)
    assert golden_image.overlap(truth, truth) == 1.0
    assert golden_image.overlap(0 * truth, truth) == 0.0
    assert golden_image.overlap(0 * truth, 0 * truth) == 1.0


@pytest.mark.integration
def test_the_real_child_cuts_out_the_ball(arena, canvas):
    """The whole way: process, shared memory, embedded model; the ball stands alone on full transparency."""
    options = {"models": {"u2netp": {"source": "u2netp"}}, "models_directory": "/nonexistent", "threads": 1}
    worker = EngineWorker(
        arena,
        "rmbgd.backends.factory:create",
        options,
        start_timeout=PATIENCE,
        batch_timeout=PATIENCE,
        on_output=print,
    )
    rgb, truth = golden_image.golden_image()
    work = canvas.place(1, rgb)
    try:
        worker.start()
        report = worker.run([work])
    finally:
        worker.close()
    alpha = canvas.slot(work).rgba[..., 3] / np.float32(255)

    assert golden_image.overlap(alpha, truth) > 0.98
    assert alpha[:20].max() < 0.02
    assert set(report.milliseconds) == {"resize", "network", "finish"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_engine_is_as_good_as_the_network_alone(engine, canvas):
    """On the 80 photographs with ground truth, through the whole engine: mean IoU >= 0.857, mean error <= 0.033."""
    folder = shared("eval")
    with (folder / "MANIFEST.tsv").open(newline="") as manifest:
        rows = [row for row in csv.DictReader(manifest, delimiter="\t") if row["gt"] != "-"]
    overlaps, errors = [], []
    for row in rows:
        with Image.open(folder / row["photo"]) as photo, Image.open(folder / row["gt"]) as mask:
            canvas.offset = 0
            work = canvas.place(1, np.asarray(photo.convert("RGB")), output=OutputPlane.ALPHA16)
            truth = np.asarray(mask.convert("L"))
        engine.segment([work])
        alpha = canvas.slot(work).alpha / np.float32(65535)
        counted = truth != 128 if row["id"].startswith("pet") else np.ones_like(truth, bool)
        wanted = truth / np.float32(255)
        errors.append(np.abs(alpha - wanted)[counted].mean())
        inside, subject = (alpha > 0.5) & counted, (wanted > 0.5) & counted
        overlaps.append((inside & subject).sum() / (inside | subject).sum())

    print(f"IoU {np.mean(overlaps):.4f}, MAE {np.mean(errors):.4f}")
    assert len(rows) == 80
    assert np.mean(overlaps) >= 0.857
    assert np.mean(errors) <= 0.033


# --- looks between two batches


@pytest.mark.slow
def test_the_known_image_is_the_same_each_time(engine):
    """On the CPU bit for bit; it is the ball's matte, near the truth."""
    first, second = engine.golden("u2netp"), engine.golden("u2netp")

    assert np.array_equal(first.alpha, second.alpha)
    assert first.alpha.dtype == np.float32
    assert np.abs(first.alpha - golden_image.golden_image()[1]).mean() < 0.02
    assert first.seconds > 0


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), EngineMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), EngineLost),
    ],
)
def test_torch_s_own_classes_are_recognised(engine, network, monkeypatch, error, fault):
    """What the device raises in the middle of a batch becomes the fault it is."""

    def fails(inputs):
        raise error

    monkeypatch.setattr(network, "module", fails)
    with pytest.raises(fault):
        engine.golden("u2netp")
