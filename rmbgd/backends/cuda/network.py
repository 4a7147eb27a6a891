"""One network on a device: fixed input and output buffers, and a CUDA graph of all its kernels for each batch size.

The buffers lie outside the graphs' memory; a smaller batch uses the first entries of them. Also here: in which type the
network computes, and which quicker ways it may use, judged on the golden image.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rmbgd.backends.cuda.device import CaptureFailed, CudaSeam
from rmbgd.backends.cuda.memory_plan import BAND_PIXELS, NetworkNeed
from rmbgd.backends.cuda.postprocess import FINITE, SUMMARY, summary
from rmbgd.backends.cuda.resample import resize_to_network
from rmbgd.backends.faults import fault_of
from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import Limit, ModelChoice
from rmbgd.errors import EngineNonsense
from rmbgd.models.inference import mattes, put_images
from rmbgd.models.kernels.runtime import use_kernels
from rmbgd.models.layers import Linear
from rmbgd.models.load import load_model
from rmbgd.resampling import Filter

BFLOAT16_FROM = (8, 0)  # CUDA's compute capability: Ampere
FLOAT8_FROM = (8, 9)  # Ada; Hopper is 9.0

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_FEATURES = 384  # on both sides: below, scaling costs as much as the product saves
MULTIPLE = 16  # that the units ask of both sides

ROUNDS = 3  # of each batch size, measured at start
GRAPH_TOLERANCE = 1 / 255
"""Largest difference of alpha between a graph and the same kernels launched one by one. Both should be equal to the
bit; a graph that reads memory which is no longer its own is far beyond this."""


@dataclass(frozen=True, slots=True)
class Precision:
    """storage  of weights and activations: float32, float16 or bfloat16
    float8   whether products of the backbone go through float8
    """

    storage: str
    float8: bool = False
    limits: tuple[Limit, ...] = field(default=())


def precision_of(asked: str, capability: tuple[int, int] | None) -> Precision:
    """The type for `asked`, as the settings have it, on this device. A device without a capability is a CPU."""
    if capability is None:
        if asked == "float8":
            return Precision("float32", limits=(Limit("float8", "a CPU has no float8 products: float32 is used"),))
        return Precision("float32" if asked == "auto" else asked)
    if asked == "float8" and capability >= FLOAT8_FROM:
        return Precision("float16", float8=True)
    if asked == "float8":
        why = "float8 products need compute capability 8.9 (Ada, Hopper)"
    elif asked == "bfloat16" and capability < BFLOAT16_FROM:
        why = "bfloat16 needs compute capability 8.0 (Ampere)"
    else:
        return Precision("float16" if asked == "auto" else asked)
    detail = f"{why}, this device has {capability[0]}.{capability[1]}: float16 is used"
    return Precision("float16", limits=(Limit(asked, detail),))


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

FLOAT8_GATE = PrecisionGate(mean=1.5 / 255, far=8 / 255, fraction=5e-3)
"""Against float16: what bfloat16 may be off by, too."""


class Float8Linear(nn.Module):
    """A product of the backbone in float8 (e4m3), for units that have it (Ada, Hopper); replaces a half nn.Linear."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        scale = row_scales(linear.weight)
        self.register_buffer("weight", to_float8(linear.weight, scale))
        self.register_buffer("scale", scale.view(1, -1))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = row_scales(rows)
        product: Tensor = torch._scaled_mm(  # noqa: SLF001 - the one way to these units that torch has
            to_float8(rows, scale),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=False,
        )
        return product.to(self.dtype).view(*x.shape[:-1], self.out_features)

    def widened(self) -> nn.Linear:
        out_features, in_features = self.weight.shape
        linear = Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.float() * self.scale.t(), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.float(), requires_grad=False)
        return linear


def row_scales(rows: Tensor) -> Tensor:
    """float32 [n, 1]: what each row of [n, k] is divided by, so that its largest number is float8's largest."""
    largest = rows.detach().abs().amax(dim=1, keepdim=True).to(torch.float32)
    return largest.clamp(min=1e-12) / LARGEST


def to_float8(rows: Tensor, scale: Tensor) -> Tensor:
    """[n, k] in float8; nothing exceeds its range, because `scale` is the row's own."""
    return (rows.detach().to(torch.float32) / scale).clamp_(-LARGEST, LARGEST).to(FLOAT8)


def convert(network: nn.Module) -> dict[str, nn.Module]:
    """Replace every product that is wide enough by Float8Linear; the layers that were replaced, by name."""
    before: dict[str, nn.Module] = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            sides = (module.in_features, module.out_features)
            if min(sides) >= LEAST_FEATURES and all(side % MULTIPLE == 0 for side in sides):
                before[name] = module
                network.set_submodule(name, Float8Linear(module))
    return before


def restore(network: nn.Module, before: dict[str, nn.Module]) -> None:
    for name, module in before.items():
        network.set_submodule(name, module)


def widened(network: nn.Module) -> nn.Module:
    """Replace every Float8Linear by a float32 layer with the same weights, in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Float8Linear):
            network.set_submodule(name, module.widened())
    return network


class CudaNetwork:
    """`facts` for the log. Owned by the backend's thread.

    inputs   [batch, 3, h, w], channels last, normalised; empty until `allocate`
    mattes   float32 [batch, h, w]
    summary  float32 [batch, 5], see postprocess.summary
    seconds  of a batch, by its size, once measured
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
        self.is_float32 = dtype is torch.float32  # computing again in float32 gains nothing
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
        """Triton's kernels from now on: why not, or nothing. Compiles them if that was not done before."""

        def choose(triton: bool) -> None:
            self._triton = triton
            use_kernels(self.module, triton=triton)

        return self._try(partial(choose, True), partial(choose, False), KERNELS_GATE)

    def use_float8(self) -> str:
        """Wide products in float8 from now on: why not, or nothing."""
        before: dict[str, nn.Module] = {}
        return self._try(lambda: before.update(convert(self.module)), lambda: restore(self.module, before), FLOAT8_GATE)

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

    def _golden_alpha(self) -> NDArray[np.float32]:
        inputs = self._empty_inputs(1)
        with self._device.compute_stream():
            rgb = torch.from_numpy(golden_image()[0]).to(self._device.torch)
            self._put([rgb], inputs)
            alpha = self._forward(inputs)[0][0].cpu()
        return np.asarray(alpha.numpy(), np.float32)

    def measure_need(self) -> NetworkNeed:
        """Bytes, measured on batches of one and two, in memory that is freed again."""
        inputs = self._empty_inputs(2).zero_()
        # Twice: libraries take their workspaces at the first run.
        _, _, one, two = (self._device.peak_bytes(partial(self._forward, inputs[:count])) for count in (1, 2, 1, 2))
        each = max(0, two - one)
        pixels = self.size[0] * self.size[1]
        return NetworkNeed(max(0, one - each), each, static=(3 * inputs.element_size() + 4) * pixels)

    def allocate(self, batch: int) -> None:
        self.inputs = self._empty_inputs(batch).zero_()
        self.mattes = torch.zeros((batch, *self.size), device=self._device.torch)
        self.summary = torch.zeros((batch, SUMMARY), device=self._device.torch)

    def set_inputs(self, first: int, images: Sequence[Tensor]) -> None:
        """Resize and normalise images, uint8 [H, W, 3] on the device, into the inputs from `first` on."""
        small = all(image.shape[0] * image.shape[1] <= BAND_PIXELS for image in images)
        if self._triton or small or self.filter is not Filter.BILINEAR:
            self._put(images, self.inputs[first:])
            return
        for index, image in enumerate(images, start=first):
            self.set_resized(index, resize_to_network(image, self.size))

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

    def prepare(self, size: int, *, capture: bool) -> str:
        """Warm up for batches of `size`, and capture their graph: why it is not used, or nothing.

        What the graph computes from noise, which differs from image to image, is compared with what the kernels
        computed before: afterwards there may be no memory to run them beside it.
        """
        generator = torch.Generator(self._device.torch).manual_seed(size)
        with self._device.compute_stream():  # as later: libraries choose their algorithms and take workspaces now
            self.inputs[:size].normal_(generator=generator)
            self._compute(size)
            expected = self.mattes[:size].clone()
        if not capture:
            return ""
        try:
            replay = self._device.capture_graph(partial(self._compute, size))
        except CaptureFailed as failure:
            return str(failure)
        if wrong := self._wrong_pixels(expected, replay):
            return f"the recording answers otherwise than its kernels do, in {wrong} pixels"
        self._graphs[size] = replay
        return ""

    def discard_graphs(self) -> None:
        self._graphs.clear()

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self._graphs))

    def recompute(self, index: int) -> None:
        """One input again, all of it in float32, by plain kernels. Takes memory, and frees it."""
        wide = copy.deepcopy(self.module)
        use_kernels(wide, triton=False)
        wide = widened(wide).float()
        alpha, finite = mattes(wide, self.inputs[index : index + 1].float(), triton=False)
        self.mattes[index] = alpha[0]
        self.summary[index] = summary(alpha, finite)[0]

    def measure_seconds(self, sizes: Sequence[int]) -> None:
        """Seconds of each size, the median of some rounds, on the golden image."""
        with self._device.compute_stream():
            self.set_inputs(0, [torch.from_numpy(golden_image()[0]).to(self._device.torch)])
            self.inputs[1:] = self.inputs[:1]
        for size in sizes:
            self.seconds[size] = statistics.median(self._timed(size) for _ in range(ROUNDS))

    def _timed(self, size: int) -> float:
        self._device.synchronize()
        began = time.perf_counter()
        with self._device.compute_stream():
            self.run(size)
        self._device.synchronize()
        return time.perf_counter() - began

    def _wrong_pixels(self, expected: Tensor, replay: Callable[[], object]) -> int:
        """Of two replays together; `expected` float32 [size, h, w]."""
        found = self.mattes[: len(expected)]
        wrong = torch.zeros((), dtype=torch.int64, device=self._device.torch)
        with self._device.compute_stream():
            for _ in range(2):
                found.fill_(-1.0)
                replay()
                wrong += (~torch.isclose(found, expected, rtol=0, atol=GRAPH_TOLERANCE, equal_nan=True)).sum()
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
