"""POLICY: which GPUs CUDA_VISIBLE_DEVICES leaves visible, in CUDA's order.

CUDA Programming Guide 13, "CUDA Environment Variables": indices, UUIDs or beginnings of a UUID that only one GPU has;
an entry that names no GPU ends the list; an empty variable hides every GPU; of MIG instances a process sees one (MIG
User Guide, "Device Enumeration"). A list with a device twice shows none, and one of two kinds ends where the second
begins: so torch reads it (torch.cuda._parse_visible_devices), which computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"
INDEX, GPU, MIG = r"\+?\d+", "GPU-", "MIG-"
KIND = re.compile(rf"{INDEX}|{GPU}|{MIG}")


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as NVML lists it, with the UUIDs of its MIG instances. `uuid` is empty where it cannot be read."""

    uuid: str
    instances: tuple[str, ...] = ()


def visible(variable: str | None, cards: Sequence[Card]) -> list[int]:
    """Index in `cards` of each device that CUDA counts; that of its card for a MIG instance. None: not set."""
    if variable is None:
        return list(range(len(cards)))
    found: list[int] = []
    kind = _kind(variable)
    for entry in (entry.strip() for entry in variable.split(",")):
        card = _card(entry, cards) if kind and _kind(entry) == kind else None
        if card is None:
            break
        found.append(card)
        if kind == MIG:
            break
    return found if len(set(found)) == len(found) else []


def hides_all(variable: str | None) -> bool:
    """Whether no GPU is visible, whatever cards there are."""
    return variable is not None and not _kind(variable)


def _kind(entries: str) -> str:
    found = KIND.match(entries.strip())
    return "" if found is None else found[0] if found[0] in (GPU, MIG) else INDEX


def _card(entry: str, cards: Sequence[Card]) -> int | None:
    if digits := re.match(INDEX, entry):  # CUDA takes the number that an entry begins with
        return int(digits[0]) if int(digits[0]) < len(cards) else None
    if entry.startswith(MIG + GPU):  # as drivers before 470 name instances: MIG-GPU-<UUID>/<instance>/<instance>
        entry = entry.removeprefix(MIG).partition("/")[0]
    named = [
        index
        for index, card in enumerate(cards)
        for uuid in (card.instances if entry.startswith(MIG) else (card.uuid,))
        if uuid.startswith(entry)
    ]
    return named[0] if len(named) == 1 else None
