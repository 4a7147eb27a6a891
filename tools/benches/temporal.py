"""Measures the temporal filter on made sequences with exact alpha: flicker, lag, error at moving edges, time.

Mattes of u2netp, as the service has them, frame by frame, and what five filters make of them:

    steady   sequence.temporal, without a plate
    ahead    the same for a film, with the frame after each
    median   the same for a fixed camera, with the plate that it learns
    ema      60 % of the last frame where it was: what ghosts
    frozen   the first frame, forever: what no figure of flicker minds

dtSSD                 of Erofeev et al., 2015, within shots: across a cut there is no flicker
dtSSD along motion    the same of errors that are moved along the flow first, after their MESSDdt: where things move,
                      most of dtSSD is error that moves with them, which no temporal filter takes away
warped, still, lag    the figures without truth of sequence.figures
edges                 moving_edge_error of `rmbgd eval`, in per cent, as MAE is
ms                    processor time of a frame in `steady`, on one core, with its figures

Changes are of each sequence against its frames one by one, in per cent, then their mean, beside the means themselves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from rmbgd.evaluate.metrics import Plane, dtssd
from rmbgd.evaluate.sequence import moving_edge_error
from rmbgd.sequence.figures import SequenceFigures
from rmbgd.sequence.temporal import WEIGHT, Memory, looked_ahead, measured, steady
from tools.made_sequences import FRAMES, KINDS, SIZE, Material, frames, material, size_of
from tools.tables import Report, steps, table

Bytes = NDArray[np.uint8]
Filter = Callable[[Bytes, Bytes], Bytes]
MEASURES = ("dtssd", "dtssd_along_motion", "warped_error", "still_change", "lag", "edges", "mae")
BARE = "per frame"
AHEAD = 1  # frames, as a film's folder has it
CUT = 0.2  # mean change of the truth beyond which two frames are of two shots
ONE = 1 / 255


@dataclass(frozen=True)
class MadeSequence:
    """Frames uint8 [n, H, W, 3], and alpha of the truth and of the network, uint8 [n, H, W]."""

    kind: str
    seed: int
    rgb: Bytes
    truth: Bytes
    alpha: Bytes

    @property
    def cuts(self) -> set[int]:
        """Frames that begin another shot."""
        shots = 3 if self.kind == "cut" else 1
        return {int(part[0]) for part in np.array_split(np.arange(len(self.rgb)), shots) if len(part)}


def mattes() -> Callable[[Bytes], Bytes]:
    """Alpha of u2netp at the image's size, rounded, as the service has it."""
    from rmbgd.backends.cpu.openvino_network import OpenVinoNetwork
    from rmbgd.engine.types import ModelChoice
    from rmbgd.imaging.refine import refine_edges, refines
    from rmbgd.imaging.resize import image_to_network, matte_to_image
    from rmbgd.models.store import DEFAULT_MODELS

    network = OpenVinoNetwork(ModelChoice("u2netp"), DEFAULT_MODELS, precision="float32", threads=1)

    def of(rgb: Bytes) -> Bytes:
        matte = network.infer([rgb])[0].copy()
        alpha = np.array(matte_to_image(matte, *rgb.shape[:2]))
        if refines(network.size, *rgb.shape[:2]):
            refine_edges(rgb, matte, image_to_network(rgb, network.size, network.filter), alpha)
        return np.asarray(np.rint(alpha.clip(0, 1) * 255), np.uint8)

    return of


def made(
    source: Material, kind: str, seed: int, options: argparse.Namespace, matte: Callable[[Bytes], Bytes]
) -> MadeSequence:
    """Mattes are kept in the cache's folder, where there is one, as the network takes longest."""
    shown = list(frames(kind, seed, source, count=options.frames, size=options.size))
    rgb, truth = (np.array([each[side] for each in shown]) for side in (0, 1))
    name = f"{kind}-{seed}-{options.frames}-{options.size[0]}x{options.size[1]}.npz"
    kept = None if options.cache is None else options.cache / name
    if kept is not None and kept.is_file():
        with np.load(kept) as found:
            if int(found["sum"]) == int(rgb.sum(dtype=np.int64)):  # of these very frames
                return MadeSequence(kind, seed, rgb, truth, np.asarray(found["alpha"], np.uint8))
    alpha = np.array([matte(each) for each in rgb])
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, alpha=alpha, sum=rgb.sum(dtype=np.int64))
    return MadeSequence(kind, seed, rgb, truth, alpha)


@dataclass
class Steady:
    """A sequence's filter, and the processor time that it took."""

    median: bool
    memory: Memory | None = None
    seconds: float = 0.0

    def __call__(self, rgb: Bytes, alpha: Bytes) -> Bytes:
        began = time.process_time()
        found, self.memory, _ = steady(rgb, alpha, self.memory, plate="median" if self.median else None)
        self.seconds += time.process_time() - began
        return found


@dataclass
class Ahead:
    """The filter of a film of which the next AHEAD frames are known."""

    sequence: MadeSequence
    memory: Memory | None = None
    seconds: float = 0.0
    number: int = 0

    def __call__(self, rgb: Bytes, _alpha: Bytes) -> Bytes:
        began = time.process_time()
        window = slice(self.number, self.number + AHEAD + 1)
        seen = list(zip(self.sequence.rgb[window], self.sequence.alpha[window], strict=True))
        found, self.memory, _ = steady(rgb, looked_ahead(seen), self.memory)
        self.number += 1
        self.seconds += time.process_time() - began
        return found


def ema(_sequence: MadeSequence) -> Filter:
    last: Bytes | None = None

    def of(_rgb: Bytes, alpha: Bytes) -> Bytes:
        nonlocal last
        last = alpha if last is None else np.asarray(cv2.addWeighted(last, WEIGHT, alpha, 1 - WEIGHT, 0), np.uint8)
        return last

    return of


def frozen(_sequence: MadeSequence) -> Filter:
    first: list[Bytes] = []

    def of(_rgb: Bytes, alpha: Bytes) -> Bytes:
        first.append(alpha)
        return first[0]

    return of


FILTERS: dict[str, Callable[[MadeSequence], Filter]] = {
    BARE: lambda _: lambda _rgb, alpha: alpha,
    "steady": lambda _: Steady(median=False),
    "ahead": Ahead,
    "median": lambda _: Steady(median=True),
    "ema": ema,
    "frozen": frozen,
}


def judged(sequence: MadeSequence, filtered: Filter) -> dict[str, float]:
    """By MEASURES; one that there is nothing of is missing."""
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    figures = SequenceFigures()
    memory: Memory | None = None
    before: tuple[Plane, Plane] | None = None
    for number, (rgb, truth, alpha) in enumerate(zip(sequence.rgb, sequence.truth, sequence.alpha, strict=True)):
        published = filtered(rgb, alpha)
        last, memory = memory, None
        memory, frame_figures = measured(rgb, alpha, published, last)
        figures.add(frame_figures)
        a, t = (each.astype(np.float32) * np.float32(ONE) for each in (published, truth))
        found["mae"].append(100 * float(np.abs(a - t).mean(dtype=np.float64)))
        if before is not None and last is not None and number not in sequence.cuts:
            found["dtssd"].append(dtssd(a, t, *before))
            found["dtssd_along_motion"].append(_along_motion(a - t, before[0] - before[1], memory.guide, last.guide))
            edges = moving_edge_error(a, t, before[1])
            found["edges"] += [] if edges is None else [100 * edges]
        before = a, t
    document = figures.document()
    means = {name: float(np.mean(values)) for name, values in found.items() if values}
    return means | {name: float(str(document[name])) for name in MEASURES if document.get(name) is not None}


def _along_motion(error: Plane, error_before: Plane, guide: Bytes, last: Bytes) -> float:
    """Of the flow that the filter uses, better by an order: what is measured is not what measures."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    step = error.shape[1] / guide.shape[1]
    flow = cv2.resize(dis.calc(guide, last, None), error.shape[::-1]) * np.float32(step)
    moved = cv2.remap(
        error_before, flow, None, cv2.INTER_LINEAR | cv2.WARP_RELATIVE_MAP, borderMode=cv2.BORDER_REPLICATE
    )  # type: ignore[call-overload]
    return 100 * float(np.sqrt(np.square(error - moved).mean(dtype=np.float64)))


def changes(rows: Sequence[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """Mean over sequences of the change against the bare frames, in per cent; of lag, which is 0 there, the mean."""
    found = {}
    for measure in MEASURES:
        pairs = [
            (row[name][measure], row[BARE][measure]) for row in rows if measure in row[name] and measure in row[BARE]
        ]
        if measure == "lag" and pairs:
            found[measure] = float(np.mean([value for value, _ in pairs]))
        elif pairs:
            found[measure] = 100 * float(np.mean([value / max(bare, 1e-9) - 1 for value, bare in pairs]))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=KINDS, action="append", help="give it several times; default: all")
    parser.add_argument("--seed", type=int, action="append", help="likewise; default: 1")
    parser.add_argument("--frames", type=int, default=FRAMES // 2)
    parser.add_argument("--size", type=size_of, default=SIZE, metavar="WxH")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where mattes are kept for another run")


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        options.kind, options.frames, options.size = ["walk"], 4, (320, 180)
    cv2.setNumThreads(1)
    source, matte = material(), mattes()
    rows: list[dict[str, dict[str, float]]] = []
    names: list[tuple[str, int]] = []
    spent = {"steady": 0.0, "ahead": 0.0, "median": 0.0}
    count = 0
    asked = [(kind, seed) for seed in options.seed or [1] for kind in options.kind or KINDS]
    for at in steps(len(asked), "sequences"):
        sequence = made(source, *asked[at], options, matte)
        row = {}
        for name, begun in FILTERS.items():
            filtered = begun(sequence)
            row[name] = judged(sequence, filtered)
            if isinstance(filtered, (Steady, Ahead)):
                spent[name] += filtered.seconds
        rows.append(row)
        names.append(asked[at])
        count += len(sequence.rgb)
    milliseconds = {name: round(1000 * seconds / max(1, count), 2) for name, seconds in spent.items()}
    found = {
        "sequences": [{"kind": kind, "seed": seed} | row for (kind, seed), row in zip(names, rows, strict=True)],
        "change": {name: changes(rows, name) for name in FILTERS if name != BARE},
        "ms": milliseconds,
    }
    return Report(list(_tables(names, rows, milliseconds)), found)


def _tables(
    names: Sequence[tuple[str, int]], rows: Sequence[dict[str, dict[str, float]]], milliseconds: dict[str, float]
) -> Iterator[RenderableType]:
    heads = [measure.replace("_", " ") for measure in MEASURES]
    yield table(
        "change against the frames one by one, % (lag: frames)", "filter", *heads, "ms",
        rows=[
            [name, *(_percent(measure, changes(rows, name)) for measure in MEASURES), milliseconds.get(name)]
            for name in FILTERS if name != BARE
        ],
    )  # fmt: skip
    for kind in dict.fromkeys(kind for kind, _ in names):
        some = [row for (each, _), row in zip(names, rows, strict=True) if each == kind]
        bare = {m: np.mean([row[BARE][m] for row in some if m in row[BARE]] or [np.nan]) for m in MEASURES}
        lines = [[BARE, *(f"{bare[measure]:.4f}" for measure in MEASURES)]]
        lines += [[n, *(_percent(m, changes(some, n)) for m in MEASURES)] for n in FILTERS if n != BARE]
        yield table(f"\n{kind}", "filter", *heads, rows=lines)


def _percent(measure: str, found: dict[str, float]) -> str:
    if measure not in found:
        return ""
    return f"{found[measure]:.3f}" if measure == "lag" else f"{found[measure]:+.1f}"
