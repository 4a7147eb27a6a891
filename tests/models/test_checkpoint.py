from __future__ import annotations

import json
import os

import pytest

from rmbgd.errors import ModelError
from rmbgd.models.checkpoint import (
    TensorInfo,
    choose_patch_order,
    detect_backbone,
    published,
    read_author_code,
    read_header,
    require_published,
    sha256_of,
)
from rmbgd.models.registry import PatchOrder
from tests.models.checkpoints import NEW_CODE, OLD_CODE, halved, hollow

OLD, NEW = PatchOrder.TILE_FIRST, PatchOrder.CHANNEL_FIRST
LITE = published("swin_v1_t")
BIAS = "bb.norm0.bias"
SMALL = {"a.weight": TensorInfo((3, 4), "F32"), "a.count": TensorInfo((), "I64")}


def test_a_header_tells_names_shapes_and_precision(tmp_path):
    """What was written is what the header says."""
    header = read_header(hollow(tmp_path / "x.safetensors", SMALL))

    assert header.tensors == SMALL
    assert header.precision == "F32"
    assert header.file_bytes == os.path.getsize(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kept", [1, 8, 100, 1000, 100_000, -1])
def test_a_cut_file_is_called_cut(tmp_path, kept):
    """A file that ends early is refused as truncated wherever it was cut: in the length, the header or the data."""
    path = hollow(tmp_path / "x.safetensors")
    os.truncate(path, kept if kept > 0 else path.stat().st_size + kept)

    with pytest.raises(ModelError, match=r"truncated|no safetensors file"):
        read_header(path)


def test_a_cut_file_says_how_much_is_missing(tmp_path):
    """The refusal has the promised and the present size."""
    path = hollow(tmp_path / "x.safetensors")
    whole = path.stat().st_size
    os.truncate(path, whole - 7)

    with pytest.raises(ModelError, match=f"promises {whole:,} bytes and the file has {whole - 7:,}"):
        read_header(path)


def test_bytes_after_the_last_tensor_are_damage(tmp_path):
    """A file longer than its header says is not taken for whole."""
    path = hollow(tmp_path / "x.safetensors", SMALL)
    os.truncate(path, path.stat().st_size + 4)

    with pytest.raises(ModelError, match="4 bytes follow"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 884878856\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
        (b"PK\x03\x04" + b"\0" * 60, "pickled PyTorch checkpoint"),
        (b"\x80\x02}q\x00." + b"\0" * 60, "pickled PyTorch checkpoint"),
        (b"GGUF\x03\0\0\0" + b"\0" * 60, "GGUF"),
        (b"\x10" + b"\0" * 7 + b"not json at all!" + b"\0" * 60, "no safetensors file"),
        (b"\x10" + b"\0" * 7 + b'{"a": [1, 2, 3]}', "truncated or damaged inside its header"),
        (b"\xff" * 64, "no safetensors file"),
    ],
    ids=["empty", "lfs", "html", "zip", "pickle", "gguf", "no json", "no tensors", "noise"],
)
def test_what_it_is_instead_is_said(tmp_path, content, said):
    """Files that people put in place of weights are recognised by their first bytes."""
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(ModelError, match=said):
        read_header(tmp_path / "model.safetensors")


def test_a_lying_header_is_damage(tmp_path):
    """A tensor whose bytes do not match its shape is refused by name."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)

    with pytest.raises(ModelError, match="tensor a has 8 bytes"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_said_without_waiting(tmp_path, kind):
    """A missing file, a folder and a pipe are refused at once; a pipe is not opened, which would wait for ever."""
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)

    with pytest.raises(ModelError, match=r"no such file|not a regular file"):
        read_header(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PTH"])
def test_pickles_are_refused_with_the_way_out(tmp_path, suffix):
    """A pickle is refused by its name before it is opened, with the command that converts it."""
    with pytest.raises(ModelError, match=r"tools/convert_checkpoint\.py"):
        read_header(tmp_path / f"weights{suffix}")


def test_the_digest_is_the_files(tmp_path):
    """sha256 over a file of several chunks equals the known one, and progress sums to its size."""
    (tmp_path / "x").write_bytes(b"\0" * 3_000_000)
    done: list[int] = []

    # head -c 3000000 /dev/zero | sha256sum
    expected = "35bce4eae54ec8e6cc2868baa8d157914d6ae2858811b4cc0c078c94460fa26f"
    assert sha256_of(tmp_path / "x", done.append) == expected
    assert sum(done) == 3_000_000


@pytest.mark.parametrize("backbone", ["swin_v1_l", "swin_v1_t"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_published_checkpoints_fit(backbone, half):
    """Every published checkpoint passes in both precisions, and its backbone is read from its tensors."""
    tensors = halved(published(backbone)) if half else published(backbone)

    assert require_published(tensors, "x") == detect_backbone(tensors) == backbone


@pytest.mark.parametrize(
    "left_out",
    ["relative_position_index", "num_batches_tracked", "decoder.conv_ms_spvn_", "decoder.gdt_convs_pred_"],
)
def test_what_is_derived_or_for_training_may_be_absent(left_out):
    """A checkpoint without derived buffers or training heads fits."""
    tensors = {n: t for n, t in LITE.items() if left_out not in n}

    assert require_published(tensors, "x") == "swin_v1_t"


@pytest.mark.parametrize(
    ("tensors", "asked", "said"),
    [
        (LITE, "swin_v1_l", r"backbone Swin-T \(lite\), and Swin-L was asked for"),
        (published("swin_v1_l"), "swin_v1_t", r"backbone Swin-L, and Swin-T \(lite\) was asked for"),
        (
            {n: t for n, t in LITE.items() if n != "bb.norm3.weight"},
            None,
            r"partial export.*1 missing: bb\.norm3\.weight",
        ),
        (LITE | {"refiner.a": TensorInfo((1,), "F32")}, None, r"other options.*1 unexpected: refiner\.a"),
        (LITE | {BIAS: TensorInfo((7,), "F32")}, None, r"bb\.norm0\.bias: F32\[7\], not F32\[96\]"),
        (LITE | {BIAS: TensorInfo((96,), "I8")}, None, r"bb\.norm0\.bias: I8\[96\], not F32\[96\]"),
        ({"module." + n: t for n, t in LITE.items()}, None, "prefix 'module.'"),
        ({n: t for n, t in LITE.items() if n.startswith("bb.")}, None, "the backbone alone"),
        ({"stage1.rebnconvin.conv_s1.weight": TensorInfo((1,), "F32")}, None, "U²-Net or IS-Net"),
        ({"bb.patch_embed1.proj.weight": TensorInfo((64, 3, 7, 7), "F32")}, None, "PVT v2"),
        ({"bb.patch_embed.proj.weight": TensorInfo((128, 3, 4, 4), "F32")}, None, "Swin of 128 channels"),
        ({"encoder.weight": TensorInfo((1,), "F32")}, None, "another architecture"),
        ({}, None, "another architecture"),
    ],
    ids=[
        "lite",
        "large",
        "missing",
        "unexpected",
        "shape",
        "type",
        "wrapped",
        "backbone",
        "u2net",
        "pvt",
        "base",
        "other",
        "nothing",
    ],
)
def test_a_misfit_is_explained_in_one_line(tensors, asked, said):
    """Weights that do not fit are refused with their names and what they probably are, however many differ."""
    with pytest.raises(ModelError, match=said) as refusal:
        require_published(tensors, "x", asked)

    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1500


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        (OLD, OLD_CODE),
        (NEW, NEW_CODE),
        (NEW, NEW_CODE.replace("'b c (hg h) (wg w) -> b (c hg wg) h w'", "('b c (hg h) (wg w)->b (c  hg wg) h w')")),
        (NEW, OLD_CODE.replace("self.get_patches_batch(x, x4) if self.split else x", "x") + NEW_CODE),
        (None, "class Decoder: pass"),
        (None, OLD_CODE + NEW_CODE),
        (None, "# self.get_patches_batch(x, x4)\n# 'b c (hg h) (wg w) -> b (c hg wg) h w'"),
        (None, "text = 'b c (hg h) (wg w) -> b (c hg wg) h w'"),
        (None, "rearrange(x, 'b c (hg h) (wg w) -> b (wg hg c) h w')"),
        (None, "this is not python ("),
        (None, "(" * 5000),
        (None, "\0"),
        (None, ""),
    ],
    ids=[
        "old",
        "new",
        "spacing",
        "defined-not-called",
        "neither",
        "both",
        "comments",
        "unused",
        "other",
        "syntax",
        "deep",
        "null",
        "empty",
    ],
)
def test_the_authors_code_is_read_by_its_calls(expected, code):
    """What the code calls decides; definitions, comments and unused texts do not, and nothing raises."""
    assert read_author_code(code) == expected


def test_reading_never_runs(tmp_path):
    """Code that would make a file when it ran is only read."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n{NEW_CODE}"

    assert read_author_code(code) is NEW
    assert not mark.exists()


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
    choice = choose_patch_order(model="m", **known)

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
    """Two sources that contradict each other are an error that names both orders: a wrong one would not fail."""
    with pytest.raises(ModelError, match="one of them is wrong") as refusal:
        choose_patch_order(model="m", **known)

    assert OLD in str(refusal.value)
    assert NEW in str(refusal.value)


@pytest.mark.parametrize("code", [None, "class Decoder: pass", OLD_CODE + NEW_CODE])
def test_nothing_is_guessed(code):
    """When no source states it, the refusal names the file and the setting that would."""
    with pytest.raises(ModelError, match=r"birefnet\.py.*patch_order"):
        choose_patch_order(model="m", author_code=code)
