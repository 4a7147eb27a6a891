"""POLICY: which sequence a frame belongs to, and its number: `take/frame_0007.jpg` is number 7 of `take/frame_`.

A directory is a sequence, or a stem within it: everything before the last run of digits in a file's stem names the
sequence, and the run is the number, whatever its width.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

END_MARKER = "sequence.end"
"""A file of this name ends the sequences of its directory."""

DIGITS_MAXIMUM = 18  # nanoseconds since 1970 have 19 and fit no file system's stamps either; more is no count of frames

_VERSION = re.compile(r"~[0-9]+\Z")  # of a file that was put back beside a newer one: naming.versions
_LAST_RUN = re.compile(r"(?P<before>.*?)(?P<number>[0-9]+)(?P<after>[^0-9]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FrameNumber:
    """The place of a frame: the name of its sequence, a path below the drop folder, and a number of at least 0."""

    sequence: str
    number: int


def frame_number(relative_path: str) -> FrameNumber | None:
    """None for a file that has no number: a still among the frames."""
    folder, name = posixpath.split(relative_path)
    found = _LAST_RUN.fullmatch(_VERSION.sub("", posixpath.splitext(name)[0]))
    if found is None or len(found["number"].lstrip("0")) > DIGITS_MAXIMUM:
        return None
    stem = f"{found['before']}*{found['after']}" if found["after"] else found["before"]
    return FrameNumber(posixpath.join(folder, stem) or ".", int(found["number"]))


def is_end_marker(relative_path: str) -> bool:
    return posixpath.basename(relative_path) == END_MARKER
