"""Failovers: which device was left when and why, when it was taken back, and whether an outage was avoided by it.

Does not decide what a failure is: it is given them. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rmbgd.mtbf.pictures import DONE, FAILED
from rmbgd.mtbf.runs import Epoch, Run
from rmbgd.mtbf.timeline import Failure


class Outcome(StrEnum):
    """AVOIDED: pictures were concerned, and all came out in time while the device was away, without a failure."""

    AVOIDED = "avoided"
    IDLE = "idle"  # nothing was to be done meanwhile
    BROKEN = "broken"  # a picture was lost to the engine or came late, or the service failed
    OPEN = "open"  # not back by the end of the run or of the log


@dataclass(slots=True)
class Trip:
    at: float
    until: float
    device: str
    to: str
    reason: str
    pictures: int
    outcome: Outcome
    threshold: float | None = None  # °C, where heat was the reason


def trips(epochs: Sequence[Epoch], failures: Sequence[Failure], deadline: float) -> list[Trip]:
    """Every failover of a machine. `deadline`: seconds from claim to outcome beyond which a picture came late."""
    return [
        trip
        for epoch in epochs
        for run in epoch.runs
        for trip in _of_run(run, epoch, [failure.at for failure in failures], deadline)
    ]


def _of_run(run: Run, epoch: Epoch, failures: list[float], deadline: float) -> list[Trip]:
    marks = run.named("engine.failover", "engine.failback")
    found = []
    for number, mark in enumerate(marks):
        if mark.event != "engine.failover":
            continue
        device = str(mark.keys.get("from", "?"))
        back = next((later.at for later in marks[number + 1 :] if _concerns(later.event, later.keys, device)), None)
        end = run.last if back is None else back
        concerned, fine = _pictures(run, epoch, mark.at, end, deadline)
        announced = mark.keys.get("images")
        concerned = max(concerned, len(announced) if isinstance(announced, list) else 0)
        fine = fine and not any(mark.at <= at - epoch.offset <= end for at in failures)
        if not fine:
            outcome = Outcome.BROKEN
        elif back is None:
            outcome = Outcome.OPEN
        else:
            outcome = Outcome.AVOIDED if concerned else Outcome.IDLE
        found.append(
            Trip(
                mark.at + epoch.offset,
                end + epoch.offset,
                device,
                str(mark.keys.get("to", "?")),
                str(mark.keys.get("reason", "?")),
                concerned,
                outcome,
                _threshold(mark.keys),
            )
        )
    return found


def _threshold(keys: dict[str, object]) -> float | None:
    value = keys.get("threshold")
    return float(value) if keys.get("reason") == "temperature" and isinstance(value, (int, float)) else None


def _concerns(event: str, keys: dict[str, object], device: str) -> bool:
    """Work returns to the device, or leaves it once more although its return was not recorded."""
    return keys.get("to" if event == "engine.failback" else "from") == device


def _pictures(run: Run, epoch: Epoch, begin: float, end: float, deadline: float) -> tuple[int, bool]:
    """(pictures concluded meanwhile, whether none was lost to the engine or came late)."""
    table = epoch.pictures
    totals = table.stages.get("total")
    concerned, fine = 0, True
    for row in table.between(begin, end):
        if table.pid[row] != run.pid:
            continue
        if table.kind[row] == DONE:
            concerned += 1
            fine = fine and (totals is None or not totals[row] > deadline * 1000)
        elif table.kind[row] == FAILED:
            concerned += 1
            fine = fine and not table.engine[row]
    return concerned, fine
