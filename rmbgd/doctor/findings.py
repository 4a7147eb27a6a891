"""A need and what was found of it. Looks at nothing itself.

FAIL  the service will not work, or not as configured
WARN  it works, with less speed or less safety than it could have
OK    tried and fine
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """`text` says what was found and why; `hint` what to do about it, empty when nothing is to be done."""

    need: str
    state: State
    text: str
    hint: str = ""


def ok(need: str, text: str) -> Finding:
    return Finding(need, State.OK, text)


def warn(need: str, text: str, hint: str = "") -> Finding:
    return Finding(need, State.WARN, text, hint)


def fail(need: str, text: str, hint: str = "") -> Finding:
    return Finding(need, State.FAIL, text, hint)


def healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.state is not State.FAIL for finding in findings)
