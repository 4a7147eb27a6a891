from __future__ import annotations

import os

import pytest

from rmbgd.errors import ModelError
from rmbgd.models import checkpoint
from rmbgd.models.checkpoint import TensorInfo, published, read_header, require_published
from rmbgd.models.registry import PatchOrder
from tests.models.checkpoints import NEW_CODE, OLD_CODE, halved, hollow, written

OLD, NEW = PatchOrder.TILE_FIRST, PatchOrder.CHANNEL_FIRST
LITE = published("swin_v1_t")
OPTIONAL = ("relative_position_index", "num_batches_tracked", "decoder.conv_ms_spvn_", "decoder.gdt_convs_pred_")
BIAS = "bb.norm0.bias"
PATTERN = "'b c (hg h) (wg w) -> b (c hg wg) h w'"
SMALL = {"a.weight": TensorInfo((3, 4), "F32"), "a.count": TensorInfo((), "I64")}


def test_a_header_tells_names_shapes_and_precision(tmp_path):
    header = read_header(hollow(tmp_path / "x.safetensors", SMALL))
    assert header.tensors == SMALL
    assert (header.precision, header.file_bytes) == ("F32", os.path.getsize(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kept", [1, 8, 100, 1000, 100_000, -1])
def test_a_cut_file_is_called_cut(tmp_path, kept):
    path = hollow(tmp_path / "x.safetensors")
    os.truncate(path, kept if kept > 0 else path.stat().st_size + kept)
    with pytest.raises(ModelError, match=r"truncated|no safetensors file"):
        read_header(path)


@pytest.mark.parametrize(("more", "said"), [(-7, "promises 224 bytes and the file has 217"), (4, "4 bytes follow")])
def test_the_file_is_as_long_as_its_header_says(tmp_path, more, said):
    path = hollow(tmp_path / "x.safetensors", SMALL)
    os.truncate(path, path.stat().st_size + more)
    with pytest.raises(ModelError, match=said):
        read_header(path)


MISTAKEN = {
    "empty": (b"", "empty file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 884878856\n", "Git LFS pointer"),
    "html": (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "pickled PyTorch checkpoint"),
    "pickle": (b"\x80\x02}q\x00." + b"\0" * 60, "pickled PyTorch checkpoint"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 60, "GGUF"),
    "no json": (b"\x10" + b"\0" * 7 + b"not json at all!" + b"\0" * 60, "no safetensors file"),
    "no tensors": (b"\x10" + b"\0" * 7 + b'{"a": [1, 2, 3]}', "truncated or damaged inside its header"),
    "noise": (b"\xff" * 64, "no safetensors file"),
}


@pytest.mark.parametrize(("content", "said"), MISTAKEN.values(), ids=MISTAKEN)
def test_what_people_put_in_place_of_weights_is_said(tmp_path, content, said):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_header(tmp_path / "model.safetensors")


def test_a_lying_header_is_damage(tmp_path):
    written(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, 8)
    with pytest.raises(ModelError, match="tensor a has 8 bytes"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_said_without_waiting(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ModelError, match=r"no such file|not a regular file"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PTH"])
def test_pickles_are_refused_with_the_way_out(tmp_path, suffix):
    with pytest.raises(ModelError, match=r"tools/convert_checkpoint\.py"):
        read_header(tmp_path / f"weights{suffix}")


def test_the_digest_is_the_files(tmp_path):
    (tmp_path / "x").write_bytes(b"\0" * 3_000_000)
    done: list[int] = []
    # head -c 3000000 /dev/zero | sha256sum
    expected = "35bce4eae54ec8e6cc2868baa8d157914d6ae2858811b4cc0c078c94460fa26f"
    assert checkpoint.sha256_of(tmp_path / "x", done.append) == expected
    assert sum(done) == 3_000_000


@pytest.mark.parametrize("backbone", ["swin_v1_l", "swin_v1_t"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_published_checkpoints_fit(backbone, half):
    tensors = halved(published(backbone)) if half else published(backbone)
    assert require_published(tensors, "x") == checkpoint.detect_backbone(tensors) == backbone


@pytest.mark.parametrize("left_out", OPTIONAL)
def test_what_is_derived_or_for_training_may_be_absent(left_out):
    assert require_published({n: t for n, t in LITE.items() if left_out not in n}, "x") == "swin_v1_t"


def one(name: str, *shape: int, dtype: str = "F32") -> dict[str, TensorInfo]:
    return {name: TensorInfo(shape, dtype)}


# tensors, the backbone that is asked for, what is said
MISFITS = {
    "lite": (LITE, "swin_v1_l", r"backbone Swin-T \(lite\), and Swin-L was asked for"),
    "large": (published("swin_v1_l"), "swin_v1_t", r"backbone Swin-L, and Swin-T \(lite\) was asked for"),
    "missing": ({n: LITE[n] for n in LITE if n != BIAS}, None, r"partial export.*1 missing: bb\.norm0\.bias"),
    "unexpected": (LITE | one("refiner.a", 1), None, r"other options.*1 unexpected: refiner\.a"),
    "shape": (LITE | one(BIAS, 7), None, r"bb\.norm0\.bias: F32\[7\], not F32\[96\]"),
    "type": (LITE | one(BIAS, 96, dtype="I8"), None, r"bb\.norm0\.bias: I8\[96\], not F32\[96\]"),
    "wrapped": ({"module." + n: t for n, t in LITE.items()}, None, "prefix 'module.'"),
    "backbone": ({n: t for n, t in LITE.items() if n.startswith("bb.")}, None, "the backbone alone"),
    "u2net": (one("stage1.rebnconvin.conv_s1.weight", 1), None, "U²-Net or IS-Net"),
    "pvt": (one("bb.patch_embed1.proj.weight", 64, 3, 7, 7), None, "PVT v2"),
    "quantised": (LITE | one("decoder.a_int8", 1, dtype="I8"), None, "a quantised export"),
    "base": (one("bb.patch_embed.proj.weight", 128, 3, 4, 4), None, "Swin of 128 channels"),
    "other": (one("encoder.weight", 1), None, "another architecture"),
    "nothing": ({}, None, "another architecture"),
}


@pytest.mark.parametrize(("tensors", "asked", "said"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_is_explained_in_one_line(tensors, asked, said):
    with pytest.raises(ModelError, match=said) as refusal:
        require_published(tensors, "x", asked)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1500


# The order that code applies, and the code.
CODES = {
    "old": (OLD, OLD_CODE),
    "new": (NEW, NEW_CODE),
    "spacing": (NEW, NEW_CODE.replace(PATTERN, "('b c (hg h) (wg w)->b (c  hg wg) h w')")),
    "defined-not-called": (NEW, OLD_CODE.replace("self.get_patches_batch(x, x4) if self.split else x", "x") + NEW_CODE),
    "neither": (None, "class Decoder: pass"),
    "both": (None, OLD_CODE + NEW_CODE),
    "comments": (None, f"# self.get_patches_batch(x, x4)\n# {PATTERN}"),
    "unused": (None, f"text = {PATTERN}"),
    "other": (None, "rearrange(x, 'b c (hg h) (wg w) -> b (wg hg c) h w')"),
    "syntax": (None, "this is not python ("),
    "deep": (None, "(" * 5000),
    "null": (None, "\0"),
    "empty": (None, ""),
}


@pytest.mark.parametrize(("expected", "code"), CODES.values(), ids=CODES)
def test_the_authors_code_is_read_by_its_calls(expected, code):
    assert checkpoint.read_author_code(code) == expected


@pytest.mark.parametrize(
    ("expected", "reason", "known"),
    [
        (OLD, "the registry", {"registry": OLD}),
        (NEW, "the author's birefnet.py", {"author_code": NEW_CODE}),
        (OLD, "config.json", {"saved": OLD}),
        (NEW, "the setting", {"setting": NEW}),
        (OLD, "the registry", {"registry": OLD, "author_code": OLD_CODE, "saved": OLD, "setting": OLD}),
        (NEW, "the setting", {"author_code": "class Decoder: pass", "setting": NEW}),
    ],
)
def test_the_strongest_source_decides_and_is_named(expected, reason, known):
    """Registry, then the author's code, then what was saved, then the setting; the reason says which."""
    choice = checkpoint.choose_patch_order(model="m", **known)
    assert choice.order is expected
    assert choice.reason.startswith(reason)


@pytest.mark.parametrize(
    "known",
    [
        {"registry": OLD, "author_code": NEW_CODE},
        {"registry": OLD, "setting": NEW},
        {"author_code": OLD_CODE, "setting": NEW},
        {"author_code": OLD_CODE, "saved": NEW},
    ],
)
def test_contradictions_are_refused(known):
    with pytest.raises(ModelError, match="one of them is wrong") as refusal:
        checkpoint.choose_patch_order(model="m", **known)
    assert OLD in str(refusal.value)
    assert NEW in str(refusal.value)


@pytest.mark.parametrize("code", [None, "class Decoder: pass", OLD_CODE + NEW_CODE])
def test_nothing_is_guessed(code):
    with pytest.raises(ModelError, match=r"birefnet\.py.*patch_order"):
        checkpoint.choose_patch_order(model="m", author_code=code)
