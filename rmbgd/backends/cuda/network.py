"""One network on a device: fixed input and output buffers, and a CUDA graph of all its kernels for each batch size.

The buffers lie outside the graphs' memory; a smaller batch uses the first entries of them. Also here: in which type the
network computes, and which quicker ways it may use, judged on the golden image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rmbgd.backends.cuda.device import CaptureFailed, CudaSeam
from rmbgd.backends.cuda.memory_plan import NetworkNeed
from rmbgd.backends.cuda.postprocess import FINITE, SUMMARY, check_kernels, summary
from rmbgd.backends.faults import fault_of
from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import Limit, ModelChoice
from rmbgd.errors import EngineNonsense
from rmbgd.models.inference import mattes, put_images
from rmbgd.models.kernels.runtime import use_kernels
from rmbgd.models.load import load_model

BFLOAT16_FROM = (8, 0)  # CUDA's compute capability: Ampere

GRAPH_TOLERANCE = 1 / 255
"""Largest difference of alpha between a graph and the same kernels launched one by one. Both should be equal to the
bit; a graph that reads memory which is no longer its own is far beyond this."""


def precision_of(asked: str, capability: tuple[int, int] | None) -> tuple[str, list[Limit]]:
    """(type, limits) for `asked`, as the settings have it. A device without a compute capability is a CPU."""
    if capability is None:
        return "float32" if asked == "auto" else asked, []
    if asked == "bfloat16" and capability < BFLOAT16_FROM:
        has = f"this device has {capability[0]}.{capability[1]}"
        detail = f"bfloat16 needs compute capability 8.0 (Ampere), {has}: float16 is used"
        return "float16", [Limit(asked, detail)]
    return "float16" if asked == "auto" else asked, []


def wider(precision: str, capability: tuple[int, int] | None) -> str:
    """The type to use where numbers become too large for `precision`; the same for the widest."""
    if precision == "float16" and capability is not None and capability >= BFLOAT16_FROM:
        return "bfloat16"
    return "float32"


@dataclass(frozen=True, slots=True)
class PrecisionGate:
    """Whether a quicker way to compute is near enough to the one it replaces, on the golden image.

    mean      largest mean difference of alpha
    far       a difference of alpha that few pixels may exceed
    fraction  of the pixels that may
    """

    mean: float
    far: float
    fraction: float

    def refusal(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
        """Why `found` does not pass, both float32 [h, w], or nothing."""
        difference = np.abs(found - expected)
        if not np.isfinite(difference).all():
            return "alpha of the golden image is not finite"
        mean, beyond = float(difference.mean()), float((difference > self.far).mean())
        if mean <= self.mean and beyond <= self.fraction:
            return ""
        return (
            f"alpha of the golden image is off by {255 * mean:.2f} levels on average ({255 * self.mean:.2f} are let "
            f"through), by more than {255 * self.far:.0f} in {100 * beyond:.2f} % of it ({100 * self.fraction:.2f} %)"
        )


KERNELS_GATE = PrecisionGate(mean=0.5 / 255, far=8 / 255, fraction=1e-3)
"""Triton's kernels against plain ones in the same type: both round, in other orders."""


class CudaNetwork:
    """`facts` for the log. Owned by the backend's thread.

    inputs   [batch, 3, h, w], channels last, normalised; empty until `allocate`
    mattes   float32 [batch, h, w]
    summary  float32 [batch, 5], see postprocess.summary
    seconds  of a batch, finish included, by its size, once measured
    """

    def __init__(self, device: CudaSeam, name: str, choice: ModelChoice, dtype: torch.dtype, models: Path) -> None:
        """Raises ModelError."""
        loaded = load_model(
            choice.source,
            device=device.torch,
            dtype=dtype,
            models=models,
            patch_order=choice.patch_order,
            sha256=choice.sha256 or None,
        )
        self.name = name
        self.module: nn.Module = loaded.module
        self.size: tuple[int, int] = loaded.input_size
        self.filter = loaded.filter
        self.facts: dict[str, object] = loaded.provenance.facts()
        self.seconds: dict[int, float] = {}
        self._device = device
        self._triton = False
        # BiRefNet reads its input in float32 where it matters; the small network computes in one type.
        self._input_dtype = torch.float32 if self.facts["architecture"] == "birefnet" else dtype
        self._scale = torch.tensor(SCALE, device=device.torch)
        self._shift = torch.tensor(SHIFT, device=device.torch)
        self._graphs: dict[int, Callable[[], object]] = {}  # replays by batch size
        self.inputs = self._empty_inputs(0)
        self.mattes = torch.empty((0, *self.size), device=device.torch)
        self.summary = torch.empty((0, SUMMARY), device=device.torch)

    def use_kernels(self) -> str:
        """Triton's kernels from now on: why not, or nothing. Compiles them if that was not done before.

        Those that finish images belong to them."""

        def choose(triton: bool) -> None:
            self._triton = triton
            use_kernels(self.module, triton=triton)
            if triton:
                with self._device.compute_stream():
                    check_kernels(self._device.torch)

        return self._try(partial(choose, True), partial(choose, False), KERNELS_GATE)

    @property
    def triton(self) -> bool:
        return self._triton

    def _try(self, change: Callable[[], object], undo: Callable[[], object], gate: PrecisionGate) -> str:
        """`change`, undone if it fails or if the gate refuses what it makes of the golden image: why, or nothing."""
        expected = self._golden_alpha()
        try:
            change()
            why = gate.refusal(self._golden_alpha(), expected)
        except Exception as error:
            if fault_of(error) is not None:  # of the device, and not of this way to compute
                raise
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if why:
            undo()
        return why

    def is_finite(self) -> bool:
        """Whether the golden image comes out as numbers: in float16 large activations become infinite."""
        return bool(np.isfinite(self._golden_alpha()).all())

    def _golden_alpha(self) -> NDArray[np.float32]:
        inputs = self._empty_inputs(1)
        with self._device.compute_stream():
            rgb = torch.from_numpy(golden_image()[0]).to(self._device.torch)
            self._put([rgb], inputs)
            alpha, stats = self._forward(inputs)
        found = np.array(alpha[0].cpu().numpy(), np.float32)
        return found if float(stats[0, FINITE]) == 1.0 else np.full_like(found, np.nan)

    def measure_need(self) -> NetworkNeed:
        """Bytes, measured on batches of one and two, in memory that is freed again."""
        inputs = self._empty_inputs(2).zero_()
        # One image twice: libraries take their workspaces at the first run.
        _, one, two = (self._device.peak_bytes(partial(self._forward, inputs[:count])) for count in (1, 1, 2))
        each = max(0, two - one)
        pixels = self.size[0] * self.size[1]
        return NetworkNeed(max(0, one - each), each, static=(3 * inputs.element_size() + 4) * pixels)

    def allocate(self, batch: int) -> None:
        self.inputs = self._empty_inputs(batch).zero_()
        self.mattes = torch.zeros((batch, *self.size), device=self._device.torch)
        self.summary = torch.zeros((batch, SUMMARY), device=self._device.torch)

    def set_inputs(self, first: int, images: Sequence[Tensor]) -> None:
        """Resize and normalise images, uint8 [H, W, 3] on the device, into the inputs from `first` on."""
        self._put(images, self.inputs[first:])

    def _put(self, images: Sequence[Tensor], inputs: Tensor) -> None:
        put_images(images, inputs, self._scale, self._shift, filter=self.filter, triton=self._triton)

    def set_resized(self, index: int, pixels: Tensor) -> None:
        """Normalise levels 0..255 at the network's size, [h, w, 3] of any type, on any device, into one input."""
        levels = pixels.to(self._device.torch)
        self.inputs[index] = (levels * self._scale + self._shift).permute(2, 0, 1)

    def run(self, size: int) -> None:
        """Compute the first `size` inputs, by the graph of that size if there is one."""
        self._graphs.get(size, partial(self._compute, size))()

    def golden_matte(self) -> NDArray[np.float32]:
        """The golden image, as images are computed: float32 [h, w]. Raises EngineNonsense."""
        with self._device.compute_stream():
            self.set_inputs(0, [torch.from_numpy(golden_image()[0]).to(self._device.torch)])
            self.run(1)
            stats, matte = self.summary[0].cpu(), self.mattes[0].cpu()
        if float(stats[FINITE]) != 1.0:
            raise EngineNonsense(f"alpha of the golden image is not finite ({self.name})")
        return np.array(matte.numpy(), np.float32)  # a copy: on the host it would be the network's own buffer

    def warm_up(self, size: int) -> Tensor:
        """Launch a batch of noise kernel by kernel, as libraries choose their algorithms and take their workspaces at
        the first: its mattes, float32 [size, h, w] on the host."""
        with self._device.compute_stream():
            self._fill_with_noise(size)
            self._compute(size)
            return self.mattes[:size].to("cpu", copy=True)

    def capture(self, size: int, expected: Tensor) -> str:
        """Capture the graph of batches of `size`: why it is not used, or nothing. `expected` is from `warm_up`.

        Raises what CudaSeam.capture_graph raises but CaptureFailed.
        """
        self._fill_with_noise(size)
        try:
            replay = self._device.capture_graph(partial(self._compute, size))
        except CaptureFailed as failure:
            return str(failure)
        if wrong := self._wrong_pixels(expected, replay):
            return f"the recording answers otherwise than its kernels do, in {wrong} pixels"
        self._graphs[size] = replay
        return ""

    def discard(self) -> None:
        """Graphs, inputs and outputs; `allocate` makes new ones."""
        self._graphs.clear()
        self.allocate(0)

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self._graphs))

    def _fill_with_noise(self, size: int) -> None:
        """Which differs from image to image, and is the same each time."""
        generator = torch.Generator(self._device.torch).manual_seed(size)
        with self._device.compute_stream():
            self.inputs[:size].normal_(generator=generator)

    def _wrong_pixels(self, expected: Tensor, replay: Callable[[], object]) -> int:
        """Of two replays together. Compared image by image, so that there need not be memory for more."""
        wrong = torch.zeros((), dtype=torch.int64, device=self._device.torch)
        with self._device.compute_stream():
            for _ in range(2):
                self.mattes.fill_(-1.0)
                replay()
                for found, image in zip(self.mattes, expected, strict=False):
                    close = torch.isclose(found, image.to(found.device), rtol=0, atol=GRAPH_TOLERANCE, equal_nan=True)
                    wrong += (~close).sum()
            return int(wrong)

    def _compute(self, size: int) -> None:
        alpha, stats = self._forward(self.inputs[:size])
        self.mattes[:size].copy_(alpha)
        self.summary[:size].copy_(stats)

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(mattes, summary) of inputs [b, 3, h, w]."""
        alpha, finite = mattes(self.module, inputs, triton=self._triton)
        return alpha, summary(alpha, finite)

    def _empty_inputs(self, count: int) -> Tensor:
        shape, on = (count, 3, *self.size), self._device.torch
        return torch.empty(shape, dtype=self._input_dtype, device=on, memory_format=torch.channels_last)
