"""Computes equal images once: the first goes through the engine, its followers wait for its answer.

Remembers what is in flight only; what was finished earlier, the ledger knows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from rmbgd.config.load import Recipe
from rmbgd.imaging.formats import SourceFacts
from rmbgd.imaging.refine import LARGEST_NETWORK
from rmbgd.pipeline.items import Timing
from rmbgd.store.records import ContentKey, Job


@dataclass(frozen=True, slots=True)
class Follower:
    """A job with the same content and recipe as one in flight. It holds no memory but itself."""

    job: Job
    facts: SourceFacts
    timing: Timing


class Deduplicator:
    """Content keys that are being computed. Called by decode threads (enter) and finish threads (leave)."""

    def __init__(self, *, followers_maximum: int) -> None:
        self._lock = threading.Lock()
        self._groups: dict[ContentKey, tuple[int, list[Follower]]] = {}  # leader's job, followers; guarded by _lock
        self._parked = 0  # guarded by _lock
        self._followers_maximum = followers_maximum

    def enter(self, key: ContentKey, image: Follower) -> bool:
        """True: compute it. False: it is parked, and comes back from `leave` of the image that leads.

        Parked images are claimed and hold a place, so their number is bounded; one too many is simply computed.
        """
        with self._lock:
            if key not in self._groups:
                self._groups[key] = (image.job.job_id, [])
                return True
            if self._parked >= self._followers_maximum:
                return True
            self._groups[key][1].append(image)
            self._parked += 1
            return False

    def leave(self, key: ContentKey, job: Job) -> list[Follower]:
        """The followers that waited for `job`; empty when it did not lead."""
        with self._lock:
            leader, followers = self._groups.get(key, (None, []))
            if leader != job.job_id:
                return []
            del self._groups[key]
            self._parked -= len(followers)
            return followers


IDENTITY = ("sha256", "architecture", "patch_order", "input_size")
"""Facts that make a model what it is. Others belong to one start of the engine (seconds, bytes, paths): with them in
the key nothing would ever be found again after a restart."""


def recipe_hash(recipe: Recipe, model_facts: Mapping[str, object]) -> str:
    """What else, beside the bytes, an output depends on: the recipe and the identity of its model. Hex."""
    size = model_facts.get("input_size")
    refines = isinstance(size, (tuple, list)) and max(size) <= LARGEST_NETWORK
    text = recipe.model_dump_json(exclude=set() if refines else {"refine"})
    text += repr([str(model_facts.get(fact)) for fact in IDENTITY])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
