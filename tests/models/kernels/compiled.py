"""Compiles every kernel, as the networks launch it, for a capability such as 90; needs no device of it, or any.

    python -m tests.models.kernels.compiled 90

One JSON line per kernel: shared memory in bytes, registers and spilled bytes of a thread. Does not run anything.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rmbgd.models.kernels import aspp as aspp_kernel
from rmbgd.models.kernels import head_kernel, resize_kernel
from rmbgd.models.kernels import norm as norm_kernel
from rmbgd.models.kernels import window as window_kernel


@dataclass(frozen=True)
class Launch:
    """One kernel with the types of its arguments (int32 where nothing is said), its constants and options."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, object]
    options: dict[str, object]


def launches(capability: int) -> Iterator[Launch]:
    """At the sizes of Swin-L and Swin-T; the tiles that cards of this capability take."""
    roomy = capability in {80, 87, 90, 100, 103}
    for kind in ("fp16", "bf16", "fp32"):
        wide = kind == "fp32"
        precision = "tf32x3" if wide else "tf32"
        types = {"table": "*i64", "inputs": f"*{kind}", "scale": "*fp32", "shift": "*fp32"}
        constants: dict[str, object] = {"TILE": resize_kernel.TILE, "STEP": resize_kernel.STEP}
        yield Launch(f"images {kind}", resize_kernel._resize, types, constants, {"num_warps": 4})

        tile = aspp_kernel.WIDE if wide else aspp_kernel.LARGE if roomy else aspp_kernel.SMALL
        names = aspp_kernel._pyramid.arg_names
        given = ("moves", "weight", "bias", "join")
        types = {name: f"*{kind}" for name in names if name[:-1] in given or name in {"x", "y"}} | {"base": "*fp32"}
        constants = {f"K{i}": k for i, k in enumerate((1, 1, 3, 7))} | {"WIDTH": 64, "BRANCH": 256}
        constants |= {"TILE_Y": tile.height, "TILE_X": tile.width, "AT_ONCE": tile.channels, "PRECISION": precision}
        options: dict[str, object] = {"num_warps": tile.warps, "num_stages": tile.stages}
        yield Launch(f"pyramid {kind}", aspp_kernel._pyramid, types, constants, options)

        types = dict.fromkeys(("x", "weight", "bias"), "*fp32") | dict.fromkeys(("addend", "y"), f"*{kind}")
        constants = {"ADD": True, "BLOCK": 2048}
        yield Launch(f"norm {kind}", norm_kernel._norm, types | {"epsilon": "fp32"}, constants, {"num_warps": 8})

        for window in (7, 12):
            types = dict.fromkeys(("qkv", "padding", "bias", "out"), f"*{kind}") | {"scale": "fp32"}
            constants = {"WINDOW": window, "SHIFT": window // 2, "HEAD": 32, "D": 32, "PRECISION": precision}
            constants |= {"BLOCK": window_kernel.BLOCK, "BLOCKS": window_kernel.blocks_of(window)}
            options = {"num_warps": 4, "num_stages": 1} | ({} if wide else {"maxnreg": window_kernel.REGISTERS})
            yield Launch(f"window {window} {kind}", window_kernel._attention, types, constants, options)
    types = dict.fromkeys(("coarse", "x", "stencils", "alpha"), "*fp32") | {"bytes_": "*u8", "unfit": "*i32"}
    constants = {"REACH": 2, "TILE_Y": head_kernel.TILE_Y, "TILE_X": head_kernel.TILE_X, "BYTES": True}
    yield Launch("head", head_kernel._finish, types, constants, {"num_warps": 4})


def compiled(launch: Launch, capability: int) -> dict[str, object]:
    names = launch.kernel.arg_names
    kinds = {n: "constexpr" if n in launch.constants else launch.types.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if kinds[n].startswith("*")}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    source = ASTSource(fn=launch.kernel, signature=kinds, constexprs=constants, attrs=aligned)
    answer = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    registers, spilled = resources(answer.asm["cubin"])
    return {"kernel": launch.name, "shared": answer.metadata.shared, "registers": registers, "spilled": spilled}


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as NVIDIA's tool beside Triton tells them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout)
    assert found is not None, told.stdout
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    for one in launches(int(sys.argv[1])):
        print(json.dumps(compiled(one, int(sys.argv[1]))), flush=True)
