"""Images of any size into the places of a network's input: resized with antialias, scaled, shifted.

Does not know where images come from or what the numbers mean. Bilinear with antialias as Pillow computes it: a
triangle as wide as the step between samples, cut at the border and normalised there (Pillow, ImagingResample).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def put_images(images: Sequence[Tensor], inputs: Tensor, scale: Tensor, shift: Tensor, *, triton: bool = False) -> None:
    """inputs[i] = resized(images[i]) * scale + shift, for each image.

    images  uint8 [H, W, 3] on the device of `inputs`, rows may have any stride; H and W differ from one to the next
    inputs    [B, 3, h, w] of any floating type, pixel-major (channels_last); places beyond the images are left alone
    scale, shift  float32 [3], per channel

    Resized values are within 1/255 of Pillow's, which rounds to bytes; on a CPU they are rounded as Pillow does.
    Raises ValueError for more images than places.
    """
    if len(images) > len(inputs):
        raise ValueError(f"{len(images)} images for {len(inputs)} places")
    if triton:
        from rmbgd.models.kernels.resize_kernel import put_described

        # From page-locked memory, which torch keeps for reuse, so that the copy waits for nothing.
        rows = describe(images)
        table = rows.pin_memory().to(inputs.device, non_blocking=True) if inputs.is_cuda else rows
        put_described(table, inputs, scale, shift)
        return
    for place, image in zip(inputs, images, strict=False):
        place.copy_(resized(image, place.shape[1:]) * scale.view(3, 1, 1) + shift.view(3, 1, 1))


def describe(images: Sequence[Tensor]) -> Tensor:
    """A row for each image, on the CPU: address, height, width, bytes from row to row. int64 [n, 4]

    For who keeps a table on the device: copy these rows into it, then `images_kernel.put_described`. Raises
    ValueError for images that are not uint8 [H, W, 3] with whole pixels one after another.
    """
    rows = []
    for image in images:
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3 or not image.numel():
            raise ValueError(f"an image is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3]")
        height, width, _ = image.shape
        if image.stride()[1:] != (3, 1) and width > 1:
            raise ValueError(f"the pixels of a row lie {image.stride()[1:]} apart, not (3, 1)")
        rows.append((image.data_ptr(), height, width, image.stride(0)))
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4)


def resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 [H, W, 3] -> [3, h, w]: float32, or uint8 on a CPU, where torch has vector code for bytes."""
    planes = image.permute(2, 0, 1)[None]
    if not image.is_cpu:
        planes = planes.to(torch.float32)
    if planes.shape[2:] != torch.Size(size):
        planes = F.interpolate(planes, tuple(size), mode="bilinear", antialias=True)
    return planes[0]
