"""A network on the CPU in PyTorch: every architecture, every type; the definition of what the others compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rmbgd.backends.planes import SCALE, SHIFT
from rmbgd.engine.types import ModelChoice
from rmbgd.imaging.resize import image_to_network
from rmbgd.models.inference import mattes, put_images
from rmbgd.models.load import load_model
from rmbgd.resampling import Filter

BATCH_MAXIMUM = 4  # images: u2netp takes 0.19 GB for each, and in CPU time a batch saves nothing


def multiplies_bfloat16() -> bool:
    """Whether torch says so of this processor: AVX-512 BF16, AMX, Arm BF16."""
    return any(found is True and "bf16" in name for name, found in torch.cpu.get_capabilities().items())


class TorchNetwork:
    """`inputs` [largest batch, 3, h, w], of a recurrent network [..., 6, h, w], channels last, is used by every batch.

    A module says `recurrent` of itself; it gets the frame before, under its alpha, as channels 3 to 5, scaled alike.
    """

    def __init__(self, choice: ModelChoice, models: Path, *, precision: str, threads: int, batch_maximum: int) -> None:
        """Raises ModelError."""
        torch.set_num_threads(threads)
        dtype: torch.dtype = getattr(torch, precision)
        loaded = load_model(
            choice.source,
            device="cpu",
            dtype=dtype,
            models=models,
            patch_order=choice.patch_order,
            sha256=choice.sha256 or None,
        )
        self.module = loaded.module
        self.size, self.filter = loaded.provenance.input_size, loaded.filter
        self.recurrent = bool(getattr(loaded.module, "recurrent", False))
        self.facts: dict[str, object] = loaded.provenance.facts() | ({"recurrent": True} if self.recurrent else {})
        self.sizes = tuple(size for size in (1, 2, 4) if size <= min(batch_maximum, BATCH_MAXIMUM))
        shape = (self.sizes[-1], 6 if self.recurrent else 3, *self.size)
        self.inputs = torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)
        self._scale, self._shift = torch.tensor(SCALE), torch.tensor(SHIFT)

    def infer(
        self, images: Sequence[NDArray[np.uint8]], previous: Sequence[NDArray[np.uint8] | None] = ()
    ) -> NDArray[np.float32]:
        if self.filter is Filter.BOX:  # the host's way costs less than torch's
            images = [image_to_network(rgb, self.size, self.filter) for rgb in images]
        with torch.inference_mode():
            tensors = [torch.from_numpy(rgb) for rgb in images]
            put_images(tensors, self.inputs[:, :3], self._scale, self._shift, filter=self.filter)
            if self.recurrent:
                black = np.zeros((*self.size, 3), np.uint8)
                seen = [*previous, *[None] * (len(images) - len(previous))]
                before = [torch.tensor(black if each is None else each) for each in seen]
                put_images(before, self.inputs[:, 3:], self._scale, self._shift, filter=self.filter)
            alpha, finite = mattes(self.module, self.inputs[: len(images)])
        found: NDArray[np.float32] = alpha.numpy()
        found[~finite.numpy()] = np.nan  # a sigmoid makes numbers of infinite logits
        return found
