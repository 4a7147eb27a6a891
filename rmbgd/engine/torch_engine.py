"""Networks on one device, from pictures in the arena to finished planes in the arena. Runs in the engine's process.

Knows no process, folder or recipe: which models, which device, how many threads come as options. The only module beside
models/ that imports torch.

A batch goes through four steps: each picture resized into its place of the network's preallocated input (antialiased
bilinear, as the networks were trained), the network, a check that every alpha is a number, and only then, picture by
picture, alpha at full size in float, clean colours, and the output plane. A batch that fails has written nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rmbgd.engine.base import Answer, BatchReport, EngineDescription, MatteReport, Slot, Work, view
from rmbgd.engine.canary import WORDS, Canary, CanaryPass, Pattern, chunks
from rmbgd.engine.cuda_errors import fault_of
from rmbgd.engine.examine import Golden
from rmbgd.engine.known_picture import OVERLAP_EXPECTED, known_picture, overlap
from rmbgd.errors import EngineMemory, EngineNonsense
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.resize import matte_to_image
from rmbgd.models.weights import load_model

# The statistics of ImageNet, with which every network here was trained.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

SIZES = (1, 2, 4, 8, 16)
MEASURE_SECONDS = 1.0  # that measuring batch sizes may take at start, per model
CPU_BATCH_MAXIMUM = 4  # pictures: u2netp takes 0.19 GB for each, and in CPU time a batch saves nothing


@dataclass(frozen=True)
class ModelChoice:
    """One model to load: see models.weights.load_model."""

    source: str
    patch_order: str = "auto"
    sha256: str = ""


@dataclass(frozen=True)
class Options:
    """What the parent asks for.

    models            by the name that Work.model uses
    models_directory  where fetched weights lie
    device            "cpu", "cuda:0", ...
    precision         auto (float16 on a GPU, else float32), float32, float16, bfloat16
    threads           0: one per core that the process may use
    batch_maximum     pictures; the largest size that may be offered
    """

    models: Mapping[str, ModelChoice]
    models_directory: Path
    device: str = "cpu"
    precision: str = "auto"
    threads: int = 0
    batch_maximum: int = 8

    @staticmethod
    def from_json(options: Mapping[str, Any]) -> Options:
        models = {name: ModelChoice(**choice) for name, choice in options["models"].items()}
        return Options(**{**options, "models": models, "models_directory": Path(options["models_directory"])})


@dataclass
class Network:
    """One loaded model. `inputs` float [largest batch, 3, h, w], pixel-major, is reused by every batch."""

    name: str
    module: nn.Module
    facts: dict[str, object]
    inputs: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of its input."""
        return self.inputs.shape[2], self.inputs.shape[3]


class TorchEngine:
    def __init__(self, block: NDArray[np.uint8], options: Options) -> None:
        self._options = options
        self._device = torch.device(options.device)
        automatic = "float16" if self._on_gpu else "float32"
        self._dtype = getattr(torch, automatic if options.precision == "auto" else options.precision)
        self._block = block
        self._networks: dict[str, Network] = {}
        self._canary: Canary | None = None

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def start(self) -> EngineDescription:
        """Load every model, prove each on the known picture, measure. Raises ModelError, EngineFault."""
        threads = self._options.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        detail: dict[str, object] = {"torch": torch.__version__, "threads": threads}
        measured: list[dict[int, float]] = []
        with torch.inference_mode(), _faults():
            if self._on_gpu:
                detail |= {"name": torch.cuda.get_device_name(self._device), "cuda": torch.version.cuda}
            # x / 255 normalised is scale * x + shift, per channel
            self._scale = torch.tensor([1 / (255 * d) for d in DEVIATION], device=self._device).view(3, 1, 1)
            shift = [-m / d for m, d in zip(MEAN, DEVIATION, strict=True)]
            self._shift = torch.tensor(shift, device=self._device).view(3, 1, 1)
            for name, choice in self._options.models.items():
                network = self._load(name, choice)
                self._networks[name] = network
                began = time.perf_counter()
                network.facts["overlap"] = round(self._prove(network), 4)
                measured.append(self._measure(network, time.perf_counter() - began))
        # What nobody measured for every model is not offered: a larger batch takes memory and may save nothing.
        sizes = tuple(size for size in SIZES if all(size in seconds for seconds in measured))
        slowest = {size: max(seconds[size] for seconds in measured) for size in sizes}
        models = {name: network.facts for name, network in self._networks.items()}
        return EngineDescription(self._options.device, models, sizes, slowest, detail)

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        network = self._networks[batch[0].model]
        if any(work.model != network.name for work in batch):
            raise ValueError("a batch has one model; a bug")
        slots = [view(self._block, work.region) for work in batch]
        began = time.perf_counter()
        with torch.inference_mode(), _faults():
            for place, slot in enumerate(slots):
                self._put(network, place, slot.rgb)
            resized = time.perf_counter()
            mattes = self._mattes(network, len(batch))
            computed = time.perf_counter()
            reports = [_measured(work.image_id, matte) for work, matte in zip(batch, mattes, strict=True)]
            for work, slot, matte in zip(batch, slots, mattes, strict=True):
                _finish(slot, matte.numpy(), clean=work.clean_edges)
        finished = time.perf_counter()
        return BatchReport(
            [Answer(report, self._options.device, network.name, len(batch)) for report in reports],
            {
                "resize": 1000 * (resized - began),
                "network": 1000 * (computed - resized),
                "finish": 1000 * (finished - computed),
            },
        )

    def golden(self, model: str) -> Golden:
        """The known picture, at its own size. Raises EngineFault."""
        rgb, truth = known_picture()
        network = self._networks[model]
        with torch.inference_mode(), _faults():
            began = time.perf_counter()
            self._put(network, 0, rgb)
            matte = self._mattes(network, 1)[0].numpy()
            seconds = time.perf_counter() - began
        return Golden(matte_to_image(matte, *truth.shape), seconds)

    def canary(self, blocks: int) -> CanaryPass:
        """One pass over 4 KiB blocks of this device's memory, which stays taken. Raises EngineFault."""
        with torch.inference_mode(), _faults():
            if self._canary is None:
                self._canary = Canary(TorchMemory(self._device), blocks)
            return self._canary.check()

    def close(self) -> None:
        self._networks.clear()
        if self._canary is not None:
            self._canary.close()

    def _load(self, name: str, choice: ModelChoice) -> Network:
        loaded = load_model(
            choice.source,
            device=self._device,
            dtype=self._dtype,
            models=self._options.models_directory,
            patch_order=choice.patch_order,
            sha256=choice.sha256 or None,
        )
        height, width = loaded.provenance.input_size
        largest = self._options.batch_maximum
        inputs = torch.empty((largest, 3, height, width), dtype=self._dtype, device=self._device)
        inputs = inputs.to(memory_format=torch.channels_last)
        return Network(name, loaded.module, loaded.provenance.facts(), inputs)

    def _put(self, network: Network, place: int, rgb: NDArray[np.uint8]) -> None:
        """Resize one picture, uint8 [H, W, 3], into its place of the network's input."""
        picture = torch.from_numpy(rgb).permute(2, 0, 1)[None]  # uint8 [1, 3, H, W], pixel-major: the fast path
        if picture.shape[2:] != network.size:
            picture = F.interpolate(picture, network.size, mode="bilinear", antialias=True)
        # Resized on the CPU: torch has no antialiased bilinear of bytes on a GPU. Then up, a few megabytes.
        network.inputs[place] = picture[0].to(self._device) * self._scale + self._shift

    def _mattes(self, network: Network, count: int) -> Tensor:
        """Alpha of the first `count` places, float32 [count, h, w]. Raises EngineNonsense."""
        logits = network.module(network.inputs[:count])
        mattes: Tensor = torch.sigmoid(logits[:, 0].float())
        finite = torch.isfinite(mattes).flatten(1).all(dim=1)
        if not bool(finite.all()):
            places = [place for place, well in enumerate(finite.tolist()) if not well]
            raise EngineNonsense(f"alpha is not finite for pictures {places} of a batch of {count} ({network.name})")
        return mattes.cpu()

    def _prove(self, network: Network) -> float:
        """Compute the known picture. Raises EngineNonsense when it comes out wrong."""
        rgb, truth = known_picture()
        self._put(network, 0, rgb)
        matte = self._mattes(network, 1)[0].numpy()
        agreement = overlap(matte_to_image(matte, *truth.shape), truth)
        expected = OVERLAP_EXPECTED.get(str(network.facts["model"]), 0.0)
        if agreement < expected:
            raise EngineNonsense(
                f"the known picture came out wrong: overlap {agreement:.3f}, expected {expected} ({network.name})"
            )
        return agreement

    def _measure(self, network: Network, first: float) -> dict[int, float]:
        """Seconds per batch by its size; stops where the next size would take too long. `first`: of the first run."""
        if first > MEASURE_SECONDS:
            return {1: first}
        largest = self._options.batch_maximum if self._on_gpu else min(self._options.batch_maximum, CPU_BATCH_MAXIMUM)
        seconds: dict[int, float] = {}
        left = MEASURE_SECONDS
        for size in SIZES:
            if size > largest or size * seconds.get(1, 0.0) > left:
                break
            network.inputs[:size] = network.inputs[:1]
            began = time.perf_counter()
            self._mattes(network, size)
            seconds[size] = time.perf_counter() - began
            left -= seconds[size]
        return seconds


class TorchMemory:
    """Memory on a torch device, for the canary: int64 [blocks, WORDS]. Expected values are computed there, too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._words = torch.empty(0, dtype=torch.int64)

    def allocate(self, blocks: int) -> None:
        self._words = torch.empty((blocks, WORDS), dtype=torch.int64, device=self._device)

    def write(self, pattern: Pattern) -> None:
        for first, count in chunks(len(self._words)):
            self._words[first : first + count] = self._expected(pattern, first, count)

    def compare(self, pattern: Pattern) -> list[int]:
        bad: list[int] = []
        for first, count in chunks(len(self._words)):
            wrong = (self._words[first : first + count] != self._expected(pattern, first, count)).any(dim=1)
            bad += [first + int(block) for block in wrong.nonzero().flatten().tolist()]
        return bad

    def release(self) -> None:
        self._words = torch.empty(0, dtype=torch.int64)

    def _expected(self, pattern: Pattern, first: int, count: int) -> Tensor:
        index = torch.arange(first * WORDS, (first + count) * WORDS, dtype=torch.int64, device=self._device)
        return pattern.words(index).view(count, WORDS)


def _measured(image_id: int, matte: Tensor) -> MatteReport:
    return MatteReport(
        image_id,
        coverage=float(matte.mean()),
        peak=float(matte.max()),
        solid=float((matte >= 0.5).float().mean()),
        soft=float(((matte > 0.05) & (matte < 0.95)).float().mean()),
    )


def _finish(slot: Slot, matte: NDArray[np.float32], *, clean: bool) -> None:
    """Write the output plane of one picture from its matte, float32 [h, w]."""
    alpha = matte_to_image(matte, *slot.rgb.shape[:2])
    if slot.rgba is not None:
        compose_rgba(slot.rgb, alpha, slot.source_alpha, slot.rgba, clean=clean)
    elif slot.alpha is not None:
        quantise_alpha(alpha, slot.source_alpha, slot.alpha)


@contextmanager
def _faults() -> Iterator[None]:
    """Name what torch raises for what it is, where it is an error of the device."""
    try:
        yield
        return
    except (RuntimeError, AssertionError) as error:
        fault = fault_of(error)
        if fault is None:
            raise
    # Raised out here, so that no traceback keeps the tensors of the failed batch.
    if isinstance(fault, EngineMemory) and torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise fault


def create(block: NDArray[np.uint8], options: Mapping[str, Any]) -> TorchEngine:
    """The factory for the child process."""
    return TorchEngine(block, Options.from_json(options))
