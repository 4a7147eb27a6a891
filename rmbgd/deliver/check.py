"""Check a finished file against the rules of a preset: from its bytes, with another decoder than wrote them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms

from rmbgd.config.presets import Preset, Rule
from rmbgd.deliver.boxes import Box, subject_box
from rmbgd.imaging.compose import Bytes, Pixels

Outcome = Literal["pass", "fixed", "fail"]

EDGE_WHITE = 250  # of 255; least of the background's pixels in blocks that the subject's edge shares
UNLIKE = 16  # of 255; pixels of a file without alpha that differ so much from the background are its subject
FRINGE = 0.05  # of the longer side; how far beside that soft edges may reach, as nobody knows their alpha
BLOCK, HALVED = 8, 16  # pixels a side of what JPEG codes as one, and where chroma is halved


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What one rule found. `outcome`: fixed where something was changed so that it passes; `how` says what."""

    rule: str
    requirement: str
    measured: str
    required: str
    outcome: Outcome
    how: str = ""

    def document(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if value != ""}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A file as another reader sees it.

    pixels  uint8 [H, W, 3], red, green, blue
    alpha   uint8 [H, W], of the file's own; None where it has none
    halved  is chroma halved
    profile description of the colour profile, "" without any
    """

    form: str
    pixels: Bytes
    alpha: Bytes | None
    halved: bool
    profile: str
    dpi: float
    size: int


@dataclass(frozen=True, slots=True)
class Background:
    """How clean a plain background is.

    stained  blocks without a subject that are not exactly its colour
    least    of 255, what is left of its colour in the worst background pixel of blocks that the edge shares
    below    how many of these have less than EDGE_WHITE
    """

    blocks: int
    stained: int
    least: int
    below: int


def decoded(data: bytes) -> Decoded:
    """Raises ValueError where it is no image that can be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            form, profile, dpi = (image.format or "").lower(), image.info.get("icc_profile"), image.info.get("dpi")
            layers = getattr(image, "layer", None) or []
            halved, mode = any(max(layer[1:3]) > 1 for layer in layers), image.mode
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))) if profile else ""
        pixels = _pixels(data, form, mode)
    except Exception as error:  # of hostile bytes decoders raise nearly anything, and Pillow warns
        raise ValueError(f"it cannot be read: {error}") from error
    alpha = np.asarray(pixels[:, :, 3], np.uint8, order="C") if pixels.shape[2] == 4 else None
    colours = pixels if alpha is None else np.ascontiguousarray(pixels[:, :, :3])
    return Decoded(form, colours, alpha, halved, name, float(dpi[0]) if dpi else 0.0, len(data))


def _pixels(data: bytes, form: str, mode: str) -> Bytes:
    """uint8 [H, W, 3 or 4]. Raises anything where it cannot be read."""
    if form in ("jpeg", "mpo") and mode in ("L", "RGB"):  # damage inside only makes OpenCV warn; this one refuses it
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True), np.uint8)
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if read is None:
        raise ValueError("no decoder knows it")
    pixels = np.asarray(read)
    if pixels.dtype == np.uint16:
        pixels = (pixels // 256).astype(np.uint8)
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    return np.asarray(
        cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB), np.uint8
    )


def check(
    data: bytes,
    preset: Preset,
    *,
    alpha: Bytes | None = None,
    enlarged: float | None = None,
    cut: Sequence[str] = (),
    fixed: Mapping[str, str] = {},
) -> list[RuleResult]:
    """What each rule of `preset` finds in an encoded file.

    alpha     uint8 [H, W], of the finished frame; None: the file's own, or else found from its pixels
    enlarged  times, as far as that is known; a rule about it is left out where it is not
    cut       borders of the photograph that the subject touches, as far as that is known: what lies beyond is missing
    fixed     rule -> what was done so that it passes
    """
    try:
        found = decoded(data)
    except ValueError as error:
        return [RuleResult("readable", "it can be read", str(error), "an image", "fail")]
    colour = bytes.fromhex(preset.make.background.removeprefix("#"))
    if alpha is None or alpha.shape != found.pixels.shape[:2]:
        alpha = found.alpha if found.alpha is not None else _differing(found.pixels, colour)
    about = _About(found, alpha, subject_box(alpha), colour, enlarged, cut)
    return [
        _judged(rule, *about.measured(rule), fixed.get(rule.kind, ""))
        for rule in preset.rule
        if rule.kind != "enlargement" or enlarged is not None
    ]


def background_holds(data: bytes, preset: Preset, alpha: Bytes | None) -> bool:
    """Does the encoded file keep the rule about its background, if there is one?"""
    rule = preset.rule_of("background")
    if rule is None or alpha is None:
        return True
    found = decoded(data)
    about = _About(found, alpha, None, bytes.fromhex(preset.make.background.removeprefix("#")), None, ())
    return about.measured(rule)[2]


def background(pixels: Bytes, alpha: Bytes, colour: bytes, *, halved: bool) -> Background:
    """How exactly the background has its colour.

    pixels  uint8 [H, W, 3];  alpha  uint8 [H, W], 0 where there is background
    halved  blocks have HALVED pixels a side, not BLOCK
    """
    side = HALVED if halved else BLOCK
    apart = _apart(pixels, colour)
    apart[alpha > 0] = 0
    subject, worst = _blocks(alpha, side), _blocks(apart, side)
    edge = worst[subject > 0]
    below = 0
    if edge.max(initial=0) > 255 - EDGE_WHITE:
        stained = cv2.resize(np.where(subject > 0, 255, 0).astype(np.uint8), None, fx=side, fy=side, interpolation=0)
        shared = np.asarray(stained)[: alpha.shape[0], : alpha.shape[1]] > 0
        below = int(np.count_nonzero(shared & (apart > 255 - EDGE_WHITE)))
    least = 255 - int(edge.max(initial=0))
    return Background(subject.size, int(np.count_nonzero(worst[subject == 0])), least, below)


def _apart(pixels: Bytes, colour: bytes) -> Bytes:
    """How far each pixel is from a colour, in the channel where it is furthest."""
    channels = [
        cv2.absdiff(channel, np.array([value], np.uint8))
        for channel, value in zip(cv2.split(pixels), colour, strict=True)
    ]
    return np.asarray(cv2.max(cv2.max(channels[0], channels[1]), channels[2]), np.uint8)


def _blocks(plane: Bytes, side: int) -> Bytes:
    """The largest value of each block."""
    height, width = (-(-length // side) * side for length in plane.shape)
    padded = plane
    if (height, width) != plane.shape:
        padded = np.zeros((height, width), np.uint8)
        padded[: plane.shape[0], : plane.shape[1]] = plane
    rows = padded.reshape(height // side, side, width).max(axis=1)
    return np.asarray(rows.reshape(height // side, width // side, side).max(axis=2), np.uint8)


def _differing(pixels: Bytes, colour: bytes) -> Bytes:
    """Alpha of a file that has none: 255 where it is unlike the background, 1 where it is not quite, beside that."""
    apart = _apart(pixels, colour)
    solid = (apart >= UNLIKE).astype(np.uint8)
    reach = 2 * max(BLOCK, round(FRINGE * max(solid.shape))) + 1
    near = np.asarray(cv2.dilate(solid, np.ones((reach, reach), np.uint8)), np.uint8)
    return np.asarray(255 * solid + (near & (apart > 0) & (solid == 0)), np.uint8)


Measured = tuple[str, str, bool]  # measured, required, does it pass


@dataclass(frozen=True, slots=True)
class _About:
    """Everything that rules ask."""

    file: Decoded
    alpha: Bytes
    box: Box | None
    colour: bytes
    enlarged: float | None
    cut: Sequence[str]

    def measured(self, rule: Rule) -> Measured:
        height, width = self.alpha.shape
        numbers: dict[str, Callable[[], tuple[float, str]]] = {
            "longest_side": lambda: (max(height, width), "{:.0f} px"),
            "shortest_side": lambda: (min(height, width), "{:.0f} px"),
            "pixels": lambda: (width * height, "{:,.0f} px"),
            "aspect": lambda: (width / height, "{:.3f}"),
            "fill": lambda: (max(self._shares()), "{:.1%}"),
            "margin": lambda: (min(self._margins()), "{:.1%}"),
            "centred": lambda: (self._offset(), "{:.1%}"),
            "dpi": lambda: (round(self.file.dpi), "{:.0f}"),
            "bytes": lambda: (self.file.size, "{:,.0f} bytes"),
            "enlargement": lambda: (self.enlarged or 1.0, "{:.2f} times"),
        }
        if rule.kind in numbers:
            value, shape = numbers[rule.kind]()
            return _bounded(rule, value, shape)
        words = {
            "format": self.file.form,
            "profile": "srgb" if "srgb" in self.file.profile.lower() else self.file.profile or "none",
            "transparency": "none" if self.file.alpha is None or self.file.alpha.min() == 255 else "some",
        }
        if rule.kind in words:
            return words[rule.kind], " or ".join(rule.one_of), words[rule.kind] in rule.one_of
        return self._border() if rule.kind == "border" else self._background(rule)

    def _shares(self) -> tuple[float, float]:
        if self.box is None:
            return 0.0, 0.0
        top, bottom, left, right = self.box
        return (bottom - top) / self.alpha.shape[0], (right - left) / self.alpha.shape[1]

    def _margins(self) -> tuple[float, float, float, float]:
        if self.box is None:
            return 0.0, 0.0, 0.0, 0.0
        (height, width), (top, bottom, left, right) = self.alpha.shape, self.box
        return top / height, (width - right) / width, (height - bottom) / height, left / width

    def _offset(self) -> float:
        top, right, bottom, left = self._margins()
        return max(abs(top - bottom), abs(left - right)) / 2

    def _border(self) -> Measured:
        names = ("top", "right", "bottom", "left")
        touched = [name for name, margin in zip(names, self._margins(), strict=True) if margin <= 0]
        if self.box is None:
            return "no subject", "touches no border", False
        said = [f"touches the {' and the '.join(touched)} of the frame"] if touched else []
        said += [f"cut by the {' and the '.join(self.cut)} of the photograph"] if self.cut else []
        return ", ".join(said) or "touches no border", "touches no border", not said

    def _background(self, rule: Rule) -> Measured:
        found = background(self.file.pixels, self.alpha, self.colour, halved=self.file.halved)
        least = EDGE_WHITE if rule.minimum is None else int(rule.minimum)
        if self.alpha.all():
            return "there is none", f"exactly {','.join(map(str, self.colour))}", False
        measured = f"{found.stained} of {found.blocks} blocks stained; beside the edge at least {found.least}"
        measured += f", {found.below} pixels below {EDGE_WHITE}" if found.below else ""
        required = f"exactly {','.join(map(str, self.colour))}; beside the edge at least {least}"
        return measured, required, found.stained == 0 and found.least >= least


def _bounded(rule: Rule, value: float, shape: str) -> Measured:
    least, most = rule.minimum, rule.maximum
    words = [f"at least {shape.format(least)}"] if least is not None else []
    words += [f"at most {shape.format(most)}"] if most is not None else []
    holds = (least is None or value >= least) and (most is None or value <= most)
    return shape.format(value), ", ".join(words), holds


def _judged(rule: Rule, measured: str, required: str, holds: bool, how: str) -> RuleResult:
    outcome: Outcome = "fail" if not holds else "fixed" if how else "pass"
    return RuleResult(rule.kind, rule.requirement, measured, required, outcome, how if holds else "")


def borders(alpha: Pixels) -> tuple[str, ...]:
    """The borders of an image that its subject touches. `alpha`: uint8 or uint16 [H, W]."""
    box = subject_box(alpha)
    if box is None:
        return ()
    (height, width), (top, bottom, left, right) = alpha.shape, box
    touched = {"top": top == 0, "right": right == width, "bottom": bottom == height, "left": left == 0}
    return tuple(name for name, touches in touched.items() if touches)
