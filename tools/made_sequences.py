"""Make test sequences with exact alpha: photographs' subjects that move before backgrounds, seeded.

    python -m tools.made_sequences --out FOLDER [--kind pan ...] [--frames 48] [--size 1280x720] [--seed 1]

Writes KIND/frame_0001.jpg and truth/KIND/frame_0001.png. Subjects and their alpha, and backgrounds (photographs whose
subject is filled in) come from the evaluation data in ../shared or where RMBGD_SHARED says; without, from shapes and
textures of noise. Alpha is moved with the colours, so it is exact up to the rounding to a byte. Each sequence has noise
of a sensor and of a codec, of a strength of its own. Equal options give equal sequences.

    pan            the camera follows nothing: background and subject move past, with a little of a hand's shake
    still_camera   the background stands still to the pixel, the subject sways
    zoom           camera and subject come nearer
    occlusion      a post in front of the subject passes by
    light          brightness drifts, and flickers a little as lamps do
    cut            another subject before another background, twice
    walk           the subject walks through, with steps, before a still background that a hand holds
    rest           nothing moves: only the sensor's noise does
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.edges import clean_edges
from tools.benches.filters import SHARED, photographs

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

KINDS = ("pan", "still_camera", "zoom", "occlusion", "light", "cut", "walk", "rest")
FRAMES, SIZE, RATE = 48, (1280, 720), 25.0  # frames a second, in which speeds are meant
NOISE, JPEG_QUALITY = (1.5, 6.0), (70, 93)  # standard deviation of the sensor's noise, grey levels; of the codec
SUBJECT_HEIGHT = 0.72  # of the frame's
MARGIN = 1.35  # how much larger than the frame a background is, so that a camera can move
LEAST_SIDE = 400  # pixels of a photograph; smaller ones would be blurred at this size
FILLED = 0.25  # share of a background that may be filled in: what is smooth moves without a trace
TOUCHES = 0.04  # share of a photograph's border that lies on its subject, at most: others are cut off
AREA = (0.06, 0.7)  # share of the subject's box that it fills


@dataclass(frozen=True)
class Layer:
    """Colours float32 [H, W, 3] in 0..255, multiplied with `alpha`, float32 [H, W] in 0..1."""

    colours: Floats
    alpha: Floats


@dataclass(frozen=True)
class Pose:
    """Where things are in one frame; lengths in shares of the frame's height, angles in radians."""

    at: tuple[float, float] = (0.0, 0.0)  # of the subject's middle from the frame's
    scale: float = 1.0
    angle: float = 0.0
    lean: float = 0.0
    camera: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    gain: float = 1.0
    post: float | None = None


@dataclass(frozen=True)
class Material:
    """What sequences are made of."""

    subjects: Sequence[Layer]
    backgrounds: Sequence[Bytes]


def material(folder: Path | None = None) -> Material:
    """Of the evaluation data in `folder`, or where tools look for them; of shapes where there are none."""
    folder = Path(SHARED) / "eval" if folder is None else folder
    subjects, backgrounds = [], []
    if folder.is_dir():
        for case in photographs(folder):
            truth = np.where(case.counted, case.truth, 0).astype(np.float32)
            if min(truth.shape) >= LEAST_SIDE and truth.mean() < FILLED:
                backgrounds.append(_emptied(case.rgb, truth))
            if (layer := _subject(case.rgb, truth)) is not None:
                subjects.append(layer)
    if not subjects or not backgrounds:
        random = np.random.default_rng(7)
        subjects = [_shape(random) for _ in range(4)]
        backgrounds = [_texture(random, 480, 854, 24) for _ in range(4)]
    return Material(subjects, backgrounds)


def frames(
    kind: str, seed: int, source: Material, *, count: int = FRAMES, size: tuple[int, int] = SIZE
) -> Iterator[tuple[Bytes, Bytes]]:
    """(frame uint8 [H, W, 3] RGB, alpha uint8 [H, W]) one by one. size: (width, height). Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    random = np.random.default_rng([seed, KINDS.index(kind)])
    shots = 3 if kind == "cut" else 1
    noise, quality = float(random.uniform(*NOISE)), int(random.integers(*JPEG_QUALITY))
    lengths = [len(part) for part in np.array_split(np.arange(count), shots)]
    for length in lengths:
        subject = source.subjects[int(random.integers(len(source.subjects)))]
        background = source.backgrounds[int(random.integers(len(source.backgrounds)))]
        stage = _Stage(subject, background, size, blur=float(random.uniform(0, 2)))
        for pose in _poses("walk" if kind == "cut" else kind, length, random):
            rgb, alpha = stage.shown(pose)
            yield _photographed(rgb, noise, quality, random), alpha


def _poses(kind: str, count: int, random: np.random.Generator) -> Iterator[Pose]:
    """A second has RATE frames, however many are asked for."""
    speed, turn = float(random.uniform(0.15, 0.5)), float(random.choice([-1, 1]))
    phase, shake = float(random.uniform(0, 6)), np.zeros(2)
    for number in range(count):
        t = number / RATE
        shake = 0.85 * shake + random.normal(0, 0.0012, 2)
        sway = math.sin(2.2 * t + phase)
        pose = Pose(at=(0.1 * turn + 0.02 * sway, 0.08), angle=0.03 * sway, lean=0.04 * math.sin(3.1 * t + phase))
        held = (float(shake[0]), float(shake[1]))
        if kind == "pan":
            moved = turn * speed * (t - count / RATE / 2) * 0.4
            pose = replace(pose, camera=(moved + held[0], held[1]), at=(pose.at[0] - 0.8 * moved, 0.08 + held[1]))
        elif kind == "zoom":
            pose = replace(pose, zoom=1 + 0.12 * t, scale=0.85 + 0.12 * t, camera=held)
        elif kind == "occlusion":
            pose = replace(pose, post=turn * (-0.9 + 1.1 * t), camera=held)
        elif kind == "light":
            pose = replace(pose, gain=1 + 0.22 * math.sin(1.6 * t + phase) + float(random.normal(0, 0.008)))
        elif kind == "walk":
            step = 0.015 * abs(math.sin(6 * t))
            across = turn * (speed * (t - count / RATE / 2))
            pose = replace(pose, at=(across, 0.08 - step), angle=0.04 * math.sin(6 * t), camera=held)
        elif kind == "rest":
            pose = Pose(at=(0.1 * turn, 0.08))
        yield pose


class _Stage:
    """Puts one subject before one background."""

    def __init__(self, subject: Layer, background: Bytes, size: tuple[int, int], *, blur: float) -> None:
        self.subject, self.size = subject, size
        width, height = size
        room = (round(MARGIN * width), round(MARGIN * height))
        enlarge = max(room[0] / background.shape[1], room[1] / background.shape[0])
        enlarged = cv2.resize(background, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_LINEAR)
        self.back = cv2.GaussianBlur(enlarged, (0, 0), blur) if blur > 0.3 else enlarged

    def shown(self, pose: Pose) -> tuple[Floats, Bytes]:
        """(colours float32 [H, W, 3] in 0..255, alpha)."""
        width, height = self.size
        rows, columns = self.back.shape[:2]
        view = np.array([[pose.zoom, 0, 0], [0, pose.zoom, 0]], np.float32)
        view[:, 2] = (
            np.array(self.size) / 2 - pose.zoom * np.array([columns, rows]) / 2 - np.array(pose.camera) * height
        )
        seen = cv2.warpAffine(self.back, view, self.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        base = SUBJECT_HEIGHT * height * pose.scale / self.subject.alpha.shape[0]
        cosine, sine = base * math.cos(pose.angle), base * math.sin(pose.angle)
        place = np.array([[cosine, -sine + base * pose.lean, 0], [sine, cosine, 0]], np.float32)
        middle = np.array(self.subject.alpha.shape[::-1], np.float32) / 2
        place[:, 2] = (
            np.array([width / 2 + pose.at[0] * height, height / 2 + pose.at[1] * height]) - place[:, :2] @ middle
        )
        alpha, colours = (cv2.warpAffine(each, place, self.size) for each in (self.subject.alpha, self.subject.colours))
        rgb = colours + (1 - alpha)[:, :, None] * seen
        if pose.post is not None:
            half, centre = 0.05 * height, width / 2 + pose.post * height
            post = np.clip(half - np.abs(np.arange(width) + 0.5 - centre) + 0.5, 0, 1).astype(np.float32)[None, :, None]
            rgb = rgb * (1 - post) + post * np.array([92, 84, 70], np.float32)
            alpha = alpha * (1 - post[:, :, 0])
        return np.asarray(rgb * np.float32(pose.gain), np.float32), np.rint(255 * alpha).astype(np.uint8)


def _photographed(rgb: Floats, noise: float, quality: int, random: np.random.Generator) -> Bytes:
    """With noise of a sensor, and of a codec."""
    noisy = rgb + noise * random.standard_normal(rgb.shape, dtype=np.float32)
    pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    packed = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)[:, :, ::-1])


def _subject(rgb: Bytes, truth: Floats) -> Layer | None:
    """Cut out with its own colours at the edge; None where the photograph's border cuts it, or it is too small."""
    solid = truth > 0.5
    border = np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]])
    x, y, width, height = cv2.boundingRect(solid.astype(np.uint8))
    if border.mean() > TOUCHES or height < LEAST_SIDE * 0.6 or width > 1.6 * height:
        return None
    if not AREA[0] < solid[y : y + height, x : x + width].mean() < 1 - AREA[0]:
        return None
    soft = np.asarray(
        cv2.GaussianBlur(truth, (0, 0), 0.8), np.float32
    )  # most truths are of 0 and 1 alone, as no camera sees
    rgba = np.dstack([rgb, np.rint(255 * soft).astype(np.uint8)])
    clean_edges(rgb, soft, rgba)
    box = np.s_[max(0, y - 4) : y + height + 4, max(0, x - 4) : x + width + 4]
    colours, alpha = rgba[:, :, :3][box].astype(np.float32), soft[box]
    framed = [np.pad(each, ((2, 2), (2, 2), (0, 0))[: each.ndim]) for each in (colours * alpha[:, :, None], alpha)]
    return Layer(np.asarray(framed[0], np.float32), np.asarray(framed[1], np.float32))


def _emptied(rgb: Bytes, truth: Floats) -> Bytes:
    """Without its subject: filled with what is around it, from coarse to fine."""
    kept = (cv2.dilate(truth, np.ones((9, 9), np.uint8)) < 0.02).astype(np.float32)
    levels = [(np.asarray(rgb * kept[:, :, None], np.float32), kept)]
    while min(levels[-1][1].shape) > 2:
        colours, share = (np.asarray(cv2.pyrDown(each), np.float32) for each in levels[-1])
        levels.append((colours, share))
    below = levels[-1][0] / np.maximum(levels[-1][1], 1e-3)[:, :, None]
    for colours, share in reversed(levels[:-1]):
        enlarged = np.asarray(cv2.resize(below, share.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        below = colours + (1 - np.minimum(share, 1))[:, :, None] * enlarged
    return np.clip(np.rint(below), 0, 255).astype(np.uint8)


def _texture(random: np.random.Generator, height: int, width: int, grain: int) -> Bytes:
    coarse = random.integers(30, 226, (max(2, height // grain), max(2, width // grain), 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _shape(random: np.random.Generator) -> Layer:
    """A lumpy disc with a texture of its own."""
    y, x = np.mgrid[-1.1:1.1:480j, -0.8:0.8:350j].astype(np.float32)
    around = np.arctan2(y, x)
    lumps = sum(
        float(random.uniform(0.02, 0.09)) * np.sin(n * around + float(random.uniform(0, 6))) for n in (2, 3, 5, 7)
    )
    alpha = np.clip((0.7 + lumps - np.hypot(x * 1.2, y * 0.8)) * 60, 0, 1).astype(np.float32)
    return Layer(_texture(random, 480, 350, 40).astype(np.float32) * alpha[:, :, None], alpha)


def write(folder: Path, kind: str, made: Iterator[tuple[Bytes, Bytes]], suffix: str) -> int:
    """Frames and truths in number order; how many."""
    shown, truth = folder / kind, folder / "truth" / kind
    number = 0
    for each in (shown, truth):
        each.mkdir(parents=True, exist_ok=True)
    for number, (rgb, alpha) in enumerate(made, 1):
        cv2.imwrite(str(shown / f"frame_{number:04d}.{suffix}"), rgb[:, :, ::-1])
        cv2.imwrite(str(truth / f"frame_{number:04d}.png"), alpha)
    return number


def size_of(text: str) -> tuple[int, int]:
    if (found := re.fullmatch(r"([0-9]{2,5})x([0-9]{2,5})", text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write WIDTHxHEIGHT")
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.made_sequences", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--kind", choices=KINDS, action="append", help="give it several times; default: all")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--size", type=size_of, default=SIZE, metavar="WxH")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--suffix", choices=("jpg", "png"), default="jpg")
    options = parser.parse_args()
    source = material()
    for kind in options.kind or KINDS:
        made = frames(kind, options.seed, source, count=options.frames, size=options.size)
        print(f"{options.out / kind}: {write(options.out, kind, made, options.suffix)} frames")


if __name__ == "__main__":
    main()
