"""Which token of a map sits in which window: all of windowed attention that depends on shapes and not on weights.

Knows neither attention nor the backbone. Plans are made once per shape and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Some windows with one mask pattern. A slot is a token's place in them, counted window by window."""

    tokens: Tensor  # [tokens] which tokens of the batch sit in these windows, in the order of their slots
    slots: Tensor | None  # [tokens] the slot of each; None where no slot is empty
    padding: Tensor  # the empty slots
    windows: int
    pattern: int  # index into WindowPlan.masks


@dataclass(frozen=True)
class WindowPlan:
    """Which token goes into which window: all of attention that depends on shapes and not on weights."""

    pieces: tuple[Piece, ...]
    masks: tuple[Tensor | None, ...]  # [window², window²] True where two tokens may see each other; None: everywhere


# A captured CUDA graph keeps the addresses of its plans: none may be dropped while a few batch sizes of a few networks
# are in use (16 plans for each).
@lru_cache(maxsize=512)
def window_plan(
    batch: int, height: int, width: int, window: int, shift: int, windows_per_piece: int, device: torch.device
) -> WindowPlan:
    """The plan for maps of this shape. Cached: a service sees few shapes, each many times."""
    tokens = torch.arange(batch * height * width).view(batch, height, width)
    tokens = F.pad(tokens, (0, -width % window, 0, -height % window), value=-1).roll((-shift, -shift), dims=(1, 2))
    rows, columns = tokens.shape[1] // window, tokens.shape[2] // window
    windows = tokens.view(batch, rows, window, columns, window).transpose(2, 3).reshape(-1, window * window)
    # The roll brings the map's far side next to its near side in the last row and in the last column of windows.
    last_row = torch.arange(rows).eq(rows - 1).view(1, rows, 1)
    last_column = torch.arange(columns).eq(columns - 1).view(1, 1, columns)
    pattern = (2 * last_row + 1 * last_column).expand(batch, -1, -1).flatten() * bool(shift)
    padded = windows.lt(0).any(dim=1)
    kinds = 2 * pattern + 1 * padded
    pieces = []
    for kind in sorted(set(kinds.tolist())):
        alike = windows[kinds == kind]
        pieces += [_piece(part, kind // 2, device) for part in torch.split(alike, windows_per_piece)]
    cuts = ((False, True), (True, False), (True, True)) if shift else ()
    masks = tuple(_neighbours(window, shift, cut_rows=r, cut_columns=c).to(device) for r, c in cuts)
    return WindowPlan(tuple(pieces), (None, *masks))


def _piece(windows: Tensor, pattern: int, device: torch.device) -> Piece:
    """From [windows, window²] token indices, -1 where a slot is empty."""
    slots = windows.flatten()
    filled = slots.ge(0).nonzero().flatten()
    padding = slots.lt(0).nonzero().flatten()
    whole = len(padding) == 0
    return Piece(
        slots[filled].to(device), None if whole else filled.to(device), padding.to(device), len(windows), pattern
    )


def _neighbours(window: int, shift: int, *, cut_rows: bool, cut_columns: bool) -> Tensor:
    """[window², window²]: True for two tokens on the same side of the cuts that the roll made through a window."""
    beyond = torch.arange(window) >= window - shift
    side = 2 * (beyond & cut_rows).view(-1, 1) + 1 * (beyond & cut_columns)
    return side.view(-1, 1) == side.view(1, -1)


@lru_cache(maxsize=8)
def relative_position_index(window: int, device: torch.device) -> Tensor:
    """[window⁴]: for each pair of tokens of a window, the row of the position bias table."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy = y.reshape(-1, 1) - y.reshape(1, -1) + window - 1
    dx = x.reshape(-1, 1) - x.reshape(1, -1) + window - 1
    return (dy * (2 * window - 1) + dx).flatten().to(device)
