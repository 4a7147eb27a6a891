"""Computes equal images once: the first goes through the engine, its followers wait for its answer.

Remembers what is in flight only; what was finished earlier, the ledger knows.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rmbgd.config.load import Recipe
from rmbgd.config.presets import Preset
from rmbgd.deliver import confidence
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


OLDEST = (
    *("model", "patch_order", "model_sha256", "format", "content", "mask_bits", "background", "edge_colours", "refine"),
    *("hidden_colours", "png_level", "webp_quality", "webp_lossless", "jpeg_quality", "crop", "crop_margin", "canvas"),
    *("metadata", "animated", "on_empty", "empty_below", "sidecar", "file_mode"),
)
"""Settings that are always part of the key, in this order; younger ones only where they are not at their default, so
that what was computed before they came still counts."""


def recipe_hash(
    recipe: Recipe, model_facts: Mapping[str, object], presets: Mapping[str, Preset] = MappingProxyType({})
) -> str:
    """What else, beside the bytes, an output depends on: the recipe, its rules and the identity of its model. Hex."""
    unused = set() if recipe.format == "jpeg" else {"jpeg_quality"}
    size = model_facts.get("input_size")
    if recipe.refine == "off" or not isinstance(size, (tuple, list)) or max(size) > LARGEST_NETWORK:
        unused.add("refine")
    settings = recipe.model_dump(mode="json")
    younger = [name for name, field in Recipe.model_fields.items() if settings[name] != field.default]
    said = {name: settings[name] for name in dict.fromkeys((*OLDEST, *younger)) if name not in unused}
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    text += repr([str(model_facts.get(fact)) for fact in IDENTITY])
    text += "".join(presets[look.preset].model_dump_json() for look in recipe.looks if look.preset in presets)
    if recipe.review_below:  # another score may come to another verdict
        text += f"score {confidence.coefficients()['version']}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
