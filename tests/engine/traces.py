"""What happened to images on devices, as a list of events, and the promises that every such list keeps.

The checker knows nothing of the code that made a trace: whoever distributes images over devices must keep these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SelfTested:
    """A fresh worker of the device has passed its self-test."""

    device: str


@dataclass(frozen=True)
class Took:
    """The thread of the device has these in hand."""

    device: str
    images: tuple[int, ...]


@dataclass(frozen=True)
class Began:
    device: str
    images: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """`outcome`: ok; fault, which an image may have caused; memory; withdrawn, when the device itself went away."""

    device: str
    outcome: str


@dataclass(frozen=True)
class Answered:
    """The one verdict of an image. `runs`: how often it is said to have run."""

    image: int
    poison: bool
    runs: int


Trace = list[SelfTested | Took | Began | Ended | Answered]


def check(
    trace: Trace, arrived: Sequence[int], *, poison: set[int], tries: int, fallback: str | None, largest: int
) -> None:
    """Raises AssertionError for the first promise that the trace breaks.

    arrived   images in the order in which they came
    poison    images that end every worker that computes them; the fallback has no fault without one of them
    tries     faults after which an image is rejected
    fallback  device of last resort, which is there all the time, or None
    largest   batch
    """
    verdicts = [event for event in trace if isinstance(event, Answered)]
    assert sorted(arrived) == sorted(event.image for event in verdicts), "every image is answered exactly once"
    assert {event.image for event in verdicts if event.poison} <= poison, "an innocent image is rejected"
    _check_runs(trace, fallback, tries, largest)
    _check_order(trace, list(arrived))


def _check_runs(trace: Trace, fallback: str | None, tries: int, largest: int) -> None:
    busy: dict[str, tuple[int, ...]] = {}
    faults: Counter[int] = Counter()
    shortages: Counter[int] = Counter()
    withdrawn: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    last_fault: dict[int, tuple[int, str, int]] = {}  # image -> (when, device, size of the batch)
    for when, event in enumerate(trace):
        match event:
            case Began(device, images):
                assert device not in busy, f"two users of {device}"
                assert 0 < len(images) <= largest
                assert len(images) == 1 or not any(faults[image] for image in images), "a suspect is not alone"
                if fallback and any(faults[image] for image in images):
                    assert device == fallback, "a suspect runs where it can do more harm"
                busy[device] = images
                runs.update(images)
            case Ended(device, outcome):
                counter = {"fault": faults, "memory": shortages, "withdrawn": withdrawn}.get(outcome)
                images = busy.pop(device)
                if counter is not None:
                    counter.update(images)
                if outcome == "fault" or (outcome == "memory" and len(images) == 1):
                    last_fault.update({image: (when, device, len(images)) for image in images})
                if outcome == "memory" and len(images) == 1:
                    faults.update(images)
            case Answered(image, rejected, said):
                assert not any(image in images for images in busy.values()), "answered while it is computed"
                assert said == runs[image], "the runs that are told are those that were"
                if rejected:
                    assert faults[image] == tries, "rejected after another number of faults"
                    failed_at, device, size = last_fault[image]
                    assert size == 1, "rejected although it never failed alone"
                    assert fallback in (None, device), "rejected before the fallback has tried it"
                    tested = [event for event in trace[failed_at:when] if isinstance(event, SelfTested)]
                    assert tested or fallback is None, "rejected by a device that may be sick itself"
                bound = tries + 1 + withdrawn[image] + largest.bit_length() * (shortages[image] > 0) + shortages[image]
                assert runs[image] <= bound, "it runs again and again"
            case SelfTested() | Took():
                pass
    assert not busy, "a batch was never ended"


def _check_order(trace: Trace, arrived: list[int]) -> None:
    """Images are taken for the first time in the order in which they came."""
    taken: list[int] = []
    for event in trace:
        if isinstance(event, Took):
            taken += [image for image in event.images if image not in taken]
    assert taken == arrived
