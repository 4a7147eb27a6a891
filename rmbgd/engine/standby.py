"""An engine that answers with the models that stand in: whoever asks for one gets its substitute, under its own name.

Does not choose the substitutes, and knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rmbgd.engine.types import Backend, BatchReport, EngineDescription, Work


class SubstituteEngine:
    """`substitutes`: model asked for -> model that computes. An answer names the one that computed it, so that nobody
    remembers a lesser model's image as the one that was asked for."""

    def __init__(self, engine: Backend, substitutes: Mapping[str, str]) -> None:
        self._engine = engine
        self._substitutes = dict(substitutes)

    def start(self) -> EngineDescription:
        return self._engine.start()

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        return self._engine.segment([replace(work, model=self._substitutes[work.model]) for work in batch])

    def close(self) -> None:
        self._engine.close()
