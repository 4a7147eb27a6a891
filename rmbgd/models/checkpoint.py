"""Published checkpoints: safetensors header, digest, their tensors, patch order.

Standard library only, for the service's own process. The header is parsed here and not by `safetensors.safe_open`: that
waits for ever on a pipe, maps a file before it is judged, and has one message for files cut, too long and damaged.

Format: https://huggingface.co/docs/safetensors (8 bytes of little-endian header length, JSON header, data).
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.errors import ModelError
from rmbgd.models.registry import PatchOrder

CONVERTER = "tools/convert_checkpoint.py"
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"})

# A progress bar for (label, total bytes); inside, a function to call with the bytes just done.
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]

_HEADER_LIMIT = 100_000_000  # the reference implementation's own; a published BiRefNet's header is 87 kB
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

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class CheckpointHeader:
    file_bytes: int
    tensors: dict[str, TensorInfo]

    @property
    def precision(self) -> str:
        """The one dtype of all floating tensors ("F32"), or "mixed"."""
        kinds = {t.dtype for t in self.tensors.values() if t.floating}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def parameters(self) -> int:
        return sum(t.elements for t in self.tensors.values() if t.floating)


def refuse_pickle(path: Path) -> None:
    """Raise ModelError for a file that can only be a pickle: loading one runs whatever its author put in."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError(
            f"{path}: pickled checkpoints are not loaded, they can run code. "
            f"Convert it once: python {CONVERTER} {path} {path.with_suffix('.safetensors')}"
        )


def read_header(path: Path) -> CheckpointHeader:
    """Names, shapes and types of every tensor. Raises ModelError that says which kind of file it is instead, or how
    much of it is missing."""
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
        tensors, data_bytes = _tensors(path, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(_what_is_it(path, start + text[:512], facts.st_size)) from error
    promised = 8 + length + data_bytes
    if facts.st_size < promised:
        raise ModelError(
            f"{path}: truncated: the header promises {promised:,} bytes and the file has {facts.st_size:,}. "
            "The download or copy did not finish; fetch or copy it again"
        )
    if facts.st_size > promised:
        raise ModelError(f"{path}: damaged: {facts.st_size - promised:,} bytes follow the last tensor")
    return CheckpointHeader(facts.st_size, tensors)


def _tensors(path: Path, records: dict[str, Any]) -> tuple[dict[str, TensorInfo], int]:
    """The tensors of a parsed header, and the bytes of data that they promise."""
    tensors, end = {}, 0
    records.pop("__metadata__", None)
    for name, record in records.items():
        info = TensorInfo(tuple(int(n) for n in record["shape"]), str(record["dtype"]))
        first, last = (int(n) for n in record["data_offsets"])
        if info.dtype in _ELEMENT_BYTES and last - first != info.elements * _ELEMENT_BYTES[info.dtype]:
            raise ModelError(f"{path}: damaged: tensor {name} has {last - first} bytes for shape {info.shape}")
        tensors[name] = info
        end = max(end, last)
    return tensors, end


def _what_is_it(path: Path, start: bytes, size: int) -> str:
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
    """Hex digest of a file, read in chunks of 1 MiB; `progress` is called with the bytes of each."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_HASH_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if progress:
                progress(count)
    return digest.hexdigest()


# --- The order in which a checkpoint's image patches were stacked on channels.

# einops' right-hand side in the call that feeds ipt_blk2..5; the same function is also defined with other defaults.
_PATTERN = re.compile(r"->\s*b\s*\(\s*c\s+hg\s+wg\s*\)\s*h\s+w\s*$")


@dataclass(frozen=True)
class PatchChoice:
    """The order in use, and why, as one clause for the log."""

    order: PatchOrder
    reason: str


def read_author_code(text: str) -> PatchOrder | None:
    """The order that the author's code applies, from its syntax tree; None when it applies neither, or both.

    What counts is a call, not a definition: `get_patches_batch(...)` is the old order, `_PATTERN` in one the new.
    """
    found: set[PatchOrder] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the author's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if "get_patches_batch" in (getattr(node.func, "attr", None), getattr(node.func, "id", None)):
            found.add(PatchOrder.TILE_FIRST)
        for value in (*node.args, *(k.value for k in node.keywords)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and _PATTERN.search(value.value):
                found.add(PatchOrder.CHANNEL_FIRST)
    return found.pop() if len(found) == 1 else None


def choose_patch_order(
    *,
    model: str,
    registry: PatchOrder | None = None,
    author_code: str | None = None,
    saved: PatchOrder | None = None,
    setting: PatchOrder | None = None,
) -> PatchChoice:
    """Decide from what is known, the strongest first; never guess. `saved`: by rmbgd, in config.json.

    Raises ModelError when no source states it, and when two contradict each other: one of them is wrong, and a wrong
    order does not fail, it only makes mattes worse.
    """
    stated = {
        "the registry": registry,
        "the author's birefnet.py beside the weights": read_author_code(author_code or ""),
        "config.json beside the weights": saved,
        "the setting patch_order": setting,
    }
    known = [(order, source) for source, order in stated.items() if order is not None]
    if not known:
        why = (
            "the birefnet.py beside the weights shows neither order, or both"
            if author_code is not None
            else "neither the registry nor a birefnet.py beside the weights states it"
        )
        raise ModelError(
            f"{model}: the order of the image patches is not known ({why}), and a wrong one spoils mattes silently. "
            "Put the birefnet.py that was published with these weights beside them, or set patch_order to "
            f"{PatchOrder.CHANNEL_FIRST} (author's code since 2024-11-05) or {PatchOrder.TILE_FIRST} (older code, "
            "RMBG-2.0)"
        )
    (order, source), *others = known
    for other, also in others:
        if other is not order:
            raise ModelError(
                f"{model}: {source} says the image patches are {order}, {also} says {other}: one of them is wrong. "
                "Take the wrong one away (the setting, or the file that does not belong to these weights)"
            )
    agreeing = f", and {' and '.join(also for _, also in others)} agrees" if others else ""
    return PatchChoice(order, f"{source} says so{agreeing}")


# --- The tensors of a published BiRefNet checkpoint: every name, shape and type, for both backbones.


@dataclass(frozen=True)
class Backbone:
    """Of a Swin v1 transformer (Liu et al., ICCV 2021)."""

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    name: str


BACKBONES = {
    "swin_v1_l": Backbone(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, "Swin-L"),
    "swin_v1_t": Backbone(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, "Swin-T (lite)"),
}

Named = Iterator[tuple[str, TensorInfo]]

# Heads that only training uses, and buffers that are derived or counters: a checkpoint may carry them or not.
TRAINING_HEADS = ("decoder.conv_ms_spvn_", "decoder.gdt_convs_pred_")
DERIVED = ("relative_position_index", "num_batches_tracked")


def is_optional(name: str) -> bool:
    """True for tensors whose absence changes nothing: training heads, derived indices, counters."""
    return name.startswith(TRAINING_HEADS) or name.endswith(DERIVED)


def published(backbone: str) -> dict[str, TensorInfo]:
    """Every tensor of a published float32 checkpoint."""
    spec = BACKBONES[backbone]
    tensors = dict(swin_tensors(spec))
    # Channels of the four stages after both passes of the encoder (full and half size) are concatenated.
    c1, c2, c3, c4 = (2 * spec.embed * 2**i for i in range(4))
    tensors.update(_decoder_block("squeeze_module.0", c1 + c2 + c3 + c4, c4))
    patches = {5: (3 * 32**2, c4 // 8), 4: (3 * 16**2, c4 // 8), 3: (3 * 8**2, c3 // 8), 2: (3 * 4**2, c2 // 8)}
    for n, (c_in, c_out) in {**patches, 1: (3, c1 // 8)}.items():
        tensors.update(_conv(f"decoder.ipt_blk{n}.conv1", c_in, 64, 3))
        tensors.update(_conv(f"decoder.ipt_blk{n}.conv_out", 64, c_out, 3))
    for n, c_in, c_out in ((4, c4, c3), (3, c3, c2), (2, c2, c1), (1, c1, c1 // 2)):
        # Blocks 4 to 1 see the image through ipt_blk 5 to 2.
        tensors.update(_decoder_block(f"decoder.decoder_block{n}", c_in + patches[n + 1][1], c_out))
    tensors.update(_conv("decoder.conv_out1.0", c1 // 2 + c1 // 8, 1, 1))
    for n, c in ((4, c3), (3, c2), (2, c1)):
        tensors.update(_conv(f"decoder.lateral_block{n}.conv", c, c, 1))
        tensors.update(_conv(f"decoder.conv_ms_spvn_{n}", c, 1, 1))
        tensors.update(_conv(f"decoder.gdt_convs_{n}.0", c, 16, 3))
        tensors.update(_batch_norm(f"decoder.gdt_convs_{n}.1", 16))
        tensors.update(_conv(f"decoder.gdt_convs_pred_{n}.0", 16, 1, 1))
        tensors.update(_conv(f"decoder.gdt_convs_attn_{n}.0", 16, 1, 1))
    return tensors


def require_published(names: Mapping[str, TensorInfo], where: object, backbone: str | None = None) -> str:
    """The backbone of a checkpoint that has every needed tensor in its shape, of any floating type, and no other.

    `backbone`: the one that is expected; None takes what is there. Raises ModelError.
    """
    asked = backbone or detect_backbone(names) or "swin_v1_l"
    wanted = published(asked)
    differences = {
        "missing": [n for n in wanted.keys() - names.keys() if not is_optional(n)],
        "unexpected": list(names.keys() - wanted.keys()),
        "of another shape": [
            f"{n}: {names[n]}, not {wanted[n]}"
            for n in wanted.keys() & names.keys()
            if names[n].shape != wanted[n].shape or names[n].floating != wanted[n].floating
        ],
    }
    if not any(differences.values()):
        return asked
    listed = "; ".join(f"{len(n)} {what}: {_some(n)}" for what, n in differences.items() if n)
    raise ModelError(f"{where}: these weights do not fit: {_probable_cause(names, asked)}. {listed}")


def detect_backbone(names: Mapping[str, TensorInfo]) -> str | None:
    """The backbone whose patch embedding and depth these tensors have; None when they are no Swin BiRefNet's."""
    embedding = names.get("bb.patch_embed.proj.weight")
    for key, spec in BACKBONES.items():
        last, beyond = (f"bb.layers.2.blocks.{n}.norm1.weight" in names for n in (spec.depths[2] - 1, spec.depths[2]))
        if embedding and embedding.shape[0] == spec.embed and last and not beyond:
            return key
    return None


def _probable_cause(names: Mapping[str, TensorInfo], backbone: str) -> str:
    wrapped = next((p for p in ("module.", "_orig_mod.", "model.") if any(n.startswith(p) for n in names)), None)
    found = detect_backbone(names)
    embedding = names.get("bb.patch_embed.proj.weight")
    if wrapped:
        prefix = f"the prefix {wrapped!r} of a training wrapper"
        return f"the names carry {prefix}: convert the file with {CONVERTER}, which takes it off"
    if found and found != backbone:
        has, asked = BACKBONES[found].name, BACKBONES[backbone].name
        return f"this is a checkpoint with the backbone {has}, and {asked} was asked for"
    if any(n.startswith(("stage1.", "side1.")) for n in names):
        return "these are names of U²-Net or IS-Net, another architecture"
    if any(n.startswith("bb.patch_embed1.") for n in names):
        return "the backbone is a PVT v2, which this program does not know: use a checkpoint with Swin-L or Swin-T"
    if embedding and not found:
        return f"the backbone is a Swin of {embedding.shape[0]} channels; only Swin-L (192) and Swin-T (96) are known"
    if any(n.startswith("bb.") for n in names) and not any(n.startswith("decoder.") for n in names):
        return "this is the backbone alone, without the decoder"
    if not any(n.startswith("bb.") for n in names):
        return "no name begins with 'bb.': this is another architecture, or a later export with renamed tensors"
    if any("_int8" in n or n.endswith((".scales", ".qweight")) for n in names):
        return "this is a quantised export; use the original safetensors"
    if names.keys() <= published(backbone).keys():
        return "the rest fits, so a part of the checkpoint was left out: a partial export or a broken conversion"
    return "the backbone fits but the decoder differs: a variant of BiRefNet that was trained with other options"


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def swin_tensors(spec: Backbone) -> Named:
    window_tokens, offsets = spec.window**2, (2 * spec.window - 1) ** 2
    yield from _conv("bb.patch_embed.proj", 3, spec.embed, 4)
    yield from _layer("bb.patch_embed.norm", spec.embed)
    for stage, (depth, heads) in enumerate(zip(spec.depths, spec.heads, strict=True)):
        c = spec.embed * 2**stage
        for block in range(depth):
            at = f"bb.layers.{stage}.blocks.{block}"
            yield from _layer(f"{at}.norm1", c)
            yield f"{at}.attn.relative_position_bias_table", TensorInfo((offsets, heads), "F32")
            yield f"{at}.attn.relative_position_index", TensorInfo((window_tokens, window_tokens), "I64")
            yield from _layer(f"{at}.attn.qkv", 3 * c, c)
            yield from _layer(f"{at}.attn.proj", c, c)
            yield from _layer(f"{at}.norm2", c)
            yield from _layer(f"{at}.mlp.fc1", 4 * c, c)
            yield from _layer(f"{at}.mlp.fc2", c, 4 * c)
        if stage < len(spec.depths) - 1:
            yield from _layer(f"bb.layers.{stage}.downsample.reduction", 2 * c, 4 * c, bias=False)
            yield from _layer(f"bb.layers.{stage}.downsample.norm", 4 * c)
    for stage in range(len(spec.depths)):
        yield from _layer(f"bb.norm{stage}", spec.embed * 2**stage)


def _decoder_block(at: str, c_in: int, c_out: int) -> Named:
    yield from _conv(f"{at}.conv_in", c_in, 64, 3)
    branches = (("aspp1", 1), ("aspp_deforms.0", 1), ("aspp_deforms.1", 3), ("aspp_deforms.2", 7))
    for branch, k in branches:
        deform = f"{at}.dec_att.{branch}.atrous_conv"
        yield from _conv(f"{deform}.offset_conv", 64, 2 * k * k, k)
        yield from _conv(f"{deform}.modulator_conv", 64, k * k, k)
        yield from _conv(f"{deform}.regular_conv", 64, 256, k, bias=False)
        yield from _batch_norm(f"{at}.dec_att.{branch}.bn", 256)
    yield from _conv(f"{at}.dec_att.global_avg_pool.1", 64, 256, 1, bias=False)
    yield from _batch_norm(f"{at}.dec_att.global_avg_pool.2", 256)
    yield from _conv(f"{at}.dec_att.conv1", 256 * (len(branches) + 1), 64, 1, bias=False)
    yield from _batch_norm(f"{at}.dec_att.bn1", 64)
    yield from _conv(f"{at}.conv_out", 64, c_out, 3)
    yield from _batch_norm(f"{at}.bn_in", 64)
    yield from _batch_norm(f"{at}.bn_out", c_out)


def _layer(at: str, *shape: int, bias: bool = True) -> Named:
    yield f"{at}.weight", TensorInfo(shape, "F32")
    if bias:
        yield f"{at}.bias", TensorInfo(shape[:1], "F32")


def _conv(at: str, c_in: int, c_out: int, k: int, *, bias: bool = True) -> Named:
    yield from _layer(at, c_out, c_in, k, k, bias=bias)


def _batch_norm(at: str, c: int) -> Named:
    yield from _layer(at, c)
    yield f"{at}.running_mean", TensorInfo((c,), "F32")
    yield f"{at}.running_var", TensorInfo((c,), "F32")
    yield f"{at}.num_batches_tracked", TensorInfo((), "I64")
