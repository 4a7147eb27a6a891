"""Read orientation, resolution, allow-listed text (EXIF, XMP) and colour profiles, and apply the profiles.

Of EXIF only the first directory is read, so a GPS position, a maker note or a thumbnail is never seen.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, ImageCms

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128

# Setting's word -> EXIF / TIFF tag, and keyword of a PNG text chunk (PNG specification, section 11.3.3.2).
_TEXT = {
    "description": (0x010E, "Description"),
    "software": (0x0131, "Software"),
    "datetime": (0x0132, "Creation Time"),
    "artist": (0x013B, "Author"),
    "copyright": (0x8298, "Copyright"),
}
TEXT_TAGS = {word: tag for word, (tag, _) in _TEXT.items()}
PNG_KEYWORDS = {word: keyword for word, (_, keyword) in _TEXT.items()}

TEXT_MAXIMUM = 4096  # characters; a copyright line is under a hundred
ENTRIES_MAXIMUM = 512  # directory entries; cameras write some thirty

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_Tags = dict[int, tuple[int, bytes]]  # tag -> type, and the bytes of its values
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*(\d{1,5})")

# Pillow's mode -> colour space of a profile that describes it, and the mode in which such a profile is applied.
_SPACES = {
    "1": "GRAY", "L": "GRAY", "LA": "GRAY", "La": "GRAY", "I": "GRAY", "F": "GRAY",
    "RGB": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "P": "RGB", "PA": "RGB", "YCbCr": "RGB",
    "CMYK": "CMYK", "LAB": "Lab",
}  # fmt: skip
_INPUT_MODES = {"GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


@dataclass(slots=True)
class ExifFacts:
    orientation: int | None = None  # None: the tag is absent
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    sound: bool = True  # False: the block could not be read to its end


def read_exif(block: bytes) -> ExifFacts:
    """Facts of the first directory of a TIFF-structured block (with or without the "Exif" prefix). Never raises."""
    block = block.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8 or (at := struct.unpack_from(f"{order}I", block, 4)[0]) + 2 > len(block):
        return ExifFacts(sound=False)
    facts, tags = ExifFacts(), _Tags()
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for entry in range(at + 2, at + 2 + 12 * min(count, ENTRIES_MAXIMUM), 12):
        if entry + 12 > len(block):
            facts.sound = False
            break
        tag, kind, length = struct.unpack_from(f"{order}HHI", block, entry)
        size = _BYTES.get(kind, 0) * length
        start = entry + 8 if size <= 4 else struct.unpack_from(f"{order}I", block, entry + 8)[0]
        if size == 0 or start + size > len(block):
            facts.sound = False
        else:
            tags.setdefault(tag, (kind, block[start : start + size]))
    facts.orientation = _integer(tags, ORIENTATION, order)
    unit = _integer(tags, RESOLUTION_UNIT, order) or 2  # EXIF 2.32: 2 is inches and the default, 3 is centimetres
    scale = {2: 1.0, 3: 2.54}.get(unit, 0.0)
    x, y = (_rational(tags, tag, order) * scale for tag in (X_RESOLUTION, Y_RESOLUTION))
    facts.dpi = sensible_dpi(x, y or x)
    for word, tag in TEXT_TAGS.items():
        kind, raw = tags.get(tag, (0, b""))
        if kind == 2 and (text := clean_text(raw)):
            facts.text[word] = text
    return facts


def xmp_orientation(packet: bytes) -> int | None:
    match = _XMP_ORIENTATION.search(packet)
    return int(match.group(1)) if match else None


def clean_text(raw: bytes | str) -> str:
    """One line of printable text of bounded length, cut at the first NUL; bytes are UTF-8, else Latin-1."""
    if isinstance(raw, bytes):
        start = raw.split(b"\x00", 1)[0]
        try:
            raw = start.decode()
        except UnicodeDecodeError:
            raw = start.decode("latin-1")
    text = raw.split("\x00", 1)[0][:TEXT_MAXIMUM]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def sensible_dpi(x: float, y: float) -> tuple[float, float] | None:
    """The resolution if it can be meant: absent, zero and absurd values give None."""
    return (round(x, 2), round(y, 2)) if 1.0 <= x <= 100_000.0 and 1.0 <= y <= 100_000.0 else None


def _integer(tags: _Tags, tag: int, order: str) -> int | None:
    kind, raw = tags.get(tag, (0, b""))
    code = {1: "B", 3: "H", 4: "I"}.get(kind)
    return int(struct.unpack_from(f"{order}{code}", raw)[0]) if code else None


def _rational(tags: _Tags, tag: int, order: str) -> float:
    kind, raw = tags.get(tag, (0, b""))
    numerator, denominator = struct.unpack_from(f"{order}II", raw) if kind == 5 else (0, 0)
    return float(numerator / denominator) if denominator else 0.0


@dataclass(frozen=True, slots=True)
class ColourPlan:
    """What to do with the colours of a decoded image."""

    kept: bytes | None  # profile that the decoded RGB is in, to be carried to the output; None means sRGB
    source: str = ""  # mode of the bands that `transform` takes
    transform: ImageCms.ImageCmsTransform | None = None  # applied to every band, giving RGB; None means none
    note: str | None = None


def colour_plan(mode: str, profile: bytes | None) -> ColourPlan:
    """The plan for an image of Pillow's `mode` with this embedded profile; one that cannot be used is left out."""
    space = _SPACES.get("I" if mode.startswith("I;") else mode, "")
    if profile is None:
        if space == "Lab":
            return _converted(ImageCms.createProfile("LAB"), "Lab")
        return ColourPlan(None, note="CMYK without a profile, converted by formula" if space == "CMYK" else None)
    parsed = None
    if len(profile) >= 132 and profile[36:40] == b"acsp":
        with contextlib.suppress(OSError):
            parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    found = profile[16:20].decode("latin-1").strip()
    if parsed is not None and found == "RGB" and space in ("RGB", "GRAY"):
        return ColourPlan(profile)
    if parsed is not None and found == space and space in _INPUT_MODES:
        return _converted(parsed, space)
    without = colour_plan(mode, None)
    note = f"colour profile {'for ' + found if parsed is not None else 'unreadable'}, left out"
    return replace(without, note="; ".join(filter(None, (note, without.note))))


def _converted(source: Any, space: str) -> ColourPlan:
    """Relative colorimetric with black point compensation, as editors and browsers do by default."""
    mode, target = _INPUT_MODES[space], ImageCms.createProfile("sRGB")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    try:
        transform = ImageCms.buildTransform(source, target, mode, "RGB", intent, flags)
    except ImageCms.PyCMSError:
        return ColourPlan(None, note="colour profile cannot be applied, left out")
    return ColourPlan(None, mode, transform)


def applied(plan: ColourPlan, band: Image.Image) -> Image.Image:
    """The band as sRGB. Only for plans with a transform."""
    assert plan.transform is not None
    source = band if band.mode == plan.source else band.convert(plan.source)
    converted = ImageCms.applyTransform(source, plan.transform)
    assert converted is not None
    return converted
