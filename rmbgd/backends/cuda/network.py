"""One network on a device: its fixed inputs and answers, and a recorded launch of all its kernels for each batch size.

Does not know where images come from or go to, nor how memory is divided: sizes are given. Inputs and answers lie
outside the graphs' memory; a smaller batch uses the first places of them.
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
from rmbgd.backends.cuda.postprocess import SUMMARY, summary
from rmbgd.backends.cuda.resample import resize_to_network
from rmbgd.backends.faults import fault_of
from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.golden_image import golden_image
from rmbgd.engine.types import Limit, ModelChoice
from rmbgd.models.kernels.head import mattes
from rmbgd.models.kernels.resize import put_images
from rmbgd.models.kernels.runtime import use_kernels
from rmbgd.models.layers import Linear
from rmbgd.models.load import load_model

# --- Products of the backbone in float8 (e4m3), for devices whose units have it: Ada and Hopper. Off unless asked for.


FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_FEATURES = 384  # on both sides: below, scaling costs as much as the product saves
MULTIPLE = 16  # that the units ask of both sides


class Float8Linear(nn.Module):
    """x [..., in] times weight [out, in] transposed, plus bias. Takes the place of an nn.Linear in half precision."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        scale = scales(linear.weight)
        self.register_buffer("weight", scaled(linear.weight, scale))
        self.register_buffer("scale", scale.view(1, -1))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = scales(rows)
        product: Tensor = torch._scaled_mm(  # noqa: SLF001 - the one way to these units that torch has
            scaled(rows, scale),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=None if self.bias is None else self.bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=False,
        )
        return product.to(self.dtype).view(*x.shape[:-1], self.out_features)

    def widened(self) -> nn.Linear:
        """The same product in float32."""
        out_features, in_features = self.weight.shape
        linear = Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight.float() * self.scale.t(), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.float(), requires_grad=False)
        return linear


def scales(rows: Tensor) -> Tensor:
    """float32 [n, 1]: what each row of [n, k] is divided by, so that its largest number is float8's largest."""
    largest = rows.detach().abs().amax(dim=1, keepdim=True).to(torch.float32)
    return largest.clamp(min=1e-12) / LARGEST


def scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """[n, k] in float8; beyond its range cannot be, for `scale` is the row's own."""
    return (rows.detach().to(torch.float32) / scale).clamp_(-LARGEST, LARGEST).to(FLOAT8)


def suitable(module: nn.Module) -> bool:
    """Whether a layer is one of the wide products."""
    if not isinstance(module, nn.Linear):
        return False
    sides = (module.in_features, module.out_features)
    return min(sides) >= LEAST_FEATURES and all(side % MULTIPLE == 0 for side in sides)


def convert(network: nn.Module) -> dict[str, nn.Module]:
    """Put Float8Linear in the place of every suitable layer; the layers that were there, by name."""
    before = {name: module for name, module in network.named_modules() if suitable(module)}
    for name, module in before.items():
        assert isinstance(module, nn.Linear)
        _set(network, name, Float8Linear(module))
    return before


def restore(network: nn.Module, before: dict[str, nn.Module]) -> None:
    """Undo `convert`."""
    for name, module in before.items():
        _set(network, name, module)


def widened(network: nn.Module) -> nn.Module:
    """Put layers of float32 in the place of every Float8Linear, with the weights that those have; in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Float8Linear):
            _set(network, name, module.widened())
    return network


def _set(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


# --- POLICY: whether a quicker way to compute is near enough to the one it replaces, seen on the golden image.


@dataclass(frozen=True, slots=True)
class Gate:
    """mean   largest mean difference of alpha
    far    a difference of alpha that few pixels may exceed
    share  how many may
    """

    mean: float
    far: float
    share: float

    def refusal(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
        """Why `found` does not pass, both float32 [h, w], or nothing."""
        difference = np.abs(found - expected)
        if not np.isfinite(difference).all():
            return "alpha of the golden image is not finite"
        mean, beyond = float(difference.mean()), float((difference > self.far).mean())
        if mean <= self.mean and beyond <= self.share:
            return ""
        return (
            f"alpha of the golden image is off by {255 * mean:.2f} levels on average ({255 * self.mean:.2f} are let "
            f"through), by more than {255 * self.far:.0f} in {100 * beyond:.2f} % of it ({100 * self.share:.2f} %)"
        )


KERNELS = Gate(mean=0.5 / 255, far=8 / 255, share=1e-3)
"""Triton's kernels against plain ones in the same type: both round, in other orders."""

GATES_FLOAT8 = Gate(mean=1.5 / 255, far=8 / 255, share=5e-3)
"""Against float16: what bfloat16 may be off by, too."""


# --- POLICY: in which type a network computes on a device, from what is asked for and what the device can do.


Capability = tuple[int, int]

BFLOAT16_FROM: Capability = (8, 0)  # Ampere
FLOAT8_FROM: Capability = (8, 9)  # Ada; Hopper is 9.0


@dataclass(frozen=True, slots=True)
class Precision:
    """storage  of weights and activations: float32, float16 or bfloat16
    float8   whether products of the backbone go through float8
    """

    storage: str
    float8: bool = False
    limits: tuple[Limit, ...] = field(default=())

    @property
    def wide(self) -> bool:
        """Nothing is gained by computing again in float32."""
        return self.storage == "float32"


def precision_of(asked: str, capability: Capability | None) -> Precision:
    """`asked` as the settings have it. A device without a capability is a CPU."""
    if capability is None:
        if asked == "float8":
            return Precision("float32", limits=(Limit("float8", "a CPU has no float8 products: float32 is used"),))
        return Precision("float32" if asked == "auto" else asked)
    has = f"{capability[0]}.{capability[1]}"
    if asked == "float8":
        if capability >= FLOAT8_FROM:
            return Precision("float16", float8=True)
        told = f"float8 products need compute capability 8.9 (Ada, Hopper), this device has {has}: float16 is used"
        return Precision("float16", limits=(Limit("float8", told),))
    if asked == "bfloat16" and capability < BFLOAT16_FROM:
        told = f"bfloat16 needs compute capability 8.0 (Ampere), this device has {has}: float16 is used"
        return Precision("float16", limits=(Limit("bfloat16", told),))
    return Precision("float16" if asked == "auto" else asked)


# One network on a device: its fixed inputs and answers, and a recorded launch of all its kernels for each batch size.


ROUNDS = 3  # of each batch size, measured at start
GRAPH_TOLERANCE = 1 / 255
"""Largest difference of alpha between a graph and the same kernels launched one by one. Both should be equal to the
bit; a graph that reads memory which is no longer its own is far beyond this."""


class Network:
    """`facts` for the log. Owned by the engine's thread.

    inputs   [places, 3, h, w], pixel-major, normalised; no places until `allocate`
    mattes   float32 [places, h, w]
    summary  float32 [places, 5]
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
        self.facts: dict[str, object] = loaded.provenance.facts()
        self.seconds: dict[int, float] = {}
        self._device = device
        self._dtype = dtype
        self._triton = False
        # BiRefNet reads its input in float32 where it matters; the small network computes in one type.
        self._input_dtype = torch.float32 if self.facts["architecture"] == "birefnet" else dtype
        self._scale = torch.tensor(SCALE, device=device.torch)
        self._shift = torch.tensor(SHIFT, device=device.torch)
        self._recorded: dict[int, Callable[[], object]] = {}
        self.inputs = self._places(0)
        self.mattes = torch.empty((0, *self.size), device=device.torch)
        self.summary = torch.empty((0, SUMMARY), device=device.torch)

    def use_kernels(self) -> str:
        """Triton's kernels from now on: why not, or nothing. Compiles them where that was not done before."""

        def choose(*, triton: bool) -> None:
            self._triton = triton
            use_kernels(self.module, triton=triton)

        return self._tried(partial(choose, triton=True), partial(choose, triton=False), KERNELS)

    def use_float8(self) -> str:
        """Wide products in float8 from now on: why not, or nothing."""
        before: dict[str, nn.Module] = {}
        return self._tried(
            lambda: before.update(convert(self.module)),
            lambda: restore(self.module, before),
            GATES_FLOAT8,
        )

    def _tried(self, change: Callable[[], object], undo: Callable[[], object], gate: Gate) -> str:
        """Compute the golden image before and after `change`, and undo it where that fails or is too far off."""
        expected = self._known_alpha()
        try:
            change()
            why = gate.refusal(self._known_alpha(), expected)
        except Exception as error:
            if fault_of(error) is not None:  # of the device, and not of this way to compute
                raise
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if why:
            undo()
        return why

    def _known_alpha(self) -> NDArray[np.float32]:
        """float32 [h, w], in memory of its own."""
        inputs = self._places(1)
        with self._device.compute():
            rgb = torch.from_numpy(golden_image()[0]).to(self._device.torch)
            put_images([rgb], inputs, self._scale, self._shift, triton=self._triton)
            alpha = self._answer(inputs)[0][0].cpu()
        return np.asarray(alpha.numpy(), np.float32)

    def need(self) -> NetworkNeed:
        """Measured on batches of one and two, in memory that is given back."""
        inputs = self._places(2).zero_()
        for count in (1, 2):  # libraries take their workspaces at the first run
            self._device.peak(lambda count=count: self._answer(inputs[:count]))  # type: ignore[misc]
        one, two = (
            self._device.peak(lambda count=count: self._answer(inputs[:count]))  # type: ignore[misc]
            for count in (1, 2)
        )
        each = max(0, two - one)
        pixels = self.size[0] * self.size[1]
        return NetworkNeed(max(0, one - each), each, 3 * pixels * inputs.element_size(), 4 * pixels)

    def allocate(self, places: int) -> None:
        self.inputs = self._places(places).zero_()
        self.mattes = torch.zeros((places, *self.size), device=self._device.torch)
        self.summary = torch.zeros((places, SUMMARY), device=self._device.torch)

    def put(self, first: int, images: Sequence[Tensor]) -> None:
        """Images, uint8 [H, W, 3] on the device, into the places from `first` on."""
        if self._triton or all(image.shape[0] * image.shape[1] <= BAND_PIXELS for image in images):
            places = self.inputs[first : first + len(images)]
            put_images(images, places, self._scale, self._shift, triton=self._triton)
            return
        for place, image in enumerate(images, start=first):
            self.put_resized(place, resize_to_network(image, self.size))

    def put_resized(self, place: int, pixels: Tensor) -> None:
        """Levels 0..255 at the network's size, [h, w, 3] of any type, on any device."""
        levels = pixels.to(self._device.torch)
        self.inputs[place] = (levels * self._scale + self._shift).permute(2, 0, 1)

    def run(self, size: int) -> None:
        """Answers of the first `size` places."""
        self._recorded.get(size, partial(self._write, size))()

    def prepare(self, size: int, *, record: bool) -> str:
        """Warm up for batches of `size`, and record one: why it could not be recorded, or nothing.

        What a recording answers to noise, which differs from place to place, is compared with what the kernels answered
        before: afterwards there may be no memory to run them beside it.
        """
        generator = torch.Generator(self._device.torch).manual_seed(size)
        with self._device.compute():  # where it will run: libraries choose their algorithms and take workspaces now
            self.inputs[:size].normal_(generator=generator)
            self._write(size)
            expected = self.mattes[:size].clone()
        if not record:
            return ""
        try:
            replay = self._device.capture(partial(self._write, size))
        except CaptureFailed as failure:
            return str(failure)
        if wrong := self._wrong(expected, replay):
            return f"the recording answers otherwise than its kernels do, in {wrong} pixels"
        self._recorded[size] = replay
        return ""

    def forget(self) -> None:
        """Everything recorded."""
        self._recorded.clear()

    @property
    def recorded(self) -> tuple[int, ...]:
        return tuple(sorted(self._recorded))

    def again(self, place: int) -> None:
        """One place once more, all of it in float32, by plain kernels. Takes memory, and gives it back."""
        wide = copy.deepcopy(self.module)
        use_kernels(wide, triton=False)
        wide = widened(wide).float()
        alpha, finite = mattes(wide, self.inputs[place : place + 1].float(), triton=False)
        self.mattes[place] = alpha[0]
        self.summary[place] = summary(alpha, finite)[0]

    def measure(self, sizes: Sequence[int]) -> None:
        """Seconds of each size, the middle of some rounds, on the golden image."""
        rgb = torch.from_numpy(golden_image()[0]).to(self._device.torch)
        with self._device.compute():
            self.put(0, [rgb])
            self.inputs[1:] = self.inputs[:1]
        for size in sizes:
            rounds = [self._timed(size) for _ in range(ROUNDS)]
            self.seconds[size] = statistics.median(rounds)

    def _timed(self, size: int) -> float:
        self._device.settle()
        began = time.perf_counter()
        with self._device.compute():
            self.run(size)
        self._device.settle()
        return time.perf_counter() - began

    def _wrong(self, expected: Tensor, replay: Callable[[], object]) -> int:
        """Pixels of two replays that are not as expected, float32 [size, h, w]."""
        found = self.mattes[: len(expected)]
        wrong = torch.zeros((), dtype=torch.int64, device=self._device.torch)
        with self._device.compute():
            for _ in range(2):
                found.fill_(-1.0)
                replay()
                alike = torch.isclose(found, expected, rtol=0, atol=GRAPH_TOLERANCE, equal_nan=True)
                wrong += (~alike).sum()
        return int(wrong)

    def _write(self, size: int) -> None:
        alpha, told = self._answer(self.inputs[:size])
        self.mattes[:size].copy_(alpha)
        self.summary[:size].copy_(told)

    def _answer(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        alpha, finite = mattes(self.module, inputs, triton=self._triton)
        return alpha, summary(alpha, finite)

    def _places(self, count: int) -> Tensor:
        return torch.empty(
            (count, 3, *self.size),
            dtype=self._input_dtype,
            device=self._device.torch,
            memory_format=torch.channels_last,
        )
