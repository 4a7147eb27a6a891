"""Values that cross to a backend, and the Backend protocol itself: work, answers, regions of memory, options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MEBI = 1 << 20
ALIGNMENT = 64  # bytes; a cache line, and what vector loads and pinned copies like


class OutputPlane(StrEnum):
    """What the engine writes for one image. The recipe asks for no more than it needs."""

    RGBA8 = "rgba8"  # straight (unassociated) alpha, colours cleaned at soft edges
    ALPHA8 = "alpha8"
    ALPHA16 = "alpha16"


OUTPUT_BYTES = {OutputPlane.RGBA8: 4, OutputPlane.ALPHA8: 1, OutputPlane.ALPHA16: 2}  # of one pixel


def aligned(count: int) -> int:
    """Bytes, rounded up: every plane begins at a multiple of ALIGNMENT."""
    return -(-count // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Region:
    """Where the planes of one image lie in the shared block. Plain integers, so that it can cross to a process."""

    offset: int
    height: int
    width: int
    source_alpha: bool
    output: OutputPlane

    @property
    def source_alpha_offset(self) -> int:
        """Where the alpha that the image came with lies, if it came with one."""
        return self.offset + aligned(3 * self.height * self.width)

    @property
    def output_offset(self) -> int:
        """Where the output plane begins; before it lie the planes that are read."""
        return self.source_alpha_offset + (aligned(self.height * self.width) if self.source_alpha else 0)


def region_bytes(height: int, width: int, *, source_alpha: bool, output: OutputPlane) -> int:
    """Bytes from a region's `offset` to the end of its last plane, rounded up to ALIGNMENT."""
    pixels = height * width
    planes = [3 * pixels, pixels if source_alpha else 0, OUTPUT_BYTES[output] * pixels]
    return sum(aligned(plane) for plane in planes)


@dataclass(frozen=True, slots=True)
class Slot:
    """Views on the planes of one image; exactly one of rgba and alpha is there."""

    rgb: NDArray[np.uint8]  # [H, W, 3], orientation applied; the engine only reads it, so that another can try again
    source_alpha: NDArray[np.uint8] | None  # [H, W], that the image came with; the result is multiplied by it
    rgba: NDArray[np.uint8] | None  # [H, W, 4], straight alpha
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None  # [H, W]


def view(block: NDArray[np.uint8], region: Region) -> Slot:
    """The slot of `region` inside `block` (uint8 [bytes]); nothing is copied."""
    height, width, pixels = region.height, region.width, region.height * region.width
    rgb = block[region.offset :][: 3 * pixels].reshape(height, width, 3)
    source_alpha = block[region.source_alpha_offset :][:pixels].reshape(height, width) if region.source_alpha else None
    output = block[region.output_offset :][: OUTPUT_BYTES[region.output] * pixels]
    if region.output is OutputPlane.RGBA8:
        return Slot(rgb, source_alpha, output.reshape(height, width, 4), None)
    levels = output.view(np.uint16) if region.output is OutputPlane.ALPHA16 else output
    return Slot(rgb, source_alpha, None, levels.reshape(height, width))


@dataclass(frozen=True, slots=True)
class FrameLink:
    """Which frame of which sequence an image is, for a recurrent network.

    previous  ticket of the frame before it: its result is an input, where it was computed in this process
    """

    sequence: str
    ticket: int
    previous: int


@dataclass(frozen=True, slots=True)
class Work:
    """One image to segment. `model` is the name of a recipe's model; every Work of one batch names the same."""

    image_id: int
    region: Region
    model: str
    clean_edges: bool = True
    refine: bool = True  # alpha, where the image is much larger than the network
    second_look: bool = False  # where needs_second_look says so
    link: FrameLink | None = None  # of a frame whose network is recurrent


@dataclass(frozen=True, slots=True)
class MatteReport:
    """What the engine saw in one alpha, before quantisation and before the source's own alpha was multiplied in."""

    image_id: int
    coverage: float  # mean alpha, 0..1
    peak: float  # highest alpha, 0..1
    solid: float  # share of pixels with alpha >= 0.5
    soft: float  # share of pixels with 0.05 < alpha < 0.95
    disagreement: float | None = None  # of a second look, where one was taken, 0..1


def verdict_of(matte: MatteReport, *, empty_below: float) -> str:
    """`empty`: there is no subject; `full`: there is no background; or `ok`. `empty_below` is a share of pixels, 0..1.

    Absolute values only: nothing is stretched, so nothing is made up.
    """
    if matte.solid < empty_below or matte.peak < 0.5:
        return "empty"
    if matte.solid > 1.0 - empty_below and matte.coverage > 0.999:
        return "full"
    return "ok"


@dataclass(frozen=True, slots=True)
class Answer:
    """One image is done: its output plane holds the result."""

    matte: MatteReport
    device: str  # that computed it, as the engine's description names it
    model: str  # that computed it: not the one asked for when a device falls back to a lesser one
    batch: int = 1  # images it was computed with, itself included
    tries: int = 1  # more when engine faults made it run again

    @property
    def image_id(self) -> int:
        return self.matte.image_id


@dataclass(frozen=True, slots=True)
class Limit:
    """An engine does with less than it was made for; no image is worse for it."""

    what: str  # one word for machines: memory_low, batch, pinned, graphs, kernels, precision, not_finite
    detail: str  # one sentence for people


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The answers to one batch, in order; one for each image that is not in `not_finite`."""

    answers: list[Answer]
    milliseconds: dict[str, float] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)  # what the engine found out in this batch
    not_finite: list[int] = field(default_factory=list)  # ids of images without an answer: alpha is not finite here


def mismatch(batch: Sequence[Work], report: BatchReport) -> str:
    """What is wrong with the images that `report` answers for; empty when they are those of the batch, in order."""
    asked, left_out = [work.image_id for work in batch], set(report.not_finite)
    answered = [answer.image_id for answer in report.answers]
    if left_out <= set(asked) and answered == [image for image in asked if image not in left_out]:
        return ""
    also = f", and named {report.not_finite} as not finite" if left_out else ""
    return f"asked for images {asked} it answered for {answered}{also}"


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """What an engine says of itself once it is ready."""

    device: str  # "cpu", "cuda:0", ...
    models: dict[str, dict[str, object]]  # name -> facts for the log (sha256, precision, parameters, input size)
    batch_sizes: tuple[int, ...]  # that it takes, ascending, e.g. (1, 2, 4, 8, 16)
    seconds: dict[int, float] = field(default_factory=dict)  # per batch size, where measured
    detail: dict[str, object] = field(default_factory=dict)  # anything else worth one log line
    limits: list[Limit] = field(default_factory=list)  # what it does without, from the start


@dataclass(frozen=True, slots=True)
class DeviceView:
    """What others may know of a device at one moment; immutable, replaced as a whole by its supervisor."""

    device: str
    is_fallback: bool = False  # it is the CPU behind the GPUs
    usable: bool = False  # images may go to it now: its worker has passed its self-test
    missing: bool = False  # it could not be started the last time, so that it cannot be relied on
    limit: int = 1  # images it takes at once, at least 1
    description: EngineDescription | None = None  # of its last worker that was ready


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden image as one model sees it: alpha float32 [240, 320] in 0..1, and the seconds that it took."""

    alpha: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryTestPass:
    """What one pass found: `bad` of `blocks` blocks."""

    blocks: int
    bad: int


class Backend(Protocol):
    """Computes alpha on one device. Every call comes from one thread, its owner.

    The facts of a model in its description say `recurrent` where it takes the frame before, under its alpha, as a
    second image: frames of one sequence then come one after another, and their Work has a link.
    """

    def start(self) -> EngineDescription:
        """Load, warm up, pass the self-test on the golden image. Raises EngineFault or ModelError."""

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        """Fill the output planes of every image. Raises EngineFault; the input planes are then unchanged."""

    def golden(self, model: str) -> Golden:
        """Compute the golden image with `model`, between two batches. Raises EngineFault."""

    def canary(self, blocks: int) -> MemoryTestPass:
        """One pass of the memory test over `blocks` blocks of device memory. Raises EngineFault."""

    def close(self) -> None:
        """Give everything back. May be called in any state, more than once."""


@dataclass(frozen=True)
class ModelChoice:
    """One model to load: see models.weights.load_model."""

    source: str
    patch_order: str = "auto"
    sha256: str = ""


@dataclass(frozen=True)
class Options:
    """What the parent asks for."""

    models: Mapping[str, ModelChoice]  # by the name that Work.model uses
    models_directory: Path  # where fetched weights lie
    device: str = "cpu"  # or "cuda:0", ...
    precision: str = "auto"  # (float16 on a GPU, else what is quickest and as good), float32, float16, bfloat16
    threads: int = 0  # 0: one per core that the process may use
    batch_maximum: int = 8  # images; the largest size that may be offered
    verdicts: str = ""  # folder in which a CPU keeps what it measured of precisions; empty: nowhere
    cpu_runtime: str = "auto"  # (OpenVINO where it has the network), torch, openvino
    # For GPUs alone:
    graphs: bool = True  # replay recorded launches instead of launching kernel by kernel
    kernels: str = "auto"  # or off: kernels in Triton
    staging_bytes: int = 224 * MEBI  # of the device, for images on their way
    pinned_bytes: int = 256 * MEBI  # of the arena, page-locked, at most
    spare_bytes: int = 1024 * MEBI  # of the device, to be left free

    @staticmethod
    def from_json(options: Mapping[str, Any]) -> Options:
        models = {name: ModelChoice(**choice) for name, choice in options["models"].items()}
        return Options(**{**options, "models": models, "models_directory": Path(options["models_directory"])})
