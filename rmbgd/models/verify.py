"""Whether weights on this disk are whole, the published network's, and the very ones that were stated. Without torch.

Does not load them; a file that passes here fits, because names, shapes, types and length are what loading checks too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rmbgd.errors import ModelError
from rmbgd.models import consent, patches
from rmbgd.models.checkpoint import Bar, read_header, sha256_of
from rmbgd.models.places import Place
from rmbgd.models.published import require
from rmbgd.models.registry import Architecture


@dataclass
class Report:
    """What was found. `problems`: the file is not right. `needs`: what the operator has to give before it loads."""

    name: str
    weights: Path
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def verify(place: Place, models: Path, bar: Bar, *, sha256: str | None = None) -> Report:
    """Read the whole file once and judge it. `sha256`: what the operator expects, beside what is on record."""
    report = Report(place.called, place.weights)
    entry = place.entry
    is_birefnet = entry is None or entry.architecture is Architecture.BIREFNET
    try:
        header = read_header(place.weights)
        report.facts |= {"bytes": header.file_bytes, "precision": header.precision}
        if is_birefnet:
            report.facts["backbone"] = require(header.tensors, place.weights, entry.backbone if entry else None)
        report.facts["parameters"] = sum(t.elements for t in header.tensors.values() if t.floating)
        with bar(f"verifying {place.called}", header.file_bytes) as done:
            digest = report.facts["sha256"] = sha256_of(place.weights, done)
    except ModelError as error:
        report.problems.append(str(error))
        return report
    except OSError as error:
        report.problems.append(f"{place.weights}: cannot be read: {error.strerror}")
        return report
    stated = place.stated_sha256() | ({"the operator": sha256} if sha256 else {})
    report.facts["sha256_agrees_with"] = [voice for voice, value in stated.items() if value == digest]
    report.problems += [f"sha256 is {digest}, {v} states {value}" for v, value in stated.items() if value != digest]
    if is_birefnet:
        _patch_order(place, report)
    if entry:
        try:
            consent.require(entry, models)
        except ModelError as error:
            report.needs.append(str(error))
    return report


def _patch_order(place: Place, report: Report) -> None:
    registry = place.entry.patch_order if place.entry else None
    code, saved = place.author_code(), place.saved_patch_order()
    try:
        choice = patches.choose(model=place.called, registry=registry, author_code=code, saved=saved)
    except ModelError as error:
        report.needs.append(str(error))
    else:
        report.facts |= {"patch_order": choice.order.value, "patch_order_because": choice.reason}
