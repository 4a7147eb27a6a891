"""Flicker figures of a sequence, without truth: change where it stands still, error along motion, lag.

Flicker falls when a matte freezes, and lag tells: a frozen one is a frame late or more. Read both. The figures of
single frames come from temporal.steady, or from temporal.measured for what another filter published, or none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rmbgd.sequence.temporal import FrameFigures

DIGITS = 6  # of shares; flicker of a good matte is about 0.001
NAMES = ("still_change", "warped_error", "lag")


@dataclass(slots=True)
class Mean:
    """Of values that come one by one."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    def rounded(self) -> float | None:
        """None where there was no value."""
        return round(self.total / self.count, DIGITS) if self.count else None


@dataclass(slots=True)
class SequenceFigures:
    """Means over the frames that have the figure; `resets` counts what began anew after the first frame."""

    frames: int = 0
    resets: int = 0
    means: dict[str, Mean] = field(default_factory=lambda: {name: Mean() for name in NAMES})

    def add(self, found: FrameFigures) -> None:
        self.frames += 1
        self.resets += found.reset not in (None, "first")
        for name, mean in self.means.items():
            value = getattr(found, name)
            if value is not None:
                mean.add(value)

    def document(self) -> dict[str, object]:
        """{"frames", "resets", "still_change", "warped_error", "lag"}; shares of 0..1, lag in frames, None unknown."""
        return {"frames": self.frames, "resets": self.resets} | {n: mean.rounded() for n, mean in self.means.items()}
