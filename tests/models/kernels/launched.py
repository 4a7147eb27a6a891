"""Every launch as the networks make it, up to the device: which compilations it asks for. Needs no GPU.

    python -m tests.models.kernels.launched

Stands in for CUDA's driver with one that only names a capability, and compiles where a kernel would be started. Prints
one JSON line: how many compilations of each kernel batches of 1, 2 and 16 and maps and images of two sizes took.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rmbgd.models.birefnet import Head
from rmbgd.models.deform import DeformableAspp
from rmbgd.models.kernels import aspp as aspp_kernel
from rmbgd.models.kernels import head_kernel, resize_kernel
from rmbgd.models.kernels import norm as norm_kernel
from rmbgd.models.kernels import window as window_kernel
from rmbgd.models.kernels.resize import put_images
from rmbgd.models.kernels.runtime import use_kernels
from rmbgd.models.swin import SwinBlock

KERNELS = {
    "window": window_kernel._attention,
    "pyramid": aspp_kernel._pyramid,
    "head": head_kernel._finish,
    "norm": norm_kernel._norm,
    "pictures": resize_kernel._resize,
}


class NoDriver:
    """A card of capability 9.0 that nobody can reach."""

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_stream(self, _: int) -> int:
        return 0


def compile_only(kernel: JITFunction, grid: Any) -> Any:
    return lambda *given, **options: kernel.run(*given, grid=grid, warmup=True, **options)


@torch.inference_mode()
def main() -> None:
    driver.set_active(NoDriver())
    JITFunction.__getitem__ = compile_only
    block, pyramid, head = SwinBlock(192, 6, 12, 6).half(), DeformableAspp().half(), Head()
    for layer in (block, pyramid, head):
        use_kernels(layer, triton=True)
    for batch in (1, 2, 16):
        inputs = torch.zeros(batch, 3, 64, 64).to(memory_format=torch.channels_last)
        images = [torch.zeros(50 + place, 64 + 3 * place, 3, dtype=torch.uint8) for place in range(batch)]
        put_images(images, inputs, torch.ones(3), torch.zeros(3), triton=True)
        for height, width in ((16, 16), (7, 9)):
            block(torch.zeros(batch, height, width, 192))
            pyramid(torch.zeros(batch, 64, height, width).half().to(memory_format=torch.channels_last))
        head_kernel.finish(head, torch.zeros(batch, 64, 16, 16).half(), inputs)
    print(json.dumps({name: len(kernel.device_caches[0][0]) for name, kernel in KERNELS.items()}))


if __name__ == "__main__":
    main()
