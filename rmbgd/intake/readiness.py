"""POLICY: is an arriving file complete? No single sign says so; all of them together do.

Times are monotonic seconds of our own observations, never the file's: stamps may lie in the future, in 1970, or be
preserved by the uploader. What may hold a file is called a gate:

    quiet    changed lately: short when a close or rename was seen, longer when not, longest where writers hide
    writer   open for writing
    empty    without bytes
    hole     unwritten blocks inside (a preallocated upload)
    companion  the control file of an unfinished download or upload stands beside it
    head     its beginning is zeros, as in space that was reserved
    tail     the end of its format is not there
    decode   a decoder has found its end missing

What begins like no image at all waits for its writer and its quiet time alone: no end would make it one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rmbgd.clock import backoff
from rmbgd.config.load import IntakeSettings
from rmbgd.fs import FileVersion
from rmbgd.imaging.completeness import Head, Tail

MISSING = ("empty", "head", "tail", "hole", "decode")  # gates of incomplete files, whose time runs out
DELAY_FIRST, DELAY_MAXIMUM = 0.5, 30.0  # seconds between two looks at a file that a gate holds


class Writer(Enum):
    NONE = "none"
    OPEN = "open"
    UNSEEN = "unseen"  # not ours to ask, or a file system where remote writers do not show


@dataclass(frozen=True, slots=True)
class ReadinessFacts:
    writer: Writer
    dense: bool
    tail: Tail
    companion: str = ""  # the suffix of one that stands beside it
    head: Head = Head.KNOWN


@dataclass(slots=True)
class ArrivingFile:
    """What is remembered of one file between looks. Owned by the reconcile thread.

    announced     something said that a writer is done with this version: a close, a link, a rename
    remote        on a file system where open writers cannot be seen
    refilled      it has changed without growing: space that was reserved before, or an older content, is written over
    cut_off       a decoder found parts of this version missing
    final         the patience with this version has ended before
    """

    version: FileVersion
    first_seen: float
    changed_at: float
    announced: bool
    remote: bool
    look_at: float = 0.0
    gate: str = "quiet"  # that held it at the last look; also "blocked": it could not be looked into
    put_offs: int = 0  # looks in a row that found a gate holding it
    refilled: bool = False
    cut_off: bool = False
    final: bool = False
    reported_incomplete: bool = False
    reported_stuck: bool = False


class Readiness(Enum):
    WAIT = "wait"
    READY = "ready"
    FINAL = "final"  # ready, and damage is a refusal now: waited long enough
    REFUSE = "refuse"  # its end is missing beyond doubt, and did not come in time


@dataclass(frozen=True, slots=True)
class Decision:
    """`gate` is what holds the file, or what was missing at the end. `report_*` is true once per condition."""

    readiness: Readiness
    gate: str = ""
    report_incomplete: bool = False
    report_stuck: bool = False


def appeared(version: FileVersion, now: float, *, announced: bool, remote: bool, rules: IntakeSettings) -> ArrivingFile:
    arrival = ArrivingFile(version, now, now, announced, remote)
    arrival.look_at = now + _quiet(arrival, rules)
    return arrival


def observed(
    arrival: ArrivingFile, version: FileVersion, now: float, *, announced: bool, rules: IntakeSettings
) -> bool:
    """True when it has changed: everything known of the older version is void."""
    if version == arrival.version:
        if announced and not arrival.announced:
            arrival.announced = True
            arrival.look_at = min(arrival.look_at, max(now, arrival.changed_at + _quiet(arrival, rules)))
        return False
    old = arrival.version
    if version.inode != old.inode:
        arrival.refilled = False
    elif version.size == old.size > 0 and version.mtime_ns > old.mtime_ns:  # back in time: a copy keeps its stamp
        arrival.refilled = True
    arrival.version, arrival.changed_at, arrival.announced, arrival.put_offs = version, now, announced, 0
    arrival.cut_off = arrival.final = arrival.reported_incomplete = False
    arrival.gate = "quiet"
    arrival.look_at = now + _quiet(arrival, rules)
    return True


def put_off(arrival: ArrivingFile, now: float) -> None:
    """It could not be looked into just now: again after a delay that doubles."""
    arrival.put_offs += 1
    arrival.look_at = now + backoff(arrival.put_offs, DELAY_FIRST, DELAY_MAXIMUM)


def judge(arrival: ArrivingFile, facts: ReadinessFacts, now: float, rules: IntakeSettings) -> Decision:
    """The file was just observed, and looked into. Sets when to look again where the answer is WAIT."""
    decision = _judge(arrival, facts, now, rules)
    arrival.gate = decision.gate
    return decision


def _judge(arrival: ArrivingFile, facts: ReadinessFacts, now: float, rules: IntakeSettings) -> Decision:
    needed = rules.quiet_remote if facts.writer is Writer.UNSEEN else _quiet(arrival, rules)
    quiet_at = arrival.changed_at + needed
    if now < quiet_at:
        arrival.look_at = quiet_at
        return Decision(Readiness.WAIT, "quiet", report_stuck=still_stuck(arrival, now, rules))
    if facts.writer is Writer.OPEN:
        put_off(arrival, now)
        return Decision(Readiness.WAIT, "writer", report_stuck=still_stuck(arrival, now, rules))
    if facts.companion:  # however long: nothing is known of what it still lacks
        put_off(arrival, now)
        return Decision(Readiness.WAIT, "companion", _first_time(arrival), still_stuck(arrival, now, rules))
    if facts.head is Head.FOREIGN:
        return Decision(Readiness.FINAL)
    gate = _missing(arrival, facts)
    if not gate:
        return Decision(Readiness.FINAL if arrival.final else Readiness.READY)
    patience = arrival.changed_at + rules.incomplete_timeout
    if arrival.final or now >= patience:
        arrival.final = True
        certain = gate == "empty" or facts.tail is Tail.MISSING
        return Decision(Readiness.REFUSE if certain else Readiness.FINAL, gate)
    put_off(arrival, now)
    arrival.look_at = min(arrival.look_at, patience)
    return Decision(Readiness.WAIT, gate, report_incomplete=_first_time(arrival))


def still_stuck(arrival: ArrivingFile, now: float, rules: IntakeSettings) -> bool:
    """Open or changing for very long: True once."""
    if arrival.reported_stuck or now - arrival.first_seen < rules.stuck_upload:
        return False
    arrival.reported_stuck = True
    return True


def _first_time(arrival: ArrivingFile) -> bool:
    first = not arrival.reported_incomplete
    arrival.reported_incomplete = True
    return first


def _quiet(arrival: ArrivingFile, rules: IntakeSettings) -> float:
    if arrival.remote:
        return rules.quiet_remote
    return rules.quiet_closed if arrival.announced else rules.quiet_unknown


def _missing(arrival: ArrivingFile, facts: ReadinessFacts) -> str:
    """Which gate holds a file that has no writer; empty when none does."""
    if arrival.version.size == 0:
        return "empty"
    if facts.head is Head.BLANK:
        return "head"
    if facts.tail in (Tail.MISSING, Tail.DOUBTFUL):
        return "tail"
    if not facts.dense:
        return "hole"
    return "decode" if arrival.cut_off else ""
