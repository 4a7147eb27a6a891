"""The kernel's thermal zones as a sensor: boards without NVML, such as Jetson.

Does not know a GPU but by the name of its zone, and tells nothing but a temperature.
"""

from __future__ import annotations

from pathlib import Path

from rmbgd.health.reading import MEASURES, Problem, Reading

SYSFS = Path("/sys")
ASLEEP_BELOW = -200_000  # m°C: Orin's zone of a sleeping GPU reads -256 °C, or refuses with EAGAIN
OTHER_MEASURES = frozenset(MEASURES) - {"temperature"}


def zones(root: Path, word: str) -> list[Path]:
    """Folders of the thermal zones whose type holds `word`, whatever its case."""
    found = []
    for zone in sorted(root.glob("class/thermal/thermal_zone*")):
        try:
            name = (zone / "type").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        if word in name.lower():
            found.append(zone)
    return found


class ThermalZoneSensor:
    """The hottest zone that names the GPU; while the GPU sleeps, the hottest of the whole chip ("tj").

    A sleeping GPU has no temperature of its own. Its chip's junction temperature is never below the GPU's, so it is a
    safe answer, and it lets a board that rests after a trip be seen to cool.
    """

    def __init__(self, root: Path = SYSFS) -> None:
        self._root = root
        self._gpu = zones(root, "gpu")
        self._chip = zones(root, "tj")

    @property
    def source(self) -> str:
        return "sysfs"

    @property
    def found(self) -> bool:
        return bool(self._gpu)

    @property
    def names(self) -> list[str]:
        """The zones in use, for people."""
        return [zone.name for zone in self._gpu]

    def read(self) -> Reading:
        if not self._gpu:
            return Reading(self.source, Problem.NO_SOURCE, "no thermal zone names the GPU", OTHER_MEASURES)
        temperature = _hottest(self._gpu)
        if temperature is not None:
            return Reading(self.source, unsupported=OTHER_MEASURES, temperature=temperature)
        temperature = _hottest(self._chip)
        detail = "the GPU sleeps; temperature of the chip" if temperature is not None else "no zone can be read"
        return Reading(self.source, detail=detail, unsupported=OTHER_MEASURES, temperature=temperature)

    def close(self) -> None:
        """Nothing is held between readings."""


def _hottest(zones: list[Path]) -> float | None:
    """°C of the hottest zone that answers; None when none does."""
    values = []
    for zone in zones:
        try:
            millidegrees = int((zone / "temp").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if millidegrees > ASLEEP_BELOW:
            values.append(millidegrees / 1000.0)
    return max(values, default=None)
