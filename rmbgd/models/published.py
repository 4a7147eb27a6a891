"""Which tensors a published BiRefNet checkpoint holds: every name, shape and type, for both backbones.

Does not read files and imports no torch, so that a file can be verified by its header alone. Which tensors the network
uses, and how they are folded into it, is `birefnet.py`'s matter; what a mismatch probably means is said here.

The layout is that of the author's code (https://github.com/ZhengPeng7/BiRefNet, MIT) and of RMBG-2.0, which agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rmbgd.errors import ModelError
from rmbgd.models.checkpoint import TensorInfo


@dataclass(frozen=True)
class Backbone:
    """A Swin v1 transformer as BiRefNet uses it (Liu et al., ICCV 2021)."""

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    called: str


BACKBONES = {
    "swin_v1_l": Backbone(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, "Swin-L"),
    "swin_v1_t": Backbone(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, "Swin-T (lite)"),
}

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


def difference(names: Mapping[str, TensorInfo], backbone: str) -> tuple[list[str], list[str], list[str]]:
    """(missing, unexpected, misshapen) of a checkpoint's tensors against the published ones, each sorted.

    Floating tensors may have any floating type; `misshapen` entries read "name: shape, not shape".
    """
    wanted = published(backbone)
    missing = sorted(n for n in wanted.keys() - names.keys() if not is_optional(n))
    unexpected = sorted(names.keys() - wanted.keys())
    misshapen = [
        f"{n}: {_spelt(names[n])}, not {_spelt(wanted[n])}"
        for n in sorted(wanted.keys() & names.keys())
        if names[n].shape != wanted[n].shape or names[n].floating != wanted[n].floating
    ]
    return missing, unexpected, misshapen


def require(names: Mapping[str, TensorInfo], where: object, backbone: str | None = None) -> str:
    """The backbone of a checkpoint that has every needed tensor in its shape, and no stranger.

    `backbone`: the one that is expected; None takes what is there. Raises ModelError that names `where`, lists what
    differs and says what the file probably is.
    """
    found = detect_backbone(names)
    wanted = backbone or found or "swin_v1_l"
    missing, unexpected, misshapen = difference(names, wanted)
    if not missing and not unexpected and not misshapen:
        return wanted
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    listed = "; ".join(f"{len(n)} {what}: {_some(n)}" for what, n in parts if n)
    raise ModelError(f"{where}: these weights do not fit: {probable_cause(names, wanted)}. {listed}")


def detect_backbone(names: Mapping[str, TensorInfo]) -> str | None:
    """The backbone whose patch embedding and depth these tensors have; None when they are no Swin BiRefNet's."""
    embedding = names.get("bb.patch_embed.proj.weight")
    for key, spec in BACKBONES.items():
        last = f"bb.layers.2.blocks.{spec.depths[2] - 1}.norm1.weight"
        beyond = f"bb.layers.2.blocks.{spec.depths[2]}.norm1.weight"
        if embedding and embedding.shape[0] == spec.embed and last in names and beyond not in names:
            return key
    return None


def probable_cause(names: Mapping[str, TensorInfo], backbone: str) -> str:
    """One sentence: what a checkpoint that does not fit `backbone` probably is, and what to do."""
    wrapped = next((p for p in ("module.", "_orig_mod.", "model.") if any(n.startswith(p) for n in names)), None)
    found = detect_backbone(names)
    embedding = names.get("bb.patch_embed.proj.weight")
    if wrapped:
        return (
            f"the names carry the prefix {wrapped!r} of a training wrapper: convert the file with "
            "tools/convert_checkpoint.py, which takes it off"
        )
    if found and found != backbone:
        has, asked = BACKBONES[found].called, BACKBONES[backbone].called
        return f"this is a checkpoint with the backbone {has}, and {asked} was asked for"
    if any(n.startswith(("stage1.rebnconv", "stage1.", "side1.")) for n in names):
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


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _spelt(info: TensorInfo) -> str:
    return f"{info.dtype}[{','.join(map(str, info.shape))}]"


def swin_tensors(spec: Backbone) -> Iterator[tuple[str, TensorInfo]]:
    window_tokens, offsets = spec.window**2, (2 * spec.window - 1) ** 2
    yield from _conv("bb.patch_embed.proj", 3, spec.embed, 4)
    yield from _affine("bb.patch_embed.norm", spec.embed)
    for stage, (depth, heads) in enumerate(zip(spec.depths, spec.heads, strict=True)):
        c = spec.embed * 2**stage
        for block in range(depth):
            at = f"bb.layers.{stage}.blocks.{block}"
            yield from _affine(f"{at}.norm1", c)
            yield f"{at}.attn.relative_position_bias_table", TensorInfo((offsets, heads), "F32")
            yield f"{at}.attn.relative_position_index", TensorInfo((window_tokens, window_tokens), "I64")
            yield from _linear(f"{at}.attn.qkv", c, 3 * c)
            yield from _linear(f"{at}.attn.proj", c, c)
            yield from _affine(f"{at}.norm2", c)
            yield from _linear(f"{at}.mlp.fc1", c, 4 * c)
            yield from _linear(f"{at}.mlp.fc2", 4 * c, c)
        if stage < len(spec.depths) - 1:
            yield f"bb.layers.{stage}.downsample.reduction.weight", TensorInfo((2 * c, 4 * c), "F32")
            yield from _affine(f"bb.layers.{stage}.downsample.norm", 4 * c)
    for stage in range(len(spec.depths)):
        yield from _affine(f"bb.norm{stage}", spec.embed * 2**stage)


def _decoder_block(at: str, c_in: int, c_out: int) -> Iterator[tuple[str, TensorInfo]]:
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


def _conv(at: str, c_in: int, c_out: int, k: int, *, bias: bool = True) -> Iterator[tuple[str, TensorInfo]]:
    yield f"{at}.weight", TensorInfo((c_out, c_in, k, k), "F32")
    if bias:
        yield f"{at}.bias", TensorInfo((c_out,), "F32")


def _linear(at: str, c_in: int, c_out: int) -> Iterator[tuple[str, TensorInfo]]:
    yield f"{at}.weight", TensorInfo((c_out, c_in), "F32")
    yield f"{at}.bias", TensorInfo((c_out,), "F32")


def _affine(at: str, c: int) -> Iterator[tuple[str, TensorInfo]]:
    yield f"{at}.weight", TensorInfo((c,), "F32")
    yield f"{at}.bias", TensorInfo((c,), "F32")


def _batch_norm(at: str, c: int) -> Iterator[tuple[str, TensorInfo]]:
    yield from _affine(at, c)
    yield f"{at}.running_mean", TensorInfo((c,), "F32")
    yield f"{at}.running_var", TensorInfo((c,), "F32")
    yield f"{at}.num_batches_tracked", TensorInfo((), "I64")
