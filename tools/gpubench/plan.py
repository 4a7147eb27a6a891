"""How much is measured, and what the sections hand to each other: plain values in JSON files. Measures nothing."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """One run. Sides in pixels, times in s."""

    work: str  # folder of weights, images and answers, for the length of the run
    out: str = ""  # folder of what is kept
    kernels: str = "auto"  # "off" where they compute nonsense on this card
    test_seconds: float = 240.0  # for the tests that need a GPU
    device: str = "cuda:0"
    backbone: str = "swin_v1_l"
    side: int = 1024
    recipe: str = ""  # folder with recipe.py, or empty: weights are then drawn by rule
    checkpoint: str = ""  # folder of weights of one's own, or empty
    patch_order: str = "channel_first"
    batches: Sequence[int] = (1, 2, 4, 8, 16)
    repeats: int = 10  # forwards that count, per row of networks alone
    naive_images: int = 30
    row_seconds: float = 3.0  # per row of the waterfall
    latency_images: int = 1000  # one at a time
    accuracy_images: int = 4
    hot_files: int = 2000  # through the service
    steps: Sequence[str] = ()  # of the waterfall; empty means all
    source_seconds: float = 10.0  # with one, and with eight sources
    start_timeout: float = 180.0

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def small_and_large(self) -> list[int]:
        """Batches of one, and of the largest size up to eight."""
        return sorted({1, min(8, max(self.batches))})

    @property
    def weights(self) -> Path:
        return Path(self.checkpoint or Path(self.work, "weights"))


# Proves that every section works; no figure of it means anything.
QUICK: dict[str, Any] = {"backbone": "swin_v1_t", "side": 64, "batches": (1, 2), "repeats": 2, "naive_images": 2}
QUICK |= {"row_seconds": 0.2, "latency_images": 25, "accuracy_images": 1, "hot_files": 10, "source_seconds": 1.0}
QUICK["steps"] = "engine, eager float16, folded", "+ graphs", "as the service runs it, 12 megapixels"


def module(name: str) -> Any:
    """A module of the tests: the oracle, or the reader of recipes."""
    return importlib.import_module(f"tests.models.{name}")


def recipe_folder() -> str:
    """Where recipe.py lies: where the tests look, or inside the checkout. Empty when nowhere."""
    shared = [Path(os.environ.get("RMBGD_SHARED", ROOT.parent / "shared")), ROOT / "shared"]
    return next((str(place / "birefnet") for place in shared if (place / "birefnet" / "recipe.py").exists()), "")


class Answer:
    """What a section has found so far. Written after every row: a section that is killed loses only its last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}

    def put(self, **values: Any) -> None:
        self._values |= values
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._values))
        part.replace(self._path)

    def rows(self, name: str = "rows") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._values.get(name, [])
        return found

    def row(self, row: Mapping[str, Any], name: str = "rows") -> None:
        self.put(**{name: [*self._values.get(name, []), dict(row)]})

    @contextlib.contextmanager
    def or_error(self, row: Mapping[str, Any], *errors: type[Exception]) -> Iterator[None]:
        """That row with the first line of the error, where the block ends in one of `errors`."""
        try:
            yield
        except errors as error:
            self.row({**row, "error": str(error).splitlines()[0]})


def answers(work: str) -> dict[str, Any]:
    """What the sections before have found, by section."""
    paths = sorted(Path(work).glob("answer-*.json"))
    return {path.stem.removeprefix("answer-"): json.loads(path.read_text()) for path in paths}
