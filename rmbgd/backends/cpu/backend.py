"""Backend on the CPU: from images in the arena to finished output planes in the arena.

A batch goes through three steps: the network computes every alpha from images that are reduced to its size by its own
filter, every alpha is checked to be a number, and only then, image by image, alpha is upsampled in float, colours are
cleaned and the output plane is written. A batch that fails has written nothing.

Each network runs in the first runtime that serves it here. torch is imported only where one runs in it.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.cpu import openvino_network
from rmbgd.backends.cpu.network import CpuNetwork
from rmbgd.backends.cpu.openvino_network import OpenVinoNetwork
from rmbgd.backends.cpu.precision import gist, in_best_precision
from rmbgd.backends.faults import faults
from rmbgd.backends.memtest import MemoryTest
from rmbgd.backends.planes import finish
from rmbgd.backends.recurrence import Recurrence, under_alpha
from rmbgd.backends.second_look import disagreement, needs_second_look, wider
from rmbgd.engine import types
from rmbgd.engine.golden_image import check_golden, golden_image
from rmbgd.errors import EngineNonsense, ModelError, missing_extra
from rmbgd.fs import usable_cores
from rmbgd.imaging.refine import refines
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.models.store import resolve

DEVICE = "cpu"
MEASURE_SECONDS = 1.0  # that measuring batch sizes may take at start, per model


class CpuBackend:
    def __init__(self, block: NDArray[np.uint8], options: types.Options) -> None:
        self._options = options
        self._limits: list[types.Limit] = []
        self._precision = options.precision
        self._block = block
        self._threads = options.threads or usable_cores()
        self._networks: dict[str, CpuNetwork] = {}
        self._recurrence: dict[str, Recurrence] = {}  # by model
        self._seen: list[NDArray[np.uint8]] = []  # what the frames after those of this batch are to see
        self._memory_test: MemoryTest | None = None

    def start(self) -> types.EngineDescription:
        """Load every model, check each on the golden image, measure. Raises ModelError, EngineFault."""
        cv2.setNumThreads(self._threads)
        measured: list[dict[int, float]] = []
        with faults():
            for name, choice in self._options.models.items():
                network, first = self._load(name, choice)
                self._networks[name] = network
                measured.append(self._measure(network, first))
        # A size that was not measured for every model is not offered: a larger batch takes memory and may save nothing.
        sizes = tuple(size for size in measured[0] if all(size in seconds for seconds in measured))
        slowest = {size: max(seconds[size] for seconds in measured) for size in sizes}
        models = {name: network.facts for name, network in self._networks.items()}
        runtimes = {str(facts["runtime"]): facts["runtime_version"] for facts in models.values()}
        detail: dict[str, object] = {**runtimes, "threads": self._threads}
        return types.EngineDescription(DEVICE, models, sizes, slowest, detail, self._limits)

    def segment(self, batch: Sequence[types.Work]) -> types.BatchReport:
        network, name = self._networks[batch[0].model], batch[0].model
        if any(work.model != name for work in batch):
            raise ValueError("a batch has one model; a bug")
        slots = [types.view(self._block, work.region) for work in batch]
        began = time.perf_counter()
        with faults():
            guides = [
                image_to_network(slot.rgb, network.size, network.filter)
                if work.refine and refines(network.size, *slot.rgb.shape[:2])
                else None
                for work, slot in zip(batch, slots, strict=True)
            ]
            given = [slot.rgb if guide is None else guide for slot, guide in zip(slots, guides, strict=True)]
            compute = self._linked if network.recurrent else self._apart
            alpha = compute(network, batch, given, name)
            computed = time.perf_counter()
            reports = [report(work.image_id, matte) for work, matte in zip(batch, alpha, strict=True)]
            alpha = self._look_again(network, batch, given, alpha, reports)
            for work, slot, matte, guide in zip(batch, slots, alpha, guides, strict=True):
                finish(slot, matte, clean=work.clean_edges, guide=guide)
        if network.recurrent:
            for work, seen in zip(batch, self._seen, strict=True):
                self._recurrence[name].keep(work.link, seen)
        finished = time.perf_counter()
        seconds = {"network": computed - began, "finish": finished - computed}
        answers = [types.Answer(each, DEVICE, name, len(batch)) for each in reports]
        return types.BatchReport(answers, {step: 1000 * took for step, took in seconds.items()})

    def golden(self, model: str) -> types.Golden:
        rgb, truth = golden_image()
        with faults():
            began = time.perf_counter()
            matte = self._mattes(self._networks[model], [rgb], model)[0]
            seconds = time.perf_counter() - began
        return types.Golden(matte_to_image(matte, *truth.shape), seconds)

    def canary(self, blocks: int) -> types.MemoryTestPass:
        """One pass of the memory test over 4 KiB blocks, which stay allocated. Raises EngineFault."""
        with faults():
            if self._memory_test is None:
                self._memory_test = MemoryTest(np, DEVICE, blocks)
            return self._memory_test.check()

    def close(self) -> None:
        self._networks.clear()
        if self._memory_test is not None:
            self._memory_test.close()

    def _load(self, name: str, choice: types.ModelChoice) -> tuple[CpuNetwork, float]:
        """A network that passed the golden image, and the seconds that it took for it. Raises ModelError, EngineFault.

        OpenVINO where it has the network, unless it refuses it or this processor; else torch.
        """
        asked = self._options.cpu_runtime
        refused = "OpenVINO has no graph for it" if asked == "openvino" else ""
        if asked != "torch" and openvino_network.covers(resolve(choice.source, self._options.models_directory)):
            refused = openvino_network.unfit(self._options.precision)
            if not refused:
                try:
                    return self._in_openvino(name, choice)
                except ModelError:
                    raise
                except ImportError:
                    refused = missing_extra("openvino", "openvino", "OpenVINO").problems[0]
                except Exception as error:  # noqa: BLE001 - of a library that is there to be quicker: torch serves
                    refused = f"{type(error).__name__}: {gist(error)}"
        if refused:
            self._limits.append(types.Limit("openvino", f"{name} runs in torch, which takes longer: {refused}"))
        return self._in_torch(name, choice)

    def _in_openvino(self, name: str, choice: types.ModelChoice) -> tuple[CpuNetwork, float]:
        def make(precision: str) -> CpuNetwork:
            models = self._options.models_directory
            return OpenVinoNetwork(choice, models, precision=precision, threads=self._threads)

        network = self._in_precision("openvino", choice, make, openvino_network.multiplies_bfloat16)
        return network, self._prove(name, network)

    def _in_torch(self, name: str, choice: types.ModelChoice) -> tuple[CpuNetwork, float]:
        from rmbgd.backends.cpu import torch_network

        def make(precision: str) -> CpuNetwork:
            models, most = self._options.models_directory, self._options.batch_maximum
            return torch_network.TorchNetwork(
                choice, models, precision=precision, threads=self._threads, batch_maximum=most
            )

        network = self._in_precision("torch", choice, make, torch_network.multiplies_bfloat16)
        return network, self._prove(name, network)

    def _in_precision(
        self,
        runtime: str,
        choice: types.ModelChoice,
        make: Callable[[str], CpuNetwork],
        multiplies_bfloat16: Callable[[], bool],
    ) -> CpuNetwork:
        if self._precision != "auto":
            network = make(self._precision)
            network.facts["precision_because"] = "as configured in engine.precision"
            return network
        key = {"model": choice.source, "patch_order": choice.patch_order, "runtime": runtime}
        key["runtime_version"] = importlib.metadata.version(runtime)
        folder = Path(self._options.verdicts) if self._options.verdicts else None
        return in_best_precision(make, hardware=multiplies_bfloat16(), folder=folder, key=key)

    def _prove(self, name: str, network: CpuNetwork) -> float:
        """Seconds that the golden image took. Raises EngineNonsense."""
        began = time.perf_counter()
        matte = self._mattes(network, [golden_image()[0]], name)[0]
        seconds = time.perf_counter() - began
        network.facts["overlap"] = round(check_golden(matte, str(network.facts["model"]), name), 4)
        return seconds

    def _linked(
        self, network: CpuNetwork, batch: Sequence[types.Work], images: Sequence[NDArray[np.uint8]], name: str
    ) -> NDArray[np.float32]:
        """As `_mattes`, each with the frame before it. Raises EngineNonsense."""
        memory = self._recurrence.setdefault(name, Recurrence())
        small = [image_to_network(image, network.size, network.filter) for image in images]
        alpha = self._mattes(network, small, name, [memory.before(work.link) for work in batch])
        self._seen = [under_alpha(image, matte) for image, matte in zip(small, alpha, strict=True)]
        return alpha

    def _apart(
        self, network: CpuNetwork, _batch: Sequence[types.Work], images: Sequence[NDArray[np.uint8]], name: str
    ) -> NDArray[np.float32]:
        return self._mattes(network, images, name)

    @staticmethod
    def _mattes(
        network: CpuNetwork,
        images: Sequence[NDArray[np.uint8]],
        name: str,
        previous: Sequence[NDArray[np.uint8] | None] = (),
    ) -> NDArray[np.float32]:
        """Alpha float32 [n, h, w]. Raises EngineNonsense."""
        alpha = network.infer(images, previous) if previous else network.infer(images)
        if bad := [index for index, matte in enumerate(alpha) if not np.isfinite(matte).all()]:
            raise EngineNonsense(f"alpha is not finite for images {bad} of a batch of {len(alpha)} ({name})")
        return alpha

    @staticmethod
    def _look_again(
        network: CpuNetwork,
        batch: Sequence[types.Work],
        images: Sequence[NDArray[np.uint8]],
        alpha: NDArray[np.float32],
        reports: list[types.MatteReport],
    ) -> NDArray[np.float32]:
        """Alpha as it is, valid for longer; `reports` say how far a second look disagrees, where one is asked for.

        One without finite alpha says nothing, and is no fault.
        """
        asked = [place for place, work in enumerate(batch) if work.second_look and needs_second_look(reports[place])]
        if not asked:
            return alpha
        alpha = alpha.copy()
        small = (image_to_network(images[place], network.size, network.filter) for place in asked)
        looks = network.infer([wider(image) for image in small])
        for place, look in zip(asked, looks, strict=True):
            if np.isfinite(look).all():
                reports[place] = replace(reports[place], disagreement=disagreement(alpha[place], look))
        return alpha

    def _measure(self, network: CpuNetwork, first: float) -> dict[int, float]:
        """Seconds per batch by its size, up to the size that would take too long. `first`: of the first run."""
        if first > MEASURE_SECONDS or network.sizes == (1,):
            return {1: first}
        seconds: dict[int, float] = {}
        left = MEASURE_SECONDS
        for size in network.sizes:
            if size * seconds.get(1, 0.0) > left:
                break
            began = time.perf_counter()
            network.infer([golden_image()[0]] * size)
            seconds[size] = time.perf_counter() - began
            left -= seconds[size]
        return seconds


def report(image_id: int, matte: NDArray[np.float32]) -> types.MatteReport:
    """What is reported of a matte, float32 [h, w]; cuda/postprocess.py computes the same on the device."""
    soft = (matte > 0.05) & (matte < 0.95)
    shares = float((matte >= 0.5).mean()), float(soft.mean())
    return types.MatteReport(image_id, float(matte.mean(dtype=np.float64)), float(matte.max()), *shares)
