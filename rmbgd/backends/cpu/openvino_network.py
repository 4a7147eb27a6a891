"""A network on the CPU in OpenVINO: half the processor time of PyTorch for u2netp, and a process without torch.

Images go one by one: a batch saves nothing in processor time, and a model for each size would have to be compiled.
"""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.types import ModelChoice
from rmbgd.imaging.resize import image_to_network
from rmbgd.models.checkpoint import read_header
from rmbgd.models.provenance import Claim
from rmbgd.models.registry import Architecture
from rmbgd.models.store import StoredModel
from rmbgd.models.u2net_openvino import build

TYPES = {"float32": "f32", "bfloat16": "bf16"}


def covers(model: StoredModel) -> bool:
    """Whether there is a graph for this network."""
    return model.entry is not None and model.entry.architecture is Architecture.U2NETP


def unfit(precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Why OpenVINO is not to compute in this precision, or not on this processor; empty where it may."""
    if precision not in {"auto", *TYPES}:
        return f"OpenVINO does not compute in {precision} on a CPU"
    if platform.machine() == "x86_64" and _lacks_avx2(cpuinfo):
        return "this processor has no AVX2, without which OpenVINO takes more than twice the time of torch"
    return ""


def _lacks_avx2(cpuinfo: Path) -> bool:
    try:
        flags = next(line for line in cpuinfo.read_text(errors="replace").splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "avx2" not in flags.split()


@functools.cache
def core() -> Any:
    """The process's one openvino.Core. Raises ImportError without OpenVINO.

    Its plugin gives the thread a stack for signals and, at its end, the one from before, without a look whether that
    is still there: after the second of two that lived at a time, the next signal ended the process (2026.4, SIGSEGV).
    """
    import openvino

    return openvino.Core()


def multiplies_bfloat16() -> bool:
    """Whether OpenVINO says so of this processor. Raises ImportError without it."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoNetwork:
    sizes: tuple[int, ...] = (1,)

    def __init__(self, choice: ModelChoice, models: Path, *, precision: str, threads: int) -> None:
        """Raises ModelError; ImportError without OpenVINO, and RuntimeError for a processor that it does not serve."""
        import openvino

        began = time.monotonic()
        claim = Claim(choice.source, models, choice.sha256 or None)
        model = claim.model
        claim.hash()
        header = read_header(model.weights)
        self.size, self.filter, self.recurrent = model.input_size(), model.filter(), False
        settings = {
            "INFERENCE_PRECISION_HINT": TYPES[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the cores belong to decoders and encoders as well
        }
        compiled = core().compile_model(build(model.weights, self.size, SCALE, SHIFT), "CPU", settings)
        self._request: Any = compiled.create_infer_request()
        provenance = claim.provenance(
            header,
            architecture=Architecture.U2NETP.value,
            runtime="openvino",
            runtime_version=openvino.get_version().partition("-")[0],
            precision=precision,
            device="cpu",
            mapped_bytes=0,
            private_bytes=model.weights.stat().st_size,
            seconds=round(time.monotonic() - began, 3),
        )
        self.facts: dict[str, object] = provenance.facts()

    def infer(
        self, images: Sequence[NDArray[np.uint8]], previous: Sequence[NDArray[np.uint8] | None] = ()
    ) -> NDArray[np.float32]:
        assert not any(each is not None for each in previous)
        found = np.empty((len(images), *self.size), np.float32)
        for rgb, alpha in zip(images, found, strict=True):
            pixels = image_to_network(rgb, self.size, self.filter)
            self._request.infer({0: np.ascontiguousarray(pixels)[None]}, share_inputs=True)
            alpha[:] = self._request.get_output_tensor(0).data[0, 0]
        return found
