"""Make one file of a set: encode its frame, at the quality that its rules need, and check what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rmbgd.config.load import Look
from rmbgd.config.presets import Preset
from rmbgd.deliver.arrange import Arranged
from rmbgd.deliver.check import RuleResult, background_holds, check
from rmbgd.deliver.quality import search
from rmbgd.imaging.clipping_path import path_resources
from rmbgd.imaging.encode import encode
from rmbgd.imaging.formats import SourceFacts
from rmbgd.imaging.png import Write


@dataclass(frozen=True, slots=True)
class Rules:
    """What the file must keep. `read`: its bytes, as they were written; `cut`: as `check` has it."""

    preset: Preset
    read: Callable[[], bytes]
    cut: Sequence[str]

    def check(self, frame: Arranged, fixed: Mapping[str, str]) -> list[RuleResult]:
        alpha, enlarged = frame.alpha, frame.enlarged
        return check(self.read(), self.preset, alpha=alpha, enlarged=enlarged, cut=self.cut, fixed=fixed)


def make(
    frame: Arranged,
    look: Look,
    facts: SourceFacts,
    write: Write,
    rules: Rules | None = None,
) -> list[RuleResult]:
    """Encode `frame` and hand the bytes to `write`; what the rules find in those that can be read again.

    Raises as `encode`.
    """
    preset = None if rules is None else rules.preset
    resources = path_resources(frame.alpha) if look.clipping_path and frame.alpha is not None else b""
    first = quality_of(look)
    if first is None or (preset is None and not look.bytes_maximum):
        encode(frame.pixels, look, facts, write, resources=resources)
        return [] if rules is None else rules.check(frame, {})

    def encoded(quality: int) -> bytes:
        buffer = bytearray()
        encode(frame.pixels, look, facts, buffer.extend, quality=quality, resources=resources)
        return bytes(buffer)

    def holds(data: bytes) -> bool:
        return preset is None or background_holds(data, preset, frame.alpha)

    found = search(encoded, first, holds=holds, bytes_maximum=look.bytes_maximum)
    write(found.data)
    if rules is None:
        return []
    how = f"quality {first} became {found.quality}"
    changed = {} if found.quality == first else {"background" if found.quality > first else "bytes": how}
    return rules.check(frame, changed)


def quality_of(look: Look) -> int | None:
    """None where the format loses nothing."""
    if look.format == "jpeg":
        return look.jpeg_quality
    return look.webp_quality if look.format == "webp" and not look.webp_lossless else None
