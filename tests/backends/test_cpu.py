"""The backend on the CPU: exact resizing, nothing written before all is known, the embedded model's accuracy."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rmbgd.backends.cpu import backend as cpu
from rmbgd.backends.cpu import torch_network
from rmbgd.backends.cpu.backend import CpuBackend
from rmbgd.backends.planes import DEVIATION, MEAN
from rmbgd.engine import golden_image
from rmbgd.engine.types import ModelChoice, Options, OutputPlane
from rmbgd.errors import EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.models.registry import REGISTRY
from rmbgd.models.u2net import build_u2netp
from rmbgd.resampling import Filter
from tests.backends.conftest import OPTIONS, ball
from tests.support.shared_data import shared


@pytest.fixture(scope="module")
def started(arena):
    """A backend with the embedded model, and what it said of itself."""
    engine = CpuBackend(arena.block, OPTIONS)
    description = engine.start()
    yield engine, description
    engine.close()


@pytest.fixture
def engine(started):
    return started[0]


@pytest.fixture
def network(engine, monkeypatch):
    """Of the engine, quick for the duration of a test."""
    monkeypatch.setattr(engine._networks["u2netp"], "module", green)
    return engine._networks["u2netp"]


def green(inputs: torch.Tensor) -> torch.Tensor:
    return 4 * inputs[:, 1:2]


def matte_of(module, rgb: np.ndarray) -> np.ndarray:
    """By the registry's filter and the authors' levels (/255, mean and deviation): float32 [320, 320]."""
    small = image_to_network(rgb, (320, 320), REGISTRY["u2netp"].filter).astype(np.float32) / 255
    inputs = torch.from_numpy(((small - MEAN) / DEVIATION).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return torch.sigmoid(module(inputs))[0, 0].numpy()


@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_networks_input_is_within_one_level_of_the_hosts_resize(started, height, width, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    network = started[0]._networks["u2netp"]
    with patch.object(network, "module", green):
        network.infer([rgb])
    values = network.inputs[0].permute(1, 2, 0).numpy()
    levels = (values * DEVIATION + MEAN) * 255
    assert np.abs(levels - image_to_network(rgb, (320, 320), REGISTRY["u2netp"].filter)).max() <= 1.01


@pytest.mark.slow
def test_the_embedded_model_is_applied_as_its_authors_do(engine, canvas):
    """Alpha is that of the network by itself, which turns a level of its input into some: within two of 255."""
    rgb = ball(400, 517)
    work = canvas.place(1, rgb, output=OutputPlane.ALPHA8)
    engine.segment([work])
    network = build_u2netp(device="cpu", dtype=torch.float32)
    expected = np.rint(255 * matte_to_image(matte_of(network, rgb), *rgb.shape[:2]))
    difference = np.abs(canvas.plane(work) - expected)
    assert difference.max() <= 2
    assert difference.mean() <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_embedded_model_cuts_out_photographs(engine, canvas):
    """On the 80 with ground truth at least what rembg reaches with the same weights (0.8694 and 0.0306)."""
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
        # 128 in the pets' masks means "ignore"
        counted = truth != 128 if row["id"].startswith("pet") else np.ones_like(truth, bool)
        wanted = truth / np.float32(255)
        errors.append(np.abs(alpha - wanted)[counted].mean())
        inside, subject = (alpha > 0.5) & counted, (wanted > 0.5) & counted
        overlaps.append((inside & subject).sum() / (inside | subject).sum())
    print(f"IoU {np.mean(overlaps):.4f}, MAE {np.mean(errors):.4f}")
    assert len(rows) == 80
    assert np.mean(overlaps) >= 0.8694
    assert np.mean(errors) <= 0.0306


@pytest.mark.parametrize(("output", "clean"), [(OutputPlane.RGBA8, False), *((each, True) for each in OutputPlane)])
def test_a_plane_is_matte_resized_and_composed(engine, network, canvas, output, clean):
    """Alpha within five levels: this steep network turns one level of its input into 4.5."""
    rgb, source_alpha = ball(400, 517), np.full((400, 517), 200, np.uint8)
    work = canvas.place(1, rgb, source_alpha=source_alpha, output=output, clean=clean)
    engine.segment([work])
    matte, found = matte_to_image(matte_of(green, rgb), 400, 517), canvas.plane(work)
    expected = np.empty_like(found)
    if output is OutputPlane.RGBA8:
        compose_rgba(rgb, matte, source_alpha, expected, clean=clean)
        assert np.array_equal(found[..., :3], rgb) != clean
        found, expected = found[..., 3], expected[..., 3]
    else:
        quantise_alpha(matte, source_alpha, expected)
    assert np.abs(found.astype(int) - expected).max() <= 5 * (257 if output is OutputPlane.ALPHA16 else 1)
    assert np.array_equal(canvas.slot(work).rgb, rgb)


@pytest.mark.parametrize(("width", "refined"), [(640, False), (660, True)])
def test_alpha_is_refined_where_the_image_is_much_larger_and_the_work_says_so(engine, network, canvas, width, refined):
    """What is reported of the matte is the network's in any case."""
    work = canvas.place(1, ball(400, width), output=OutputPlane.ALPHA16)
    answers, planes = [], []
    for refine in (True, False):
        answers += engine.segment([replace(work, refine=refine)]).answers
        planes.append(canvas.plane(work))
    assert answers[0] == answers[1]
    assert np.array_equal(*planes) != refined


def test_an_image_is_the_same_in_company_and_alone(engine, network, canvas):
    noise = np.random.default_rng(1).integers(0, 256, (333, 444, 3), np.uint8)
    works = [canvas.place(n, rgb) for n, rgb in enumerate([ball(320, 320), noise, ball(100, 900)])]
    report = engine.segment(works)
    together = [canvas.plane(work) for work in works]
    for work in works:
        engine.segment([work])
    assert [(a.image_id, a.batch) for a in report.answers] == [(0, 3), (1, 3), (2, 3)]
    assert all(np.array_equal(canvas.plane(work), plane) for work, plane in zip(works, together, strict=True))


def test_the_report_measures_the_matte(engine, network, canvas):
    rgb = ball(240, 320)
    matte = engine.segment([canvas.place(1, rgb)]).answers[0].matte
    expected = matte_of(green, rgb)
    soft = (expected > 0.05) & (expected < 0.95)
    wanted = [expected.mean(), expected.max(), (expected >= 0.5).mean(), soft.mean()]
    assert [matte.coverage, matte.peak, matte.solid, matte.soft] == pytest.approx(wanted, abs=5e-3)


def leaning(inputs: torch.Tensor) -> torch.Tensor:
    """A network that sees less on the right than on the left: soft everywhere, and other where the frame is wider."""
    return green(inputs) / 8 + torch.linspace(1.5, -1.5, inputs.shape[3])


@pytest.mark.parametrize("width", [320, 500, 700])
def test_a_second_look_tells_how_far_the_wider_image_disagrees(engine, network, canvas, width):
    """As computed plainly; the output is the same byte for byte, and an image that does not ask is not looked at."""
    network.module = leaning
    rgb = np.random.default_rng(3).integers(60, 200, (300, width, 3), np.uint8)
    plain = canvas.place(1, rgb)
    works = [plain, replace(canvas.place(2, rgb), second_look=True)]
    without, looked = (answer.matte for answer in engine.segment(works).answers)
    assert without == replace(looked, image_id=1, disagreement=None)
    around = cv2.copyMakeBorder(rgb, 50, 50, width // 6, width // 6, cv2.BORDER_REFLECT_101)
    within = matte_of(leaning, around)[40:280, 40:280]  # of 320: a sixth of the side by four thirds of it
    pair = matte_of(leaning, rgb), cv2.resize(within, (320, 320), interpolation=cv2.INTER_LINEAR)
    expected = 1 - np.minimum(*pair).sum() / np.maximum(*pair).sum()
    assert expected > 0.05
    assert looked.disagreement == pytest.approx(expected, abs=0.01)
    assert np.array_equal(*(canvas.plane(work) for work in works))


def test_a_sure_matte_gets_no_second_look(engine, network, canvas):
    network.module = Mock(side_effect=lambda inputs: 1e4 * green(inputs))
    work = replace(canvas.place(1, ball(300, 400)), second_look=True)
    assert engine.segment([work]).answers[0].matte.disagreement is None
    assert network.module.call_count == 1


def test_a_wider_image_without_finite_alpha_says_nothing(engine, network, canvas):
    factors = iter([1.0, np.nan])
    network.module = lambda inputs: leaning(inputs) * next(factors)
    work = replace(canvas.place(1, ball(300, 400)), second_look=True)
    assert engine.segment([work]).answers[0].matte.disagreement is None
    assert next(factors, None) is None


def test_one_alpha_that_is_not_finite_spoils_the_batch_and_writes_nothing(engine, network, canvas):
    works = [canvas.place(n, ball(200, 200)) for n in range(2)]
    logits = torch.zeros(2, 1, 320, 320)
    logits[1, 0, 5, 5] = float("nan")
    network.module = lambda _: logits
    with pytest.raises(EngineNonsense, match=r"images \[1\] of a batch of 2"):
        engine.segment(works)
    assert all((canvas.plane(work) == 7).all() for work in works)


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        pytest.param(lambda _: torch.empty(1 << 50), EngineMemory, "memory", marks=pytest.mark.slow),
        (Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to")), EngineMemory, "Tried to"),
        (Mock(side_effect=torch.AcceleratorError("CUDA error: unspecified launch failure")), EngineLost, "failure"),
        (lambda _: torch.zeros(2, 3) @ torch.zeros(2, 3), RuntimeError, "shapes cannot be multiplied"),
    ],
    ids=["no memory on the host", "no memory", "lost", "a bug"],
)
def test_an_error_of_torch_becomes_the_fault_that_it_is(engine, network, canvas, module, error, text):
    """What torch really says or raises; a bug stays what it is. The backend answers afterwards."""
    work = canvas.place(1, ball(200, 200))
    network.module = module
    with pytest.raises(error, match=text):
        engine.segment([work])
    network.module = green
    assert engine.segment([work]).answers[0].image_id == 1


def test_weights_that_answer_wrongly_do_not_start(arena, monkeypatch):
    real = torch_network.load_model

    def spoilt(*arguments, **keywords):
        loaded = real(*arguments, **keywords)
        loaded.module.fuse.bias.data -= 20.0
        return loaded

    monkeypatch.setattr(torch_network, "load_model", spoilt)
    with pytest.raises(EngineNonsense, match="golden image came out wrong"):
        CpuBackend(arena.block, OPTIONS).start()


def test_a_model_that_is_not_there_is_the_operators_fault(arena):
    options = Options({"x": ModelChoice("birefnet")}, Path("/nonexistent"))
    with pytest.raises(ModelError, match="rmbgd models fetch birefnet"):
        CpuBackend(arena.block, options).start()


def test_only_measured_sizes_are_offered(arena, monkeypatch):
    """With no time to measure only single images go; with time, every size up to the maximum of the CPU."""
    real = torch_network.load_model

    def quick(*arguments, **keywords):
        provenance = real(*arguments, **keywords).provenance
        return SimpleNamespace(module=green, filter=Filter.BILINEAR, provenance=replace(provenance, model="green"))

    monkeypatch.setattr(torch_network, "load_model", quick)
    for seconds, sizes in ((0.0, (1,)), (1000.0, (1, 2, 4))):
        monkeypatch.setattr(cpu, "MEASURE_SECONDS", seconds)
        found = CpuBackend(arena.block, replace(OPTIONS, batch_maximum=16)).start()
        assert found.batch_sizes == tuple(found.seconds) == sizes


def test_the_description_says_what_was_loaded(started):
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


def test_between_batches_the_golden_image_is_the_same_each_time_and_memory_is_sound(engine):
    first, second = engine.golden("u2netp"), engine.golden("u2netp")
    assert np.array_equal(first.alpha, second.alpha)
    assert first.alpha.dtype == np.float32
    assert np.abs(first.alpha - golden_image.golden_image()[1]).mean() < 0.02
    assert first.seconds > 0
    assert [engine.canary(1500).bad for _ in range(2)] == [0, 0]
