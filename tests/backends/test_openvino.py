"""u2netp in OpenVINO: the same alpha as torch's, chosen where it serves, in a process that never loads torch."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rmbgd.backends.cpu import backend as cpu
from rmbgd.backends.cpu import openvino_network
from rmbgd.backends.cpu.backend import CpuBackend
from rmbgd.backends.cpu.openvino_network import OpenVinoNetwork
from rmbgd.backends.cpu.torch_network import TorchNetwork
from rmbgd.engine import ipc
from rmbgd.engine.arena import Arena
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import ModelChoice
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ModelError
from tests.backends.conftest import OPTIONS, ball

pytest.importorskip("openvino")

AUTO = replace(OPTIONS, cpu_runtime="auto")
U2NETP = ModelChoice("u2netp")


@pytest.fixture(scope="module")
def networks() -> tuple[OpenVinoNetwork, TorchNetwork]:
    here = Path("/nonexistent")
    plain = TorchNetwork(U2NETP, here, precision="float32", threads=1, batch_maximum=4)
    return OpenVinoNetwork(U2NETP, here, precision="float32", threads=1), plain


def test_alpha_is_that_of_torch(networks):
    """From the same input, on noise and on a subject: everywhere, edges and corners included."""
    noise = np.random.default_rng(3).integers(0, 256, (320, 320, 3), np.uint8)
    images = [noise, ball(320, 320).copy()]
    ours, torchs = (network.infer(images) for network in networks)
    assert ours.shape == torchs.shape == (2, 320, 320)
    assert np.abs(ours - torchs).max() <= 1e-4


def test_images_of_any_size_go_through_the_same_filter(networks):
    """Rounding to bytes before the network moves alpha a little."""
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((1, 1, 3), (2, 900, 3), (700, 33, 3), (480, 640, 3))]
    ours, torchs = (network.infer(images) for network in networks)
    assert 255 * np.abs(ours - torchs).mean() <= 0.5


def test_bfloat16_stays_near_float32(networks):
    quick = OpenVinoNetwork(U2NETP, Path("/nonexistent"), precision="bfloat16", threads=1)
    rgb = golden_image()[0]
    assert 255 * np.abs(quick.infer([rgb]) - networks[0].infer([rgb])).mean() <= 2.0


def test_auto_takes_openvino_and_says_so(arena, canvas):
    engine = CpuBackend(arena.block, AUTO)
    description = engine.start()
    facts = description.models["u2netp"]
    assert (facts["runtime"], facts["licence"], facts["sha256_agrees_with"]) == (
        "openvino",
        "Apache-2.0",
        ("the registry",),
    )
    assert facts["overlap"] > 0.98
    assert description.limits == []
    assert "openvino" in description.detail
    work = canvas.place(7, ball(333, 222))
    report = engine.segment([work])
    assert report.answers[0].image_id == 7
    assert not (canvas.plane(work) == 7).all()
    assert engine.canary(64).bad == 0
    engine.close()


@pytest.mark.parametrize(
    ("raised", "asked", "said"),
    [
        (ImportError("No module named 'openvino'"), "auto", "OpenVINO needs openvino: pip install 'rmbgd[openvino]'"),
        (ImportError("No module named 'openvino'"), "openvino", "pip install 'rmbgd[openvino]'"),
        (
            RuntimeError("Exception from src/core.cpp:117:\nException from src/plugin.cpp:54:\nbad combination\n\n"),
            "auto",
            "RuntimeError: bad combination",
        ),
    ],
)
def test_torch_serves_where_openvino_does_not(arena, monkeypatch, raised, asked, said):
    """Said once."""

    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(cpu, "OpenVinoNetwork", refuse)
    description = CpuBackend(arena.block, replace(OPTIONS, cpu_runtime=asked)).start()
    assert description.models["u2netp"]["runtime"] == "torch"
    (limit,) = description.limits
    assert limit.what == "openvino"
    assert limit.detail.endswith(said)


def test_a_precision_that_openvino_has_not_is_torchs(arena):
    description = CpuBackend(arena.block, replace(AUTO, precision="float16")).start()
    facts, (limit,) = description.models["u2netp"], description.limits
    assert (facts["runtime"], facts["precision"]) == ("torch", "float16")
    assert limit.detail.endswith("OpenVINO does not compute in float16 on a CPU")


def test_a_processor_without_avx2_is_torchs(arena, monkeypatch):
    monkeypatch.setattr(cpu.openvino_network, "_lacks_avx2", lambda _: True)
    description = CpuBackend(arena.block, AUTO).start()
    assert description.models["u2netp"]["runtime"] == "torch"
    assert "this processor has no AVX2" in description.limits[0].detail


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "fits"),
    [
        ("x86_64", "model name\t: X\nflags\t\t: fpu avx avx2 fma\n", True),
        ("x86_64", "model name\t: X\nflags\t\t: fpu avx\n", False),
        ("x86_64", "nothing of the kind\n", True),
        ("aarch64", "Features\t: fp asimd\n", True),
    ],
)
def test_a_processor_is_known_by_its_flags(tmp_path, monkeypatch, machine, cpuinfo, fits):
    """One that does not say is tried."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert (openvino_network.unfit("auto", tmp_path / "cpuinfo") == "") == fits
    assert openvino_network.unfit("auto", tmp_path / "missing") == ""


def test_a_quota_of_the_control_group_bounds_the_threads(arena, monkeypatch):
    monkeypatch.setattr(cpu, "usable_cores", lambda: 1)
    engine = CpuBackend(arena.block, replace(AUTO, threads=0))
    assert engine.start().detail["threads"] == 1
    compiled = engine._networks["u2netp"]._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


SIGNALLED = """
import faulthandler, gc, os, signal
from rmbgd.backends.cpu.openvino_network import OpenVinoNetwork, multiplies_bfloat16
from rmbgd.engine.types import ModelChoice
from pathlib import Path

faulthandler.enable()
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
made = [OpenVinoNetwork(ModelChoice("u2netp"), Path("/nonexistent"), precision="float32", threads=1) for _ in "ab"]
multiplies_bfloat16()
while made:
    made.pop(0)
    gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.integration
def test_networks_that_come_and_go_leave_signals_alone():
    """As with any number of cores: the second that went left the thread with a stack that is not there any more."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")


def test_openvino_that_answers_wrongly_is_left_for_torch(arena, monkeypatch):
    monkeypatch.setattr(OpenVinoNetwork, "infer", lambda _, images: np.zeros((len(images), 320, 320), np.float32))
    description = CpuBackend(arena.block, AUTO).start()
    assert description.models["u2netp"]["runtime"] == "torch"
    assert "golden image came out wrong" in description.limits[0].detail


def test_weights_that_are_not_what_is_stated_are_the_operators_matter(arena):
    """No other runtime is tried with them."""
    with pytest.raises(ModelError, match=r"sha256 is .* but the setting states"):
        CpuBackend(arena.block, replace(AUTO, models={"u2netp": ModelChoice("u2netp", sha256="0" * 64)})).start()


def test_a_network_without_a_graph_runs_in_torch(arena):
    with pytest.raises(ModelError, match="rmbgd models fetch birefnet"):
        CpuBackend(arena.block, replace(AUTO, models={"x": ModelChoice("birefnet")})).start()


@pytest.mark.integration
def test_the_engines_process_loads_neither_torch_nor_pydantic():
    """Seen in the files that the kernel has mapped for the real process, after an image."""
    output: list[str] = []
    options = {"models": {"u2netp": {"source": "u2netp"}}, "models_directory": "/nonexistent"}
    with Arena(16 << 20) as arena:
        worker = EngineWorker(
            arena,
            "rmbgd.backends.factory:create",
            options,
            start_timeout=120,
            batch_timeout=120,
            on_output=output.append,
        )
        description = worker.start()
        worker.golden("u2netp")
        maps = Path(f"/proc/{worker.pid}/maps").read_text()
        worker.close()
    assert description.models["u2netp"]["runtime"] == "openvino"
    assert "libopenvino" in maps
    assert "libtorch" not in maps
    assert "pydantic" not in maps
    assert output == []


def test_what_the_process_says_of_itself_crosses_to_the_parent(arena):
    description = CpuBackend(arena.block, AUTO).start()
    assert ipc.to_description(ipc.from_description(description)).batch_sizes == (1,)
    assert torch.__version__ not in description.detail.values()
    assert sys.modules["openvino"].get_version().startswith(str(description.detail["openvino"]))
