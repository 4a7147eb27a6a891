"""POLICY: when is an arriving file complete? No single sign says so; all of them together do.

Pure: is told what was seen and when, and answers; opens and reads nothing. Times are monotonic seconds of our own
observations, never the file's: stamps may lie in the future, in 1970, or be preserved by the uploader.

    quiet    unchanged for a while: short when a close or rename was heard, longer when not, longest where writers hide
    writer   nobody has it open for writing
    empty    it has bytes
    hole     no unwritten blocks inside (a preallocated upload)
    tail     its format's end is there
    decode   no decoder has found its end missing
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rmbgd.fs import FileVersion
from rmbgd.imaging.completeness import Tail

DELAY_FIRST, DELAY_MAXIMUM = 0.5, 30.0  # seconds between two looks at a file that a gate holds; doubled each time


class Writer(Enum):
    NONE = "none"
    OPEN = "open"
    UNSEEN = "unseen"  # not ours to ask, or a file system where remote writers do not show


@dataclass(frozen=True, slots=True)
class Facts:
    """What one look into a file showed."""

    writer: Writer
    dense: bool
    tail: Tail


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds, as in the [intake] settings."""

    quiet_closed: float
    quiet_unknown: float
    quiet_remote: float
    incomplete_timeout: float
    stuck_upload: float


@dataclass(slots=True)
class Arrival:
    """What is remembered of one file between looks. Owned by whoever owns the file's fate: the reconcile thread.

    announced     something said that a writer is done with this version: a close, a link, a rename
    remote        on a file system where open writers cannot be seen
    cut_off       a decoder found the end of this version missing
    final         the patience with this version has ended before
    """

    version: FileVersion
    first_seen: float
    changed_at: float
    announced: bool
    remote: bool
    look_at: float = 0.0
    delay: float = DELAY_FIRST
    cut_off: bool = False
    final: bool = False
    told_incomplete: bool = False
    told_stuck: bool = False


class Verdict(Enum):
    WAIT = "wait"
    READY = "ready"
    FINAL = "final"  # ready, and damage is a refusal now: waited long enough
    REFUSE = "refuse"  # its end is missing beyond doubt, and nobody brought it in time


@dataclass(frozen=True, slots=True)
class Decision:
    """`gate` is what holds the file, or what was missing at the end. The `tell_` flags are set once per condition."""

    verdict: Verdict
    gate: str = ""
    tell_incomplete: bool = False
    tell_stuck: bool = False


def appeared(version: FileVersion, now: float, *, announced: bool, remote: bool, rules: Rules) -> Arrival:
    """A file that is seen for the first time."""
    arrival = Arrival(version, now, now, announced, remote)
    arrival.look_at = now + _quiet(arrival, rules)
    return arrival


def observed(arrival: Arrival, version: FileVersion, now: float, *, announced: bool, rules: Rules) -> bool:
    """It was seen again. True when it has changed: everything known of the older version is void."""
    if version == arrival.version:
        if announced and not arrival.announced:
            arrival.announced = True
            arrival.look_at = min(arrival.look_at, max(now, arrival.changed_at + _quiet(arrival, rules)))
        return False
    arrival.version = version
    arrival.changed_at = now
    arrival.announced = announced
    arrival.delay = DELAY_FIRST
    arrival.cut_off = arrival.final = arrival.told_incomplete = False
    arrival.look_at = now + _quiet(arrival, rules)
    return True


def put_off(arrival: Arrival, now: float) -> None:
    """It could not be looked into just now: again after a delay that doubles."""
    arrival.look_at = now + arrival.delay
    arrival.delay = min(2 * arrival.delay, DELAY_MAXIMUM)


def judge(arrival: Arrival, facts: Facts, now: float, rules: Rules) -> Decision:
    """The file was just observed, and looked into. Sets when to look again where the answer is WAIT."""
    needed = rules.quiet_remote if facts.writer is Writer.UNSEEN else _quiet(arrival, rules)
    quiet_at = arrival.changed_at + needed
    if now < quiet_at:
        arrival.look_at = quiet_at
        return Decision(Verdict.WAIT, "quiet", tell_stuck=still_stuck(arrival, now, rules))
    if facts.writer is Writer.OPEN:
        put_off(arrival, now)
        return Decision(Verdict.WAIT, "writer", tell_stuck=still_stuck(arrival, now, rules))
    gate = _missing(arrival, facts)
    if not gate:
        return Decision(Verdict.FINAL if arrival.final else Verdict.READY)
    patience = arrival.changed_at + rules.incomplete_timeout
    if arrival.final or now >= patience:
        arrival.final = True
        certain = gate == "empty" or facts.tail is Tail.MISSING
        return Decision(Verdict.REFUSE if certain else Verdict.FINAL, gate)
    put_off(arrival, now)
    arrival.look_at = min(arrival.look_at, patience)
    first = not arrival.told_incomplete
    arrival.told_incomplete = True
    return Decision(Verdict.WAIT, gate, tell_incomplete=first)


def still_stuck(arrival: Arrival, now: float, rules: Rules) -> bool:
    """Open or changing for very long: True once."""
    if arrival.told_stuck or now - arrival.first_seen < rules.stuck_upload:
        return False
    arrival.told_stuck = True
    return True


def _quiet(arrival: Arrival, rules: Rules) -> float:
    if arrival.remote:
        return rules.quiet_remote
    return rules.quiet_closed if arrival.announced else rules.quiet_unknown


def _missing(arrival: Arrival, facts: Facts) -> str:
    """Which gate holds a file that nobody writes to; empty when none does."""
    if arrival.version.size == 0:
        return "empty"
    if facts.tail in (Tail.MISSING, Tail.DOUBTFUL):
        return "tail"
    if not facts.dense:
        return "hole"
    return "decode" if arrival.cut_off else ""
