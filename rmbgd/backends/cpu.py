"""Backend on the CPU: from images in the arena to finished output planes in the arena.

A batch goes through four steps: each image is resized into the network's preallocated input (antialiased bilinear, as
the networks were trained), the network runs, every alpha is checked to be a number, and only then, image by image,
alpha is upsampled in float, colours are cleaned and the output plane is written. A batch that fails has written
nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rmbgd.backends.faults import faults
from rmbgd.backends.memtest import MemoryTest
from rmbgd.backends.planes import SCALE, SHIFT, finish, statistics
from rmbgd.engine import types
from rmbgd.engine.golden_image import check_golden, golden_image
from rmbgd.errors import EngineNonsense
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.models.inference import mattes, put_images
from rmbgd.models.load import load_model
from rmbgd.resampling import Filter

DEVICE = "cpu"
SIZES = (1, 2, 4, 8, 16)
MEASURE_SECONDS = 1.0  # that measuring batch sizes may take at start, per model
CPU_BATCH_MAXIMUM = 4  # images: u2netp takes 0.19 GB for each, and in CPU time a batch saves nothing


@dataclass
class CpuNetwork:
    """One loaded model. `inputs` float [largest batch, 3, h, w], channels last, is reused by every batch."""

    name: str
    module: nn.Module
    facts: dict[str, object]
    inputs: Tensor
    filter: Filter


class CpuBackend:
    def __init__(self, block: NDArray[np.uint8], options: types.Options) -> None:
        self._options = options
        self._limits: list[types.Limit] = []
        precision = "float32" if options.precision == "auto" else options.precision
        if precision == "float8":
            self._limits.append(types.Limit("float8", "a CPU has no float8 products: float32 is used"))
            precision = "float32"
        self._block = block
        self._dtype: torch.dtype = getattr(torch, precision)
        self._networks: dict[str, CpuNetwork] = {}
        self._memory_test: MemoryTest | None = None
        self._scale, self._shift = torch.tensor(SCALE), torch.tensor(SHIFT)

    def start(self) -> types.EngineDescription:
        """Load every model, check each on the golden image, measure. Raises ModelError, EngineFault."""
        threads = self._options.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        detail: dict[str, object] = {"torch": torch.__version__, "threads": threads}
        measured: list[dict[int, float]] = []
        with torch.inference_mode(), faults():
            for name, choice in self._options.models.items():
                network = self._networks[name] = self._load(name, choice)
                began = time.perf_counter()
                matte = self._matte(network, golden_image()[0])
                network.facts["overlap"] = round(check_golden(matte, str(network.facts["model"]), name), 4)
                measured.append(self._measure(network, time.perf_counter() - began))
        # A size that was not measured for every model is not offered: a larger batch takes memory and may save nothing.
        sizes = tuple(size for size in SIZES if all(size in seconds for seconds in measured))
        slowest = {size: max(seconds[size] for seconds in measured) for size in sizes}
        models = {name: network.facts for name, network in self._networks.items()}
        return types.EngineDescription(DEVICE, models, sizes, slowest, detail, self._limits)

    def segment(self, batch: Sequence[types.Work]) -> types.BatchReport:
        network = self._networks[batch[0].model]
        if any(work.model != network.name for work in batch):
            raise ValueError("a batch has one model; a bug")
        slots = [types.view(self._block, work.region) for work in batch]
        began = time.perf_counter()
        with torch.inference_mode(), faults():
            self._set_inputs(network, [slot.rgb for slot in slots])
            resized = time.perf_counter()
            alpha = self._mattes(network, len(batch))
            computed = time.perf_counter()
            rows = torch.stack(statistics(alpha), dim=1).tolist()
            reports = [types.MatteReport(work.image_id, *row) for work, row in zip(batch, rows, strict=True)]
            for work, slot, matte in zip(batch, slots, alpha, strict=True):
                finish(slot, matte.numpy(), clean=work.clean_edges)
        finished = time.perf_counter()
        seconds = {"resize": resized - began, "network": computed - resized, "finish": finished - computed}
        answers = [types.Answer(report, DEVICE, network.name, len(batch)) for report in reports]
        return types.BatchReport(answers, {step: 1000 * took for step, took in seconds.items()})

    def golden(self, model: str) -> types.Golden:
        rgb, truth = golden_image()
        with torch.inference_mode(), faults():
            began = time.perf_counter()
            matte = self._matte(self._networks[model], rgb)
            seconds = time.perf_counter() - began
        return types.Golden(matte_to_image(matte, *truth.shape), seconds)

    def canary(self, blocks: int) -> types.MemoryTestPass:
        """One pass of the memory test over 4 KiB blocks, which stay allocated. Raises EngineFault."""
        with torch.inference_mode(), faults():
            if self._memory_test is None:
                self._memory_test = MemoryTest(torch, DEVICE, blocks)
            return self._memory_test.check()

    def close(self) -> None:
        self._networks.clear()
        if self._memory_test is not None:
            self._memory_test.close()

    def _load(self, name: str, choice: types.ModelChoice) -> CpuNetwork:
        loaded = load_model(
            choice.source,
            device=DEVICE,
            dtype=self._dtype,
            models=self._options.models_directory,
            patch_order=choice.patch_order,
            sha256=choice.sha256 or None,
        )
        shape = (self._options.batch_maximum, 3, *loaded.provenance.input_size)
        inputs = torch.empty(shape, dtype=self._dtype, device=DEVICE).to(memory_format=torch.channels_last)
        return CpuNetwork(name, loaded.module, loaded.provenance.facts(), inputs, loaded.filter)

    def _set_inputs(self, network: CpuNetwork, images: Sequence[NDArray[np.uint8]]) -> None:
        if network.filter is Filter.BOX:  # the host's way costs less than torch's
            size = (network.inputs.shape[2], network.inputs.shape[3])
            images = [image_to_network(rgb, size, network.filter) for rgb in images]
        put_images(
            [torch.from_numpy(rgb) for rgb in images], network.inputs, self._scale, self._shift, filter=network.filter
        )

    def _mattes(self, network: CpuNetwork, count: int) -> Tensor:
        """Alpha of the first `count` inputs, float32 [count, h, w]. Raises EngineNonsense."""
        alpha, _ = mattes(network.module, network.inputs[:count])
        bad = [index for index, matte in enumerate(alpha) if not matte.isfinite().all()]
        if bad:
            raise EngineNonsense(f"alpha is not finite for images {bad} of a batch of {count} ({network.name})")
        return alpha

    def _matte(self, network: CpuNetwork, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of one image, uint8 [H, W, 3]: float32 [h, w]. Raises EngineNonsense."""
        self._set_inputs(network, [rgb])
        return np.asarray(self._mattes(network, 1)[0].numpy(), np.float32)

    def _measure(self, network: CpuNetwork, first: float) -> dict[int, float]:
        """Seconds per batch by its size, up to the size that would take too long. `first`: of the first run."""
        if first > MEASURE_SECONDS:
            return {1: first}
        seconds: dict[int, float] = {}
        left = MEASURE_SECONDS
        for size in SIZES:
            if size > min(self._options.batch_maximum, CPU_BATCH_MAXIMUM) or size * seconds.get(1, 0.0) > left:
                break
            network.inputs[:size] = network.inputs[:1]
            began = time.perf_counter()
            self._mattes(network, size)
            seconds[size] = time.perf_counter() - began
            left -= seconds[size]
        return seconds
