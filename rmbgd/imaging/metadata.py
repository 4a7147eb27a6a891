"""The few facts about a picture that are read from its EXIF and XMP: orientation, resolution, allow-listed text.

Reads the first directory only, so it never sees a GPS position, a maker note or a thumbnail. Does not write anything.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128

TEXT_TAGS = {
    "description": 0x010E,
    "software": 0x0131,
    "datetime": 0x0132,
    "artist": 0x013B,
    "copyright": 0x8298,
}
"""Setting's word -> EXIF / TIFF tag."""

PNG_KEYWORDS = {
    "description": "Description",
    "software": "Software",
    "datetime": "Creation Time",
    "artist": "Author",
    "copyright": "Copyright",
}
"""Setting's word -> keyword of a PNG text chunk (PNG specification, section 11.3.3.2)."""

TEXT_MAXIMUM = 4096  # characters; a copyright line is under a hundred
ENTRIES_MAXIMUM = 512  # directory entries; cameras write some thirty

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*(\d{1,5})")


@dataclass(slots=True)
class ExifFacts:
    """orientation is None when the tag is absent; `sound` is False when the block could not be read to its end."""

    orientation: int | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    sound: bool = True


def read_exif(block: bytes) -> ExifFacts:
    """Facts of the first directory of a TIFF-structured block (with or without the "Exif" prefix). Never raises."""
    block = block.removeprefix(b"Exif\x00\x00")
    facts = ExifFacts()
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        facts.sound = False
        return facts
    tags: dict[int, tuple[int, bytes]] = {}
    (at,) = struct.unpack_from(f"{order}I", block, 4)
    if at + 2 > len(block):
        facts.sound = False
        return facts
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for index in range(min(count, ENTRIES_MAXIMUM)):
        entry = at + 2 + 12 * index
        if entry + 12 > len(block):
            facts.sound = False
            break
        tag, kind, length = struct.unpack_from(f"{order}HHI", block, entry)
        size = _BYTES.get(kind, 0) * length
        start = entry + 8 if size <= 4 else struct.unpack_from(f"{order}I", block, entry + 8)[0]
        if size == 0 or start + size > len(block):
            facts.sound = False
            continue
        tags.setdefault(tag, (kind, block[start : start + size]))
    facts.orientation = _integer(tags.get(ORIENTATION), order)
    facts.dpi = _dpi(tags, order)
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
    if isinstance(raw, str):
        text = raw.split("\x00", 1)[0]
    else:
        start = raw.split(b"\x00", 1)[0]
        try:
            text = start.decode()
        except UnicodeDecodeError:
            text = start.decode("latin-1")
    return " ".join("".join(c if c.isprintable() else " " for c in text[:TEXT_MAXIMUM]).split())


def sensible_dpi(x: float, y: float) -> tuple[float, float] | None:
    """The resolution if it can be meant: absent, zero and absurd values give None."""
    if not (1.0 <= x <= 100_000.0 and 1.0 <= y <= 100_000.0):
        return None
    return (round(x, 2), round(y, 2))


def _integer(entry: tuple[int, bytes] | None, order: str) -> int | None:
    if entry is None:
        return None
    kind, raw = entry
    code = {1: "B", 3: "H", 4: "I"}.get(kind)
    return int(struct.unpack_from(f"{order}{code}", raw)[0]) if code else None


def _rational(entry: tuple[int, bytes] | None, order: str) -> float:
    if entry is None or entry[0] != 5:
        return 0.0
    numerator, denominator = struct.unpack_from(f"{order}II", entry[1])
    return float(numerator / denominator) if denominator else 0.0


def _dpi(tags: dict[int, tuple[int, bytes]], order: str) -> tuple[float, float] | None:
    unit = _integer(tags.get(RESOLUTION_UNIT), order) or 2  # EXIF 2.32: 2 is inches and the default, 3 is centimetres
    scale = {2: 1.0, 3: 2.54}.get(unit, 0.0)
    x = _rational(tags.get(X_RESOLUTION), order) * scale
    y = _rational(tags.get(Y_RESOLUTION), order) * scale
    return sensible_dpi(x, y or x)
