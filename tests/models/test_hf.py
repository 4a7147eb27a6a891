from __future__ import annotations

import json
import os
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmbgd.errors import ModelError
from rmbgd.models import licences
from rmbgd.models.registry import REGISTRY
from rmbgd.models.store import AUTHOR_CODE, CONFIG, WEIGHTS
from tests.models import oracle
from tests.models.checkpoints import NEW_CODE, OLD_CODE, hollow
from tests.models.stress import CPU, load, logits, recipe
from tests.models.test_fetch import LITE, NOW, bring

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages say of themselves when transformers looks for them
    from transformers import AutoConfig, AutoModelForImageSegmentation

    from rmbgd.models.hf import BiRefNetConfig, BiRefNetForImageSegmentation

pytestmark = pytest.mark.slow  # whole networks


@pytest.fixture(scope="module")
def model(folder):
    return BiRefNetForImageSegmentation.from_pretrained(folder)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def x():
    return torch.from_numpy(recipe().image("interop", 2, 64, 96))


def test_the_authors_folder_opens_without_his_code(model, folder, x):
    native = load(folder, **CPU)
    assert torch.equal(logits(model, x), logits(native, x))
    assert (model.config.backbone, model.config.patch_order) == ("swin_v1_t", "channel_first")


def test_auto_classes_open_what_was_saved(saved, model, x):
    auto, config = AutoModelForImageSegmentation.from_pretrained(saved), AutoConfig.from_pretrained(saved)
    assert type(auto) is BiRefNetForImageSegmentation
    assert torch.equal(logits(auto, x), logits(model, x))
    assert torch.equal(logits(load(saved, **CPU), x), logits(model, x))
    assert isinstance(config, BiRefNetConfig)
    assert (config.backbone, config.patch_order, config.input_size) == ("swin_v1_t", "channel_first", [1024, 1024])


def test_auto_classes_open_what_was_fetched(folder, model, x, tmp_path):
    auto = AutoModelForImageSegmentation.from_pretrained(bring(folder, tmp_path, LITE).folder)
    assert torch.equal(logits(auto, x), logits(model, x))
    assert auto.config.published_as == "birefnet-lite"


def test_saving_keeps_every_published_tensor(saved, folder):
    """Bit for bit; only Swin's derived index is added, and nothing asks for code: no auto_map, no Python file."""
    before, after = load_file(folder / WEIGHTS), load_file(saved / WEIGHTS)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {n.rpartition(".")[2] for n in after.keys() - before.keys()} == {"relative_position_index"}
    assert torch.equal(after["bb.layers.0.blocks.1.attn.relative_position_index"], oracle.relative_position_index(7))
    assert "auto_map" not in json.loads((saved / CONFIG).read_text())
    assert not [n for n in os.listdir(saved) if n.endswith(".py")]


def test_half_precision_survives_saving(model, tmp_path):
    half = BiRefNetForImageSegmentation(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(tmp_path)
    opened = AutoModelForImageSegmentation.from_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.float16, torch.int64}
    assert opened.dtype == torch.float16


def test_the_network_follows_its_parameters(folder, x):
    model = BiRefNetForImageSegmentation.from_pretrained(folder)
    first = logits(model, x)
    changed = {n: t.clone() for n, t in model.state_dict().items()}
    changed["decoder.conv_out1.0.bias"] += 1
    model.load_state_dict(changed)
    assert torch.allclose(logits(model, x), first + 1, atol=1e-4)
    rounded = logits(model.bfloat16(), x.bfloat16()).float()
    assert 0 < (rounded - first - 1).abs().mean() < 0.1


def test_the_answer_reads_as_the_authors_does(model, x):
    with torch.inference_mode():
        answer, plain = model(x), model(x, return_dict=False)
    assert answer[-1] is answer.logits
    assert answer.logits.shape == (2, 1, 64, 96)
    assert torch.equal(plain[-1], answer.logits)


def test_training_is_refused(model, x):
    with pytest.raises(ModelError, match=r"call \.eval"):
        BiRefNetForImageSegmentation(model.config).train()(x)


def test_strict_names_hold_here_too(folder, tmp_path):
    """Transformers alone would make a missing tensor up."""
    values = load_file(folder / WEIGHTS)
    del values["decoder.conv_out1.0.weight"]
    save_file(values, tmp_path / WEIGHTS)
    (tmp_path / AUTHOR_CODE).write_text(NEW_CODE)
    with pytest.raises(ModelError, match=r"1 missing: decoder\.conv_out1\.0\.weight"):
        BiRefNetForImageSegmentation.from_pretrained(tmp_path)


def test_no_order_is_guessed_here_either(beside):
    with pytest.raises(ModelError, match="not known"):
        BiRefNetForImageSegmentation.from_pretrained(beside)
    stated = BiRefNetForImageSegmentation.from_pretrained(beside, config=BiRefNetConfig(patch_order="tile_first"))
    assert stated.config.patch_order == "tile_first"
    (beside / AUTHOR_CODE).write_text(OLD_CODE)
    assert BiRefNetForImageSegmentation.from_pretrained(beside).config.patch_order == "tile_first"


def test_non_commercial_weights_wait_and_keep_their_name(tmp_path):
    hollow(tmp_path / "rmbg-2.0" / WEIGHTS, "swin_v1_l")
    with pytest.raises(ModelError, match=r"rmbgd models accept rmbg-2\.0"):
        BiRefNetForImageSegmentation.from_pretrained(tmp_path / "rmbg-2.0")
    licences.accept(REGISTRY["rmbg-2.0"], tmp_path, who="alice", now=NOW)
    opened = BiRefNetForImageSegmentation.from_pretrained(tmp_path / "rmbg-2.0")
    assert (opened.config.published_as, opened.config.patch_order) == ("rmbg-2.0", "tile_first")


def test_a_network_can_be_made_from_a_configuration():
    model = AutoModelForImageSegmentation.from_config(BiRefNetConfig("swin_v1_t", "channel_first")).eval()
    assert torch.isfinite(logits(model, torch.zeros(1, 3, 32, 32))).all()
