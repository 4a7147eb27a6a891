"""Checkpoints for tests: every name and shape of a published one, without its weight on the disk."""

from __future__ import annotations

import json
from pathlib import Path

from rmbgd.models.checkpoint import TensorInfo, published

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}

# What the author's file looks like where it matters, in both generations; shortened, in our own words.
OLD_CODE = """
class Decoder:
    def get_patches_batch(self, x, p):
        return x
    def forward(self, features):
        x, x1, x2, x3, x4 = features
        patches_batch = self.get_patches_batch(x, x4) if self.split else x
"""
NEW_CODE = """
def image2patches(image, grid_h=2, grid_w=2, patch_ref=None, transformation='b c (hg h) (wg w) -> (b hg wg) c h w'):
    return rearrange(image, transformation, hg=grid_h, wg=grid_w)
class Decoder:
    def forward(self, features):
        x, x1, x2, x3, x4 = features
        patches = image2patches(x, patch_ref=x4, transformation='b c (hg h) (wg w) -> b (c hg wg) h w')
"""


def hollow(path: Path, tensors: dict[str, TensorInfo] | str = "swin_v1_t") -> Path:
    """A safetensors file whose tensors are all zero. `tensors` may name a backbone."""
    wanted = published(tensors) if isinstance(tensors, str) else tensors
    records: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The library's order: wide types first, then by name. It wants no gaps.
    for name, info in sorted(wanted.items(), key=lambda item: (-_BYTES[item[1].dtype], item[0])):
        size = info.elements * _BYTES[info.dtype]
        records[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [end, end + size]}
        end += size
    return written(path, records, end)


def written(path: Path, records: dict[str, object], data_bytes: int) -> Path:
    """A safetensors file with this header, then a hole."""
    text = json.dumps(records, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data_bytes)
    return path


def halved(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {n: TensorInfo(t.shape, "F16" if t.dtype == "F32" else t.dtype) for n, t in tensors.items()}
