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
from tests.models.checkpoints import NEW_CODE, hollow, written
from tests.models.stress import CPU, golden, load, logits, recipe

pytestmark = pytest.mark.slow  # whole networks

NEW = {"patch_order": "channel_first", **CPU}


@pytest.fixture(scope="module")
def reference(folder):
    return load_model(folder, **CPU)


@pytest.fixture
def x():
    return torch.from_numpy(recipe().image("loading", 1, 64, 96))


def test_a_folder_computes_the_reference(reference):
    """Two images that are not square, together and each alone; the caller's image is not worked on in place."""
    image, expected = golden("swin_v1_t-2x256x384")
    before = image.clone()
    torch.testing.assert_close(logits(reference.module, image), expected, rtol=0, atol=1e-3)
    for i in range(2):
        torch.testing.assert_close(logits(reference.module, image[i : i + 1]), expected[i : i + 1], rtol=0, atol=1e-3)
    assert torch.equal(image, before)


def test_the_registrys_name_finds_fetched_weights(reference, folder, tmp_path, x):
    os.symlink(folder, tmp_path / "birefnet-lite")
    loaded = load_model("birefnet-lite", models=tmp_path, **CPU)
    assert torch.equal(logits(loaded.module, x), logits(reference.module, x))
    assert (loaded.provenance.model, loaded.provenance.licence) == ("birefnet-lite", "MIT")


def test_a_bare_file_needs_its_patch_order(reference, beside, x):
    with pytest.raises(ModelError, match="order of the image patches is not known"):
        load(beside, **CPU)
    with pytest.raises(ModelError, match=r"'chanel_first' is neither auto nor one of channel_first, tile_first"):
        load(beside, patch_order="chanel_first", **CPU)
    right, wrong = (logits(load(beside / WEIGHTS, patch_order=order, **CPU), x) for order in PatchOrder)
    assert torch.equal(right, logits(reference.module, x))
    assert not torch.allclose(right, wrong, atol=1e-3)


def test_the_authors_code_is_never_run(beside, tmp_path):
    mark = tmp_path / "ran"
    harm = f"open({str(mark)!r}, 'w').close()\n"
    (beside / AUTHOR_CODE).write_text(harm + NEW_CODE)
    (beside / "BiRefNet_config.py").write_text(harm)
    (beside / CONFIG).write_text(json.dumps({"auto_map": {"AutoConfig": "BiRefNet_config.BiRefNetConfig"}}))
    load(beside, **CPU)
    assert not mark.exists()


def test_provenance_says_what_was_loaded_and_why(reference, folder):
    """In float32 on the CPU every weight matrix of the backbone is the mapped file itself, not a copy."""
    provenance, tensors = reference.provenance, published("swin_v1_t")
    assert provenance.path == str(folder / WEIGHTS)
    assert provenance.sha256 == sha256_of(folder / WEIGHTS)
    assert (provenance.sha256_agrees_with, provenance.verified) == ((), False)
    assert (provenance.backbone, provenance.stored_precision, provenance.precision) == ("swin_v1_t", "F32", "float32")
    assert provenance.patch_order == PatchOrder.CHANNEL_FIRST
    assert provenance.patch_order_because == "the author's birefnet.py beside the weights says so"
    assert provenance.parameters == sum(t.elements for t in tensors.values() if t.floating)
    assert json.loads(json.dumps(provenance.facts()))["input_size"] == [1024, 1024]
    matrices = sum(4 * t.elements for n, t in tensors.items() if n.startswith("bb.layers"))
    assert provenance.mapped_bytes > 0.99 * matrices
    assert provenance.mapped_bytes + provenance.private_bytes < 1.02 * os.path.getsize(folder / WEIGHTS)


def test_a_replaced_file_does_not_disturb(beside, x):
    os.unlink(beside / WEIGHTS)
    hollow(beside / WEIGHTS)
    module = load(beside, **NEW)
    before = logits(module, x)
    save_file(recipe().checkpoint("swin_v1_t"), beside / "new")
    os.replace(beside / "new", beside / WEIGHTS)
    assert torch.equal(logits(module, x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_folded_values(reference, folder, dtype):
    module = load(folder, device="cpu", dtype=dtype)
    exact, half = reference.module.state_dict(), module.state_dict()
    assert sum(t.nbytes for t in half.values()) < 0.52 * sum(t.nbytes for t in exact.values())
    for name, tensor in exact.items():
        assert half[name].dtype == (torch.float32 if stays_float32(name) else dtype)
        assert torch.equal(half[name], tensor.to(half[name].dtype))
    if dtype is torch.bfloat16:
        image, expected = golden("swin_v1_t-2x256x384")
        alpha = logits(module, image.to(dtype)).float().sigmoid()
        assert (alpha - expected.sigmoid()).abs().mean() <= 1.5 / 255


def test_published_halves_load_as_floats(folder, tmp_path, x):
    values = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in load_file(folder / WEIGHTS).items()}
    save_file(values, tmp_path / WEIGHTS)
    loaded = load_model(tmp_path, **NEW)
    wide = {n: torch.from_numpy(a.astype(np.float32)) for n, a in values.items()}
    expected = assemble(BACKBONES["swin_v1_t"], PatchOrder.CHANNEL_FIRST, wide.__getitem__, **CPU)
    assert loaded.provenance.stored_precision == "F16"
    assert torch.allclose(logits(loaded.module, x), logits(expected, x), atol=1e-4)


def test_training_heads_and_counters_are_dropped(reference, folder, beside, x):
    needed = {n: a for n, a in load_file(folder / WEIGHTS).items() if "spvn" not in n and "_pred_" not in n}
    needed = {n: a for n, a in needed.items() if not n.endswith(("num_batches_tracked", "relative_position_index"))}
    os.unlink(beside / WEIGHTS)
    save_file(needed, beside / WEIGHTS)
    bare = load(beside, **NEW)
    assert torch.equal(logits(bare, x), logits(reference.module, x))


def test_a_stated_digest_is_held_to_the_file(folder):
    """A wrong one is refused when the provenance is read, though the module is there before."""
    right = sha256_of(folder / WEIGHTS)
    assert load_model(folder, sha256=right.upper(), **CPU).provenance.sha256_agrees_with == ("the setting",)
    loaded = load_model(folder, sha256="0" * 64, **CPU)
    assert (loaded.input_size, isinstance(loaded.module, torch.nn.Module)) == ((1024, 1024), True)
    with pytest.raises(ModelError, match=f"sha256 is {right}, but the setting states 0000"):
        _ = loaded.provenance


def test_fetched_weights_are_held_to_their_record(beside):
    (beside / ORIGIN).write_text(json.dumps({"model": "birefnet-lite", "sha256": "0" * 64}))
    with pytest.raises(ModelError, match=r"origin\.json states 0000.*rmbgd models fetch --again birefnet-lite"):
        load(beside, **NEW)


def test_a_registry_name_demands_its_backbone(folder, tmp_path):
    os.symlink(folder, tmp_path / "birefnet")
    with pytest.raises(ModelError, match="Swin-L was asked for"):
        load("birefnet", models=tmp_path, **CPU)


def test_a_torn_file_is_refused_before_it_is_mapped(tmp_path):
    """Mapped, it would kill the process at the first touch."""
    os.truncate(hollow(tmp_path / WEIGHTS), 100_000_000)
    with pytest.raises(ModelError, match="truncated"):
        load(tmp_path, **NEW)


@pytest.fixture
def restricted(tmp_path):
    return hollow(tmp_path / "models" / "rmbg-2.0" / WEIGHTS, "swin_v1_l").parents[1]


@pytest.mark.parametrize("by", ["name", "folder", "file"])
def test_non_commercial_weights_need_acceptance(restricted, by):
    sources = {"name": "rmbg-2.0", "folder": restricted / "rmbg-2.0", "file": restricted / "rmbg-2.0" / WEIGHTS}
    with pytest.raises(ModelError, match=r"rmbgd models accept rmbg-2\.0.*birefnet"):
        load(sources[by], models=restricted, **CPU)


def test_accepted_weights_load_in_their_order(restricted):
    licences.accept(REGISTRY["rmbg-2.0"], restricted, who="alice (uid 1000)", now=datetime(2026, 3, 1, tzinfo=UTC))
    provenance = load_model("rmbg-2.0", models=restricted, **CPU).provenance
    assert provenance.accepted_by == "alice (uid 1000)"
    assert (provenance.patch_order, provenance.backbone) == (PatchOrder.TILE_FIRST, "swin_v1_l")


def test_the_embedded_model_loads_by_name():
    loaded = load_model("u2netp", **CPU)
    size = loaded.provenance.input_size
    assert logits(loaded.module, torch.zeros(1, 3, *size)).shape == (1, 1, *size)
    assert loaded.provenance.sha256_agrees_with == ("the registry",)
    assert (loaded.provenance.verified, loaded.provenance.filter) == (True, "box")


def test_a_file_replaced_during_the_load_is_noticed(beside, folder):
    loaded = load_model(beside, **NEW)
    shutil.copyfile(folder / WEIGHTS, beside / "new")
    os.replace(beside / "new", beside / WEIGHTS)
    with pytest.raises(ModelError, match="was replaced"):
        _ = loaded.provenance


def test_overlapping_tensors_are_damage(tmp_path):
    """Though names, shapes and length are right."""
    path = hollow(tmp_path / WEIGHTS)
    with path.open("rb") as file:
        records = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    records["bb.norm0.bias"]["data_offsets"] = records["bb.norm0.weight"]["data_offsets"]
    written(path, records, max(r["data_offsets"][1] for n, r in records.items() if n != "__metadata__"))
    with pytest.raises(ModelError, match="damaged"):
        load(tmp_path, **NEW)
