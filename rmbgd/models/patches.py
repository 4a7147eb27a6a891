"""POLICY: in which order a checkpoint's image patches were stacked on channels, and why we think so.

Reads the text of the author's `birefnet.py`, never runs it. Does not look at weights: nothing in them tells the orders
apart for certain, and a wrong guess gives plausible mattes that are subtly worse.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

from rmbgd.errors import ModelError
from rmbgd.models.registry import PatchOrder

# einops' right-hand side in the call that feeds ipt_blk2..5; the same function is also defined with other defaults.
_PATTERN = re.compile(r"->\s*b\s*\(\s*c\s+hg\s+wg\s*\)\s*h\s+w\s*$")
_OLD_FUNCTION = "get_patches_batch"


@dataclass(frozen=True)
class PatchChoice:
    """The order in use and the one sentence that the log carries."""

    order: PatchOrder
    reason: str


def read_author_code(text: str) -> PatchOrder | None:
    """The order that the author's code applies, from its syntax tree; None when it applies neither, or both.

    What counts is a call: `get_patches_batch(...)` is the old order, the rearrangement pattern "... -> b (c hg wg) h w"
    as an argument the new one. Comments, unused definitions and their defaults do not count.
    """
    found: set[PatchOrder] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute | ast.Name) and _called(node.func) == _OLD_FUNCTION:
            found.add(PatchOrder.TILE_FIRST)
        for value in (*node.args, *(k.value for k in node.keywords)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and _PATTERN.search(value.value):
                found.add(PatchOrder.CHANNEL_FIRST)
    return found.pop() if len(found) == 1 else None


def choose(
    *,
    model: str,
    registry: PatchOrder | None = None,
    author_code: str | None = None,
    saved: PatchOrder | None = None,
    setting: PatchOrder | None = None,
) -> PatchChoice:
    """Decide from what is known, the strongest first; never guess.

    registry     what the registry confirms for this model
    author_code  text of birefnet.py beside the weights
    saved        what rmbgd itself wrote into config.json when it saved the weights
    setting      the operator's

    Raises ModelError when nothing tells, and when two sources contradict each other: one of them is wrong, and a wrong
    order does not fail, it only makes mattes worse.
    """
    read = read_author_code(author_code) if author_code is not None else None
    stated = [
        (registry, "the registry"),
        (read, "the author's birefnet.py beside the weights"),
        (saved, "config.json beside the weights"),
        (setting, "the setting patch_order"),
    ]
    known = [(order, source) for order, source in stated if order is not None]
    if not known:
        raise ModelError(_unknown(model, has_code=author_code is not None))
    order, source = known[0]
    for other, voice in known[1:]:
        if other is not order:
            raise ModelError(
                f"{model}: {source} says the image patches are {order}, {voice} says {other}: one of them is wrong. "
                "Take the wrong one away (the setting, or the file that does not belong to these weights)"
            )
    also = f", and {' and '.join(voice for _, voice in known[1:])} agrees" if len(known) > 1 else ""
    return PatchChoice(order, f"{source} says so{also}")


def _unknown(model: str, *, has_code: bool) -> str:
    why = (
        "the birefnet.py beside the weights shows neither order, or both"
        if has_code
        else "neither the registry nor a birefnet.py beside the weights tells"
    )
    return (
        f"{model}: the order of the image patches is not known ({why}), and a wrong one spoils mattes silently. "
        "Put the birefnet.py that was published with these weights beside them, or set patch_order to "
        f"{PatchOrder.CHANNEL_FIRST} (author's code since 2024-11-05) or {PatchOrder.TILE_FIRST} (older code, RMBG-2.0)"
    )


def _called(function: ast.Attribute | ast.Name) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id
