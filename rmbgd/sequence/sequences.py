"""Sequences of frames as the intake and the pipeline share them: whose turn it is, and the temporal filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from rmbgd.clock import Clock
from rmbgd.config.load import Config, Folder
from rmbgd.errors import ConfigError
from rmbgd.events import Emit
from rmbgd.sequence.filters import FilterRules, Filters, Plate, Resumed
from rmbgd.sequence.open_sequences import OpenSequences
from rmbgd.sequence.turns import Turns

STATES = "sequences"  # folder in the state directory
SHARED_STATES = ".rmbgd-sequences"  # folder in an output that several machines share
PLATE_BYTES_MAXIMUM = 256 << 20


def _emit_nothing(event: str, /, **keys: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Sequences:
    """Without arguments: of a service that has no folder of frames.

    announced  of a service that announces sequences; what is to be said of their frames is said where they are computed
    """

    turns: Turns = field(default_factory=Turns)
    filters: Filters = field(default_factory=lambda: Filters({}, 1, _emit_nothing))
    announced: OpenSequences | None = None

    def resume(self, folder: str, sequence: str) -> Resumed:
        """A frame of it comes, and it is not in work: where it goes on."""
        if self.announced is not None:
            self.announced.begun(folder, sequence)
        return self.filters.resume(folder, sequence)

    def emit(self, emit: Emit) -> Emit:
        """Of what an intake has to say about frames."""
        return emit if self.announced is None else _emit_nothing

    def close(
        self, folder: str, sequence: str, *, seconds: float, missing: int, apart: int, why: str
    ) -> dict[str, object]:
        """It is over, and nothing of it is in the pipeline: the keys of its sequence.done."""
        if self.announced is not None:
            self.announced.close(folder, sequence)
        said = self.filters.close(folder, sequence)
        self.turns.forget(folder, sequence)
        rate = {"rate": round(int(str(said["frames"])) / seconds, 2)} if seconds else {}
        keys = {"missing": missing, "apart": apart, "seconds": seconds, "why": why}
        return {"folder": folder, "sequence": sequence, **said, **keys, **rate}


def open_sequences(config: Config, emit: Emit, directory: Path | None) -> Sequences:
    """`directory` holds the states; None keeps none. Raises ConfigError for a plate that cannot be read."""
    shared = config.source.kind == "jetstream"  # another worker may go on with a sequence
    rules: Mapping[str, FilterRules] = {
        folder.name: FilterRules(
            folder.temporal == "steady",
            _plate(folder),
            None if directory is None else folder.output / SHARED_STATES if shared else directory / STATES,
        )
        for folder in config.folder
        if folder.kind == "frames"
    }
    slots = config.pipeline.finish_threads + 2  # one more thread may serve realtime folders
    filters = Filters(rules, slots, emit)
    filters.prune()
    return Sequences(Turns(), filters)


def announced_sequences(config: Config, clock: Clock) -> Sequences:
    """Of a service that announces them."""
    folders = {folder.name: folder for folder in config.folder}
    return Sequences(announced=OpenSequences(config.service.state_directory, folders, clock))


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
