from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rmbgd.errors import ModelError
from rmbgd.models import licences
from rmbgd.models.birefnet import stays_float32
from rmbgd.models.checkpoint import BACKBONES, published, sha256_of
from rmbgd.models.convert import assemble
from rmbgd.models.load import load_model
from rmbgd.models.registry import REGISTRY, PatchOrder
from rmbgd.models.store import AUTHOR_CODE, CONFIG, ORIGIN, WEIGHTS
from tests.models.checkpoints import NEW_CODE, OLD_CODE, hollow
from tests.models.stress import CPU, golden, load, logits, recipe

pytestmark = pytest.mark.slow  # whole networks

NEW = {"patch_order": "channel_first", **CPU}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole Swin-T checkpoint with the recipe's values, as its author publishes it: weights, code, no patch order."""
    made = tmp_path_factory.mktemp("published")
    save_file(recipe().checkpoint("swin_v1_t"), made / WEIGHTS, metadata={"format": "pt"})
    (made / AUTHOR_CODE).write_text(NEW_CODE)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def reference(folder):
    """The same folder loaded once, in float32."""
    return load_model(folder, **CPU)


@pytest.fixture
def beside(folder, tmp_path):
    """A folder of its own with the same weights (one more name of the file) and nothing else."""
    (tmp_path / "mine").mkdir()
    os.link(folder / WEIGHTS, tmp_path / "mine" / WEIGHTS)
    return tmp_path / "mine"


@pytest.fixture
def x():
    return torch.from_numpy(recipe().image("loading", 1, 64, 96))


def test_a_folder_computes_the_reference(reference):
    """Loaded from a folder the network gives the reference's logits, within 1e-3."""
    image, expected = golden("swin_v1_t-2x256x384")

    assert (logits(reference.module, image) - expected).abs().max() < 1e-3


def test_the_old_patch_order_computes_its_reference(tmp_path):
    """Swin-L weights beside the author's older code give the reference's logits of the old order, within 1e-3."""
    save_file(recipe().checkpoint("swin_v1_l"), tmp_path / WEIGHTS, metadata={"format": "pt"})
    (tmp_path / AUTHOR_CODE).write_text(OLD_CODE)
    image, expected = golden("rmbg2-512x512")
    loaded = load_model(tmp_path, **CPU)

    assert loaded.provenance.patch_order == PatchOrder.TILE_FIRST
    os.unlink(tmp_path / WEIGHTS)  # it is mapped; the disk has it back when the test ends
    assert (logits(loaded.module, image) - expected).abs().max() < 1e-3


def test_the_registrys_name_finds_fetched_weights(reference, folder, tmp_path, x):
    """A name loads from the models directory and computes the same as the folder itself."""
    os.symlink(folder, tmp_path / "birefnet-lite")
    loaded = load_model("birefnet-lite", models=tmp_path, **CPU)

    assert torch.equal(logits(loaded.module, x), logits(reference.module, x))
    assert (loaded.provenance.model, loaded.provenance.licence) == ("birefnet-lite", "MIT")


def test_a_bare_file_needs_its_patch_order(reference, beside, x):
    """A bare file loads once the operator states the patch order, which matters; unstated, it is refused."""
    with pytest.raises(ModelError, match="order of the image patches is not known"):
        load(beside, **CPU)
    right, wrong = (logits(load(beside / WEIGHTS, patch_order=order, **CPU), x) for order in PatchOrder)

    assert torch.equal(right, logits(reference.module, x))
    assert not torch.allclose(right, wrong, atol=1e-3)


def test_an_order_that_does_not_exist_is_refused(beside):
    """A setting with a typing error is named with the values there are."""
    with pytest.raises(ModelError, match=r"'chanel_first' is neither auto nor one of channel_first, tile_first"):
        load(beside, patch_order="chanel_first", **CPU)


def test_the_authors_code_is_never_run(beside, tmp_path):
    """Code beside the weights that would make a file when run, imported or unpickled leaves no file."""
    mark = tmp_path / "ran"
    harm = f"open({str(mark)!r}, 'w').close()\n"
    (beside / AUTHOR_CODE).write_text(harm + NEW_CODE)
    (beside / "BiRefNet_config.py").write_text(harm)
    (beside / CONFIG).write_text(json.dumps({"auto_map": {"AutoConfig": "BiRefNet_config.BiRefNetConfig"}}))
    load(beside, **CPU)

    assert not mark.exists()


def test_provenance_says_what_was_loaded_and_why(reference, folder):
    """Path, digest, backbone, order with its reason, precision and parameters are those of the file; all fit JSON. In
    float32 on the CPU every weight matrix of the backbone is the mapped file itself, not a copy."""
    provenance, tensors = reference.provenance, published("swin_v1_t")

    assert provenance.path == str(folder / WEIGHTS)
    assert provenance.sha256 == sha256_of(folder / WEIGHTS)
    assert provenance.sha256_agrees_with == ()
    assert (provenance.backbone, provenance.stored_precision, provenance.precision) == ("swin_v1_t", "F32", "float32")
    assert provenance.patch_order == PatchOrder.CHANNEL_FIRST
    assert provenance.patch_order_because == "the author's birefnet.py beside the weights says so"
    assert provenance.parameters == sum(t.elements for t in tensors.values() if t.floating)
    assert json.loads(json.dumps(provenance.facts()))["input_size"] == [1024, 1024]
    matrices = sum(4 * t.elements for n, t in tensors.items() if n.startswith("bb.layers"))
    assert provenance.mapped_bytes > 0.99 * matrices
    assert provenance.mapped_bytes + provenance.private_bytes < 1.02 * os.path.getsize(folder / WEIGHTS)


def test_a_replaced_file_does_not_disturb(beside, x):
    """Weights that are replaced by a rename while they are mapped go on computing what they did."""
    os.unlink(beside / WEIGHTS)
    hollow(beside / WEIGHTS)
    module = load(beside, **NEW)
    before = logits(module, x)
    save_file(recipe().checkpoint("swin_v1_t"), beside / "new")
    os.replace(beside / "new", beside / WEIGHTS)

    assert torch.equal(logits(module, x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_folded_values(reference, folder, dtype):
    """In half precision each tensor has that type, but those that stay in float32, and is the exact one rounded."""
    exact, half = reference.module.state_dict(), load(folder, device="cpu", dtype=dtype).state_dict()

    assert sum(t.nbytes for t in half.values()) < 0.52 * sum(t.nbytes for t in exact.values())
    for name, tensor in exact.items():
        assert half[name].dtype == (torch.float32 if stays_float32(name) else dtype)
        assert torch.equal(half[name], tensor.to(half[name].dtype))


def test_published_halves_load_as_floats(folder, tmp_path, x):
    """A float16 checkpoint in float32 computes what its rounded values compute."""
    values = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in load_file(folder / WEIGHTS).items()}
    save_file(values, tmp_path / WEIGHTS)
    loaded = load_model(tmp_path, **NEW)
    wide = {n: torch.from_numpy(a.astype(np.float32)) for n, a in values.items()}
    expected = assemble(BACKBONES["swin_v1_t"], PatchOrder.CHANNEL_FIRST, wide.__getitem__, **CPU)

    assert loaded.provenance.stored_precision == "F16"
    assert torch.allclose(logits(loaded.module, x), logits(expected, x), atol=1e-4)


def test_training_heads_and_counters_are_dropped(reference, folder, beside, x):
    """A checkpoint without anything optional computes the same, bit for bit."""
    needed = {n: a for n, a in load_file(folder / WEIGHTS).items() if "spvn" not in n and "_pred_" not in n}
    needed = {n: a for n, a in needed.items() if not n.endswith(("num_batches_tracked", "relative_position_index"))}
    os.unlink(beside / WEIGHTS)
    save_file(needed, beside / WEIGHTS)
    bare = load(beside, **NEW)

    assert torch.equal(logits(bare, x), logits(reference.module, x))


def test_a_stated_digest_is_held_to_the_file(folder):
    """The right digest passes and is named in the provenance; a wrong one is refused with both when that is read,
    though the module is there before."""
    right = sha256_of(folder / WEIGHTS)
    assert load_model(folder, sha256=right.upper(), **CPU).provenance.sha256_agrees_with == ("the setting",)

    loaded = load_model(folder, sha256="0" * 64, **CPU)
    assert (loaded.input_size, isinstance(loaded.module, torch.nn.Module)) == ((1024, 1024), True)
    with pytest.raises(ModelError, match=f"sha256 is {right}, but the setting states 0000"):
        _ = loaded.provenance


def test_fetched_weights_are_held_to_their_record(beside):
    """Weights that are no longer those of their fetch are refused, with the command that brings them again."""
    (beside / ORIGIN).write_text(json.dumps({"model": "birefnet-lite", "sha256": "0" * 64}))
    with pytest.raises(ModelError, match=r"origin\.json states 0000.*rmbgd models fetch --again birefnet-lite"):
        load(beside, **NEW)


def test_a_registry_name_demands_its_backbone(folder, tmp_path):
    """Swin-T weights placed under the name of a Swin-L model are refused."""
    os.symlink(folder, tmp_path / "birefnet")
    with pytest.raises(ModelError, match="Swin-L was asked for"):
        load("birefnet", models=tmp_path, **CPU)


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin"])
def test_pickles_are_refused(tmp_path, name):
    """A pickle is refused, as a file and as all that a folder has, with the command that converts it."""
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(ModelError, match=r"tools/convert_checkpoint\.py"):
            load(source, **CPU)


def test_a_torn_file_is_refused_before_it_is_mapped(beside, tmp_path):
    """A file that ends early is refused as truncated: mapped, it would kill the process at the first touch."""
    shutil.copyfile(beside / WEIGHTS, tmp_path / WEIGHTS)
    os.truncate(tmp_path / WEIGHTS, 100_000_000)
    with pytest.raises(ModelError, match="truncated"):
        load(tmp_path, **NEW)


@pytest.fixture
def restricted(tmp_path):
    """A models directory with (hollow) RMBG-2.0 weights in it."""
    hollow(tmp_path / "models" / "rmbg-2.0" / WEIGHTS, "swin_v1_l")
    return tmp_path / "models"


@pytest.mark.parametrize("by", ["name", "folder", "file"])
def test_non_commercial_weights_need_acceptance(restricted, by):
    """RMBG-2.0 does not load by name, folder or file before its licence is accepted, and says what to use instead."""
    sources = {"name": "rmbg-2.0", "folder": restricted / "rmbg-2.0", "file": restricted / "rmbg-2.0" / WEIGHTS}
    with pytest.raises(ModelError, match=r"rmbgd models accept rmbg-2\.0.*birefnet"):
        load(sources[by], models=restricted, **CPU)


def test_accepted_weights_load_in_their_order(restricted):
    """After acceptance RMBG-2.0 loads in the registry's patch order, and the provenance says who accepted."""
    licences.accept(REGISTRY["rmbg-2.0"], restricted, who="alice (uid 1000)", now=datetime(2026, 3, 1, tzinfo=UTC))
    provenance = load_model("rmbg-2.0", models=restricted, **CPU).provenance

    assert provenance.accepted_by == "alice (uid 1000)"
    assert (provenance.patch_order, provenance.backbone) == (PatchOrder.TILE_FIRST, "swin_v1_l")


def test_the_embedded_model_loads_by_name():
    """u2netp gives logits at its input size, and its digest agrees with the registry's."""
    loaded = load_model("u2netp", **CPU)
    height, width = loaded.provenance.input_size
    answer = logits(loaded.module, torch.zeros(1, 3, height, width))

    assert answer.shape == (1, 1, height, width)
    assert loaded.provenance.sha256_agrees_with == ("the registry",)


def test_a_file_replaced_during_the_load_is_noticed(beside, folder):
    """The digest is that of the file that was mapped: when another one took its name meanwhile, loading is refused."""
    loaded = load_model(beside, **NEW)
    shutil.copyfile(folder / WEIGHTS, beside / "new")
    os.replace(beside / "new", beside / WEIGHTS)

    with pytest.raises(ModelError, match="was replaced"):
        _ = loaded.provenance


def test_overlapping_tensors_are_damage(beside, tmp_path):
    """A header whose tensors overlap is refused in one line, though names, shapes and length are right."""
    with (beside / WEIGHTS).open("rb") as file:
        records = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    records["bb.norm0.bias"]["data_offsets"] = records["bb.norm0.weight"]["data_offsets"]
    text = json.dumps(records).encode()
    data = max(r["data_offsets"][1] for n, r in records.items() if n != "__metadata__")
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data)

    with pytest.raises(ModelError, match="damaged"):
        load(tmp_path, **NEW)
