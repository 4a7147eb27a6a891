"""Memory on a torch device, for the canary. In the engine's process. Does not know when it is looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from rmbgd.engine.canary import WORDS, Pattern, chunks


class TorchMemory:
    """int64 [blocks, WORDS]. Expected values are computed there, too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._words = torch.empty(0, dtype=torch.int64)

    def allocate(self, blocks: int) -> None:
        self._words = torch.empty((blocks, WORDS), dtype=torch.int64, device=self._device)

    def write(self, pattern: Pattern) -> None:
        for first, count in chunks(len(self._words)):
            self._words[first : first + count] = self._expected(pattern, first, count)

    def compare(self, pattern: Pattern) -> list[int]:
        bad: list[int] = []
        for first, count in chunks(len(self._words)):
            wrong = (self._words[first : first + count] != self._expected(pattern, first, count)).any(dim=1)
            bad += [first + int(block) for block in wrong.nonzero().flatten().tolist()]
        return bad

    def release(self) -> None:
        self._words = torch.empty(0, dtype=torch.int64)

    def _expected(self, pattern: Pattern, first: int, count: int) -> Tensor:
        index = torch.arange(first * WORDS, (first + count) * WORDS, dtype=torch.int64, device=self._device)
        return pattern.words(index).view(count, WORDS)
