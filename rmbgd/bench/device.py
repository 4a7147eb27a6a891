"""Which device is measured, and that what is needed for it is there, before any process is started.

Says no in the operator's words: every error here is a ConfigError that names what to do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rmbgd.bench import memory
from rmbgd.config import Config, Recipe
from rmbgd.engines import Machine
from rmbgd.engines.visible import nvml_target
from rmbgd.errors import ConfigError
from rmbgd.models import consent, places


@dataclass(frozen=True, slots=True)
class Target:
    """`device` as the engine wants it ("cpu", "cuda:0"), in words, and where NVML finds it."""

    device: str
    called: str
    nvml_index: int = 0
    nvml_uuid: str | None = None

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def nvml(self) -> object:
        """The module pynvml, where this is a GPU and the module is installed."""
        return memory.nvml_or_none() if self.is_gpu else None


def target(asked: str, machine: Machine) -> Target:
    """For "auto" and "cuda" the first visible GPU; for "auto" else the CPU. Raises ConfigError where there is none."""
    if asked == "cpu":
        return Target("cpu", "CPU")
    visible = machine.gpus()
    index = int(asked.partition(":")[2] or 0)
    if index < visible.count:
        nvml_index, uuid = nvml_target(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return Target(f"cuda:{index}", visible.why, nvml_index, uuid)
    if asked == "auto":
        return Target("cpu", f"CPU; no GPU is visible: {visible.why}")
    raise ConfigError(
        f"--device {asked}: {visible.count} GPUs are visible: {visible.why}. See `rmbgd doctor`, or measure the CPU "
        "with --device cpu"
    )


def require_model(recipe: Recipe, config: Config) -> None:
    """Raises ModelError where the model's weights are not here or not accepted, with the way to get them."""
    models = config.service.models_directory
    place = places.resolve(recipe.model, models)
    if place.entry is not None:
        consent.require(place.entry, models)
