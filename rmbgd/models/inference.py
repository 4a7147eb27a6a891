"""First and last step of inference: images resized into a network's input, logits to alpha.

Each step as plain torch, which runs on every device and defines it, and as a Triton kernel that is tested against it.
The filters are those of `resampling`: a triangle as wide as the step between samples, or the mean of whole pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.birefnet import BiRefNet
from rmbgd.resampling import Filter, box_bound

BAND_BYTES = 64 << 20  # of rows that are widened at a time


def put_images(
    images: Sequence[Tensor],
    inputs: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    filter: Filter = Filter.BILINEAR,  # noqa: A002
    triton: bool = False,
) -> None:
    """inputs[i] = resized(images[i]) * scale + shift, for each image.

    images        uint8 [H, W, 3] on the device of `inputs`, rows may have any stride; H and W differ
    inputs        [B, 3, h, w] of any floating type, channels-last; rows beyond the images are left alone
    scale, shift  float32 [3], per channel

    Resized values are within a level of `imaging.resize.image_to_network`, the host's.
    Raises ValueError for more images than rows of `inputs`.
    """
    if len(images) > len(inputs):
        raise ValueError(f"{len(images)} images for {len(inputs)} places")
    if triton:
        from rmbgd.models.kernels.resize import resize_images

        # From page-locked memory, which torch keeps for reuse, so that the copy waits for nothing.
        rows = image_table(images)
        table = rows.pin_memory().to(inputs.device, non_blocking=True) if inputs.is_cuda else rows
        resize_images(table, inputs, scale, shift, filter)
        return
    for target, image in zip(inputs, images, strict=False):
        target.copy_(resized(image, target.shape[1:], filter) * scale.view(3, 1, 1) + shift.view(3, 1, 1))


def image_table(images: Sequence[Tensor]) -> Tensor:
    """A row for each image, on the CPU: address, height, width, bytes a row. int64 [n, 4]. Raises ValueError."""
    rows = []
    for image in images:
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3 or not image.numel():
            raise ValueError(f"an image is {image.dtype} {list(image.shape)}, not uint8 [H, W, 3]")
        height, width, _ = image.shape
        if image.stride()[1:] != (3, 1) and width > 1:
            raise ValueError(f"the pixels of a row lie {image.stride()[1:]} apart, not (3, 1)")
        rows.append((image.data_ptr(), height, width, image.stride(0)))
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4)


def resized(image: Tensor, size: Sequence[int], filter: Filter) -> Tensor:  # noqa: A002
    """uint8 [H, W, 3] -> [3, h, w]: float32, or uint8 on a CPU, where torch has vector code for bytes.

    Boxes are rounded to whole levels, so that all devices have the host's.
    """
    if filter is Filter.BOX:
        return _box_resized(image, size)
    planes = image.permute(2, 0, 1)[None]
    if not image.is_cpu:
        planes = planes.to(torch.float32)
    if planes.shape[2:] != torch.Size(size):
        planes = F.interpolate(planes, tuple(size), mode="bilinear", antialias=True)
    return planes[0]


def _box_resized(image: Tensor, size: Sequence[int]) -> Tensor:
    for axis, outputs in enumerate(size):
        if image.shape[axis] > outputs:
            image = _box(image, axis, outputs)
    planes = image.permute(2, 0, 1)[None].to(torch.float32)
    if planes.shape[2:] != torch.Size(size):
        planes = F.interpolate(planes, tuple(size), mode="bilinear")
    return planes[0].add(0.5).floor_()


def _box(image: Tensor, axis: int, outputs: int) -> Tensor:
    """Means along an axis that shrinks, float32; sums of bytes are exact, in whatever order a device adds."""
    inputs = image.shape[axis]
    bounds = torch.tensor([box_bound(index, inputs, outputs) for index in range(outputs + 1)])
    counts = bounds.diff()
    owner = torch.repeat_interleave(torch.arange(outputs), counts).to(image.device)
    shape = list(image.shape)
    shape[axis] = outputs
    sums = torch.zeros(shape, device=image.device)
    band = max(1, BAND_BYTES * inputs // (4 * image.numel()))
    for first in range(0, inputs, band):
        part = image.narrow(axis, first, min(band, inputs - first)).to(torch.float32)
        sums.index_add_(axis, owner[first : first + band], part)
    return sums.div_(counts.to(image.device).view(-1, *[1] * (image.dim() - 1 - axis)))


def mattes(module: nn.Module, inputs: Tensor, *, triton: bool = False) -> tuple[Tensor, Tensor]:
    """Normalised images [b, 3, h, w] -> alpha float32 [b, h, w], and bool [b]: all logits of this image are finite."""
    if triton and isinstance(module, BiRefNet):
        from rmbgd.models.kernels.head import head_alpha

        p, x = module.head_inputs(inputs)
        head = module.head
        if head.stencils is None:
            raise ValueError("the head has no stencils: call use_kernels first; a bug")
        return head_alpha(head.coarse(p.to(head.coarse.weight.dtype)).contiguous(), x, head.stencils)
    return alpha_of(module(inputs))


def alpha_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 1, h, w] of any floating type -> alpha float32 [b, h, w], finite bool [b]."""
    wide = logits[:, 0].to(torch.float32)
    return wide.sigmoid(), wide.isfinite().flatten(1).all(dim=1)
