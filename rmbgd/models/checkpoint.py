"""A safetensors file from the outside: its header, whether it is whole, its digest. Standard library only.

Does not map tensors and knows no network: `weights.py` does, `published.py` has the names. The header is read here
rather than through the library because the library says of a damaged file only that it is damaged; an operator needs to
know whether the download stopped half-way, a Git LFS pointer was cloned, or a web page was saved.

Format: https://huggingface.co/docs/safetensors (8 bytes of little-endian header length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.errors import ModelError

CONVERTER = "tools/convert_checkpoint.py"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"})

# The reference implementation's own limit; a published BiRefNet's header is 87 kB.
_HEADER_LIMIT = 100_000_000
# A progress bar for (label, total bytes); inside, a function that is told the bytes just done.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]

_HASH_CHUNK = 1 << 20  # read(2), not mmap: the pages stay the kernel's, the process's memory does not grow

_ELEMENT_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]
    dtype: str  # as the format spells it: "F32", "F16", "BF16", "I64", ...

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        return self.dtype in {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    path: Path
    file_bytes: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @property
    def precision(self) -> str:
        """The one dtype of all floating tensors ("F32"), or "mixed"."""
        kinds = {t.dtype for t in self.tensors.values() if t.floating}
        return kinds.pop() if len(kinds) == 1 else "mixed"


def refuse_pickle(path: Path) -> None:
    """Raise ModelError for a file that can only be a pickle: loading one runs whatever its author put in."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError(
            f"{path}: pickled checkpoints are not loaded, they can run code. "
            f"Convert it once: python {CONVERTER} {path} {path.with_suffix('.safetensors')}"
        )


def read_header(path: Path) -> Header:
    """Names, shapes and types of every tensor; checks that the file is as long as its header promises.

    Raises ModelError that says which kind of file it is instead, or how much of it is missing.
    """
    refuse_pickle(path)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # before opening: a pipe would block
            raise ModelError(f"{path}: not a regular file")
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_HEADER_LIMIT, facts.st_size - 8):
                raise ModelError(_what_is_it(path, start + file.read(512), facts.st_size))
            text = file.read(length)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _parsed(path, facts.st_size, 8 + length, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(_what_is_it(path, start + text[:512], facts.st_size)) from error


def _parsed(path: Path, file_bytes: int, data_start: int, raw: dict[str, Any]) -> Header:
    metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, record in raw.items():
        info = TensorInfo(tuple(int(n) for n in record["shape"]), str(record["dtype"]))
        first, last = (int(n) for n in record["data_offsets"])
        if info.dtype in _ELEMENT_BYTES and last - first != info.elements * _ELEMENT_BYTES[info.dtype]:
            raise ModelError(f"{path}: damaged: tensor {name} has {last - first} bytes for shape {info.shape}")
        tensors[name] = info
        end = max(end, last)
    if file_bytes < data_start + end:
        raise ModelError(
            f"{path}: truncated: the header promises {data_start + end:,} bytes and the file has {file_bytes:,}. "
            "The download or copy did not finish; fetch or copy it again"
        )
    if file_bytes > data_start + end:
        raise ModelError(f"{path}: damaged: {file_bytes - data_start - end:,} bytes follow the last tensor")
    return Header(path, file_bytes, tensors, metadata)


def _what_is_it(path: Path, start: bytes, size: int) -> str:
    """One line on a file that is no safetensors: what it looks like and what to do."""
    if size == 0:
        return f"{path}: empty file; fetch or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return f"{path}: a Git LFS pointer, not the weights themselves; run `git lfs pull` there"
    if start.lstrip()[:1] == b"<":
        return f"{path}: a web page, not weights; the address of the download was that of the page around it"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return f"{path}: a pickled PyTorch checkpoint under another name; convert it with {CONVERTER}"
    if start.startswith(b"GGUF"):
        return f"{path}: a GGUF file; this program reads safetensors"
    if len(start) > 8 and start[8:9] == b"{":
        return f"{path}: truncated or damaged inside its header ({size:,} bytes); fetch or copy it again"
    return f"{path}: no safetensors file ({size:,} bytes)"


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """Hex digest of a file, read in pieces of 1 MiB; `progress` is told the bytes of each."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_HASH_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if progress:
                progress(count)
    return digest.hexdigest()
