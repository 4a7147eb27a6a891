"""Turn a pickled BiRefNet checkpoint (.pt, .pth, .bin) into the safetensors file that rmbgd loads.

    python tools/convert_checkpoint.py BiRefNet-general-epoch_244.pth /var/lib/rmbgd/models/mine/model.safetensors

Reads with torch.load(weights_only=True): a pickle that asks for anything but tensors is refused, nothing of it runs.
Takes off the prefixes of training wrappers, checks every name and shape against the published ones, and writes the file
whole or not at all. A safetensors file is taken too, to strip prefixes or change precision. Does not know the patch
order: put the author's birefnet.py beside the result.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmbgd.errors import ModelError
from rmbgd.fs import make_readable_folder, place_file
from rmbgd.models.checkpoint import BACKBONES, TensorInfo, read_header, require_published, sha256_of

WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
NESTS = ("state_dict", "model", "model_state_dict", "params", "net", "ema")
DTYPES = {"keep": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SPELT = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}


def read(source: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, wherever it nests them. Raises ModelError."""
    if not source.is_file():
        raise ModelError(f"{source}: no such file")
    if source.suffix == ".safetensors":
        read_header(source)
        return strip(load_file(source))
    try:
        # A zip archive can be mapped; files older than torch 1.6 cannot.
        loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        asked = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise ModelError(
            f"{source}: refused: the pickle asks for more than tensors ({asked}). Nothing of it was run. "
            "Ask its author for safetensors, or for the bare state_dict"
        ) from error
    except Exception as error:  # an unpickler that is fed junk raises whatever the junk leads it to
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source}: damaged, or no checkpoint: {first}") from error
    return strip(unnest(loaded, source))


def unnest(loaded: object, source: Path) -> dict[str, Tensor]:
    """The name -> tensor mapping inside what was unpickled; optimiser states and counters are left behind."""
    if isinstance(loaded, Mapping):
        for key in NESTS:
            if isinstance(loaded.get(key), Mapping):
                return unnest(loaded[key], source)
        if tensors := {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}:
            return tensors
    raise ModelError(f"{source}: holds no named tensors (a whole pickled module is not a checkpoint)")


def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return strip({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def convert(source: Path, target: Path, dtype: torch.dtype | None = None) -> str:
    """Write `target` from `source`; returns the backbone. Floating tensors take `dtype` when it is given.

    Raises ModelError for what cannot be read or is no BiRefNet, OSError where the target cannot be written.
    """
    tensors = read(source)
    infos = {name: TensorInfo(tuple(each.shape), _SPELT.get(each.dtype, "?")) for name, each in tensors.items()}
    backbone = require_published(infos, source)  # every needed tensor, and no other
    cast = {name: each.to(dtype or each.dtype) if each.is_floating_point() else each for name, each in tensors.items()}
    # Tensors of one storage (tied, or views) are written apart: the format has no sharing.
    plain = {name: each.clone(memory_format=torch.contiguous_format) for name, each in cast.items()}
    make_readable_folder(target.parent)
    staged = target.with_name(f".{target.name}.tmp")
    try:
        save_file(plain, staged, metadata={"format": "pt", "converted_from": source.name})
        place_file(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    return backbone


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path, help="checkpoint: .pt, .pth, .bin, or .safetensors with other names")
    parser.add_argument("target", type=Path, help="model.safetensors to write")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="precision to store (default: as it is)")
    chosen = parser.parse_args(arguments)
    try:
        backbone = convert(chosen.source, chosen.target, DTYPES[chosen.dtype])
    except (ModelError, OSError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.target}: {BACKBONES[backbone].name}, {read_header(chosen.target).precision}")
    print(f"sha256 {sha256_of(chosen.target)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
