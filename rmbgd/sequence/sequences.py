"""Sequences of frames as the intake and the pipeline share them: whose turn it is, and the temporal filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from rmbgd.config.load import Config, Folder
from rmbgd.errors import ConfigError
from rmbgd.events import Emit
from rmbgd.sequence.filters import FilterRules, Filters, Plate
from rmbgd.sequence.turns import Turns

STATES = "sequences"  # folder in the state directory
PLATE_BYTES_MAXIMUM = 256 << 20


def _emit_nothing(event: str, /, **keys: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Sequences:
    """Without arguments: of a service that has no folder of frames."""

    turns: Turns = field(default_factory=Turns)
    filters: Filters = field(default_factory=lambda: Filters({}, None, 1, _emit_nothing))


def open_sequences(config: Config, emit: Emit, directory: Path | None) -> Sequences:
    """`directory` holds the states; None keeps none. Raises ConfigError for a plate that cannot be read."""
    rules: Mapping[str, FilterRules] = {
        folder.name: FilterRules(folder.temporal == "steady", _plate(folder))
        for folder in config.folder
        if folder.kind == "frames"
    }
    slots = config.pipeline.finish_threads + 2  # one more thread may serve realtime folders
    filters = Filters(rules, directory / STATES if directory is not None and rules else None, slots, emit)
    filters.prune()
    return Sequences(Turns(), filters)


def _plate(folder: Folder) -> Plate:
    if folder.plate in ("", "median"):
        return "median" if folder.plate else None
    try:
        with open(folder.plate, "rb") as file:
            data = np.frombuffer(file.read(PLATE_BYTES_MAXIMUM), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    except (OSError, cv2.error) as error:
        raise ConfigError(f"folder '{folder.name}': plate: {folder.plate} cannot be read: {error}") from error
    if image is None:
        raise ConfigError(
            f"folder '{folder.name}': plate: {folder.plate} is no image that can be read; a PNG or JPEG can"
        )
    return np.asarray(image, np.uint8)
