"""Compiles the kernels as the networks launch them; needs no GPU and runs nothing.

    python -m tests.models.kernels.compiled 90

for a capability: one JSON line per kernel: shared memory in bytes, registers and spilled bytes of a thread, how many
programs a multiprocessor runs at once, and the matrix instructions of its machine code, by kind.

    python -m tests.models.kernels.compiled launches

one JSON line: how many compilations of each kernel batches of 1, 2 and 16 and maps and images of two sizes took.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rmbgd.models.birefnet import Head
from rmbgd.models.deform import DeformableAspp, offset_channels
from rmbgd.models.finish import FinishJob
from rmbgd.models.inference import put_images
from rmbgd.models.kernels import aspp, finish, head, norm, resize, window
from rmbgd.models.kernels.runtime import FINISH, use_kernels
from rmbgd.models.swin import Stage

FINISHING = (finish._shrink, finish._fit, finish._coarse, finish._halve, finish._relax, finish._pack)
KERNELS = (window._attention, aspp._pyramid, head._head, norm._norm, norm._merged, resize._resize, *FINISHING)

# Of one multiprocessor, by capability (CUDA C++ Programming Guide): bytes of shared memory, and threads.
PROCESSOR = {80: (167_936, 2048), 86: (102_400, 1536), 87: (167_936, 1536), 89: (102_400, 1536), 90: (233_472, 2048)}
PROCESSOR |= {100: (233_472, 2048), 103: (233_472, 2048), 120: (102_400, 1536), 121: (102_400, 1536)}
ALL_REGISTERS, PROGRAMS, RESERVED = 65_536, 16, 1024  # of a multiprocessor; the last: bytes of shared memory a program


class Launch(NamedTuple):
    name: str
    kernel: Any
    types: dict[str, str]  # of its arguments; int32 where nothing is said
    constants: dict[str, object]
    options: dict[str, object]


def launches(capability: int) -> Iterator[Launch]:
    """At the sizes of Swin-L and Swin-T; the tiles that cards of this capability take."""
    roomy = capability in {80, 87, 90, 100, 103}
    for kind in ("fp16", "bf16", "fp32"):
        wide = kind == "fp32"
        precision = "tf32x3" if wide else "tf32"
        types = {"table": "*i64", "inputs": f"*{kind}", "scale": "*fp32", "shift": "*fp32"}
        constants: dict[str, object] = {"TILE": resize.TILE, "STEP": resize.STEP}
        yield Launch(f"images {kind}", resize._resize, types, constants, {"num_warps": 4})

        for size, tile in {"large": aspp.LARGE, "small": aspp.SMALL, "wide": aspp.WIDE}.items():
            if wide != (tile is aspp.WIDE) or (tile is aspp.LARGE and not roomy):
                continue
            names = aspp._pyramid.arg_names
            given = ("offset_mask", "weight", "bias", "projection")
            types = {name: f"*{kind}" for name in names if name[:-1] in given or name in {"x", "y"}} | {"base": "*fp32"}
            constants = {f"K{i}": k for i, k in enumerate((1, 1, 3, 7))} | {"WIDTH": 64, "BRANCH": 256}
            constants |= {f"PITCH{i}": offset_channels(k) for i, k in enumerate((1, 1, 3, 7))}
            constants |= {"TILE_Y": tile.height, "TILE_X": tile.width, "AT_ONCE": tile.channels, "PRECISION": precision}
            options: dict[str, object] = {"num_warps": tile.warps, "num_stages": tile.stages}
            yield Launch(f"pyramid {size} {kind}", aspp._pyramid, types, constants, options)

        types = dict.fromkeys(("x", "total", "weight", "bias"), "*fp32") | dict.fromkeys(("addend", "y"), f"*{kind}")
        types |= {"epsilon": "fp32"}
        yield Launch(f"norm {kind}", norm._norm, types, {"ADD": True, "BLOCK": 2048}, {"num_warps": 8})
        yield Launch(f"merged {kind}", norm._merged, types, {"BLOCK": 4096}, {"num_warps": 8})

        for side in (7, 12):
            types = dict.fromkeys(("qkv", "padding", "bias", "out"), f"*{kind}") | {"scale": "fp32"}
            constants = {"WINDOW": side, "SHIFT": side // 2, "HEAD": 32, "D": 32, "PRECISION": precision}
            constants |= {"BLOCK": window.BLOCK, "BLOCKS": window.blocks_of(side)}
            options = {"num_warps": 4, "num_stages": 1} | ({} if wide else {"maxnreg": window.REGISTERS})
            yield Launch(f"window {side} {kind}", window._attention, types, constants, options)
    types = dict.fromkeys(("coarse", "x", "stencils", "alpha"), "*fp32") | {"nonfinite": "*i32"}
    constants = {"REACH": 2, "TILE_Y": head.TILE_Y, "TILE_X": head.TILE_X}
    yield Launch("head", head._head, types, constants, {"num_warps": 4})
    given = {"table": "*i64", "images": "*u8", "inputs": "*fp16"}
    given |= dict.fromkeys(("mattes", "fitted", "work"), "*fp32")
    given |= dict.fromkeys(("stiffness", "softest", "hardest", "flatness", "faint", "explained"), "fp32")
    given |= {f"{kind}_{colour}": "fp32" for kind in ("scale", "shift") for colour in ("red", "green", "blue")}
    constants = {"STEP": finish.SHRINK_STEP, "HALO": finish.HALO}
    for kernel in FINISHING:
        for tile, warps in ((finish.TILE, 16), (finish.SMALL_TILE, 4)) if kernel is finish._relax else ((16, 4),):
            sizes = {"TILE": tile, "BLOCK": finish.BLOCK if kernel is finish._pack else finish.BLOCK // 2}
            own = {n: v for n, v in (constants | sizes).items() if n in kernel.arg_names}
            types = {n: t for n, t in given.items() if n in kernel.arg_names}
            yield Launch(f"{kernel.__name__} {tile}", kernel, types, own, {"num_warps": warps})


def compiled(launch: Launch, capability: int) -> dict[str, object]:
    names = launch.kernel.arg_names
    kinds = {n: "constexpr" if n in launch.constants else launch.types.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if kinds[n].startswith("*")}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    source = ASTSource(fn=launch.kernel, signature=kinds, constexprs=constants, attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    dumped = dump(kernel.asm["cubin"], "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", dumped)
    assert found is not None, dumped
    registers, shared = int(found[1]), kernel.metadata.shared
    return {
        "kernel": launch.name,
        "shared": shared,
        "registers": registers,
        "spilled": int(found[2]),
        "programs": programs(capability, 32 * kernel.metadata.num_warps, registers, shared),
        "matrix": Counter(re.findall(r"\b((?:H|HG|UTCH)MMA)\b", dump(kernel.asm["cubin"], "--dump-sass"))),
    }


def programs(capability: int, threads: int, registers: int, shared: int) -> int:
    """How many of a kernel's programs one multiprocessor runs at once. Registers are given to warps by the 256."""
    memory, most = PROCESSOR[capability]
    by_registers = ALL_REGISTERS // (-(-32 * registers // 256) * 256 * threads // 32)
    return min(by_registers, most // threads, memory // (shared + RESERVED), PROGRAMS)


def dump(cubin: bytes, what: str) -> str:
    """By NVIDIA's tool beside Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        paths = {"PATH": f"{tools}:{os.environ['PATH']}"}
        command = [tools / "cuobjdump", what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | paths).stdout


# A card of capability 9.0 that cannot be reached.
NO_DRIVER = SimpleNamespace(
    get_current_device=lambda: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    get_current_stream=lambda _: 0,
)


def compile_only(kernel: JITFunction, grid: Any) -> Any:
    return lambda *given, **options: kernel.run(*given, grid=grid, warmup=True, **options)


@torch.inference_mode()
def compilations() -> dict[str, int]:
    driver.set_active(NO_DRIVER)
    JITFunction.__getitem__ = compile_only
    stage, pyramid, ending = Stage(192, 2, 6, 12, last=False).half(), DeformableAspp().half(), Head()
    for norm_of_stage in [module for module in stage.modules() if isinstance(module, nn.LayerNorm)]:
        norm_of_stage.float()
    for layer in (stage, pyramid, ending):
        use_kernels(layer, triton=True)
    for batch in (1, 2, 16):
        inputs = torch.zeros(batch, 3, 64, 64).to(memory_format=torch.channels_last)
        images = [torch.zeros(50 + place, 64 + 3 * place, 3, dtype=torch.uint8) for place in range(batch)]
        put_images(images, inputs, torch.ones(3), torch.zeros(3), triton=True)
        for height, width in ((128, 64), (7, 9)):
            for kind in (torch.float32, torch.float16):  # a network's first stage, and the others
                stage(torch.zeros(batch, height, width, 192, dtype=kind), nn.LayerNorm(192))
            pyramid(torch.zeros(batch, 64, height, width).half().to(memory_format=torch.channels_last))
        for side in (2, 40):
            jobs = [FinishJob(side + image, 50, 0, -1, 0, 4, image, (side, 50 + image)) for image in range(batch)]
            jobs.append(FinishJob(100, 96 + side, 0, -1, 0, 1, 0, (0, 0), refined=True))
            seen = torch.zeros(batch, 3, 40, 48 + side).half().to(memory_format=torch.channels_last)
            finish.finish_images(torch.zeros(16, dtype=torch.uint8), seen[:, 0].float(), seen, jobs, FINISH)
        head.head_alpha(ending.coarse(torch.zeros(batch, 64, 16, 16)), inputs, ending.stencils)
    return {kernel.__name__: len(kernel.device_caches[0][0]) for kernel in KERNELS}


if __name__ == "__main__":
    if sys.argv[1] == "launches":
        print(json.dumps(compilations()))
    else:
        for one in launches(int(sys.argv[1])):
            print(json.dumps(compiled(one, int(sys.argv[1]))), flush=True)
