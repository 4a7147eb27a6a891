"""Pictures of any size into the places of a network's input: resized with antialias, scaled, shifted.

Does not know where pictures come from or what the numbers mean. Bilinear with antialias as Pillow computes it: a
triangle as wide as the step between samples, cut at the border and normalised there (Pillow, ImagingResample).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def put_pictures(
    pictures: Sequence[Tensor], inputs: Tensor, scale: Tensor, shift: Tensor, *, triton: bool = False
) -> None:
    """inputs[i] = resized(pictures[i]) * scale + shift, for each picture.

    pictures  uint8 [H, W, 3] on the device of `inputs`, rows may have any stride; H and W differ from one to the next
    inputs    [B, 3, h, w] of any floating type, pixel-major (channels_last); places beyond the pictures are left alone
    scale, shift  float32 [3], per channel

    Resized values are within 1/255 of Pillow's, which rounds to bytes; on a CPU they are rounded as Pillow does.
    Raises ValueError for more pictures than places.
    """
    if len(pictures) > len(inputs):
        raise ValueError(f"{len(pictures)} pictures for {len(inputs)} places")
    del triton  # one path so far
    for place, picture in zip(inputs, pictures, strict=False):
        place.copy_(resized(picture, place.shape[1:]) * scale.view(3, 1, 1) + shift.view(3, 1, 1))


def resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 [H, W, 3] -> [3, h, w]: float32, or uint8 on a CPU, where torch has vector code for bytes."""
    planes = picture.permute(2, 0, 1)[None]
    if not picture.is_cpu:
        planes = planes.to(torch.float32)
    if planes.shape[2:] != torch.Size(size):
        planes = F.interpolate(planes, tuple(size), mode="bilinear", antialias=True)
    return planes[0]
