from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmbgd.errors import ModelError
from rmbgd.models import licences
from rmbgd.models.fetch import FolderSource, fetch
from rmbgd.models.registry import REGISTRY
from rmbgd.models.store import AUTHOR_CODE, CONFIG, WEIGHTS
from tests.models.checkpoints import NEW_CODE, OLD_CODE, hollow
from tests.models.stress import CPU, load, logits, recipe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages say of themselves when transformers looks for them
    from transformers import AutoConfig, AutoModelForImageSegmentation

    from rmbgd.models.hf import BiRefNetConfig, BiRefNetForImageSegmentation

pytestmark = pytest.mark.slow  # whole networks

# The configuration that the author publishes: it names his own code and no model type.
PUBLISHED = {
    "architectures": ["BiRefNet"],
    "auto_map": {
        "AutoConfig": "BiRefNet_config.BiRefNetConfig",
        "AutoModelForImageSegmentation": "birefnet.BiRefNet",
    },
    "bb_pretrained": False,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as the author publishes it: float32 Swin-T weights of the recipe, his configuration, his newer code."""
    folder = tmp_path_factory.mktemp("published")
    tensors = {n: torch.from_numpy(a) for n, a in recipe().checkpoint("swin_v1_t").items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(PUBLISHED))
    (folder / AUTHOR_CODE).write_text(NEW_CODE)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(published):
    return BiRefNetForImageSegmentation.from_pretrained(published)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The same model after save_pretrained."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def x():
    return torch.from_numpy(recipe().image("interop", 2, 64, 96))


def test_the_authors_folder_opens_without_his_code(model, published, x):
    """A folder with the author's own configuration loads by our class and computes what the service computes."""
    native = load(published, **CPU)

    assert torch.equal(logits(model, x), logits(native, x))
    assert (model.config.backbone, model.config.patch_order) == ("swin_v1_t", "channel_first")


def test_auto_classes_open_what_was_saved(saved, model, x):
    """AutoModelForImageSegmentation opens the saved folder without remote code, AutoConfig its configuration with what
    was read of the author's folder; it computes the same, and so does the service."""
    auto, config = AutoModelForImageSegmentation.from_pretrained(saved), AutoConfig.from_pretrained(saved)

    assert type(auto) is BiRefNetForImageSegmentation
    assert torch.equal(logits(auto, x), logits(model, x))
    assert torch.equal(logits(load(saved, **CPU), x), logits(model, x))
    assert isinstance(config, BiRefNetConfig)
    assert (config.backbone, config.patch_order, config.input_size) == ("swin_v1_t", "channel_first", [1024, 1024])


def test_auto_classes_open_what_was_fetched(published, model, x, tmp_path):
    """A folder that `rmbgd models fetch` placed, from the author's own files, opens with Auto classes as it is."""
    entry = REGISTRY["birefnet-lite"]
    bar = contextlib.nullcontext(lambda count: None)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    source = FolderSource(published)
    fetched = fetch(entry, source, tmp_path, now=now, announce=lambda offer: None, bar=lambda label, total: bar)
    auto = AutoModelForImageSegmentation.from_pretrained(fetched.folder)

    assert torch.equal(logits(auto, x), logits(model, x))
    assert auto.config.published_as == "birefnet-lite"


def test_saving_keeps_every_published_tensor(saved, published):
    """Names and values of the saved file are the published ones, bit for bit; only the index that Swin derives from
    offsets in a window is added, and nothing asks for code: no auto_map, no Python file."""
    before, after = load_file(published / WEIGHTS), load_file(saved / WEIGHTS)
    window = 7
    expected = [
        [
            (i // window - j // window + window - 1) * (2 * window - 1) + (i % window - j % window + window - 1)
            for j in range(window**2)
        ]
        for i in range(window**2)
    ]

    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {n.rpartition(".")[2] for n in after.keys() - before.keys()} == {"relative_position_index"}
    assert after["bb.layers.0.blocks.1.attn.relative_position_index"].tolist() == expected
    assert "auto_map" not in json.loads((saved / CONFIG).read_text())
    assert not [n for n in os.listdir(saved) if n.endswith(".py")]


def test_half_precision_survives_saving(model, tmp_path):
    """A model in float16 saves float16 weights, integer counters as they are, and is opened as float16."""
    half = BiRefNetForImageSegmentation(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(tmp_path)
    opened = AutoModelForImageSegmentation.from_pretrained(tmp_path)

    kinds = {t.dtype for t in load_file(tmp_path / WEIGHTS).values()}
    assert kinds == {torch.float16, torch.int64}
    assert opened.dtype == torch.float16


def test_the_network_follows_its_parameters(published, x):
    """After a cast or new parameters the next forward computes with them, not with the old fold."""
    model = BiRefNetForImageSegmentation.from_pretrained(published)
    first = logits(model, x)
    changed = {n: t.clone() for n, t in model.state_dict().items()}
    changed["decoder.conv_out1.0.bias"] += 1
    model.load_state_dict(changed)

    assert torch.allclose(logits(model, x), first + 1, atol=1e-4)
    rounded = logits(model.bfloat16(), x.bfloat16()).float()
    assert 0 < (rounded - first - 1).abs().mean() < 0.1


def test_the_answer_reads_as_the_authors_does(model, x):
    """`model(x)[-1]` and `.logits` are one tensor [B,1,H,W]; return_dict=False gives a tuple."""
    with torch.inference_mode():
        answer, plain = model(x), model(x, return_dict=False)

    assert answer[-1] is answer.logits
    assert answer.logits.shape == (2, 1, 64, 96)
    assert torch.equal(plain[-1], answer.logits)


def test_training_is_refused(published, x):
    """In training mode the model says that it only computes."""
    model = BiRefNetForImageSegmentation.from_pretrained(published).train()
    with pytest.raises(ModelError, match=r"call \.eval"):
        model(x)


def test_strict_names_hold_here_too(published, tmp_path):
    """A checkpoint with a missing tensor is an error with its name, where transformers alone would make one up."""
    values = load_file(published / WEIGHTS)
    del values["decoder.conv_out1.0.weight"]
    save_file(values, tmp_path / WEIGHTS)
    (tmp_path / AUTHOR_CODE).write_text(NEW_CODE)

    with pytest.raises(ModelError, match=r"1 missing: decoder\.conv_out1\.0\.weight"):
        BiRefNetForImageSegmentation.from_pretrained(tmp_path)


def test_no_order_is_guessed_here_either(published, tmp_path):
    """Weights of unknown patch order are refused, and load once the configuration states it."""
    os.link(published / WEIGHTS, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="not known"):
        BiRefNetForImageSegmentation.from_pretrained(tmp_path)

    stated = BiRefNetForImageSegmentation.from_pretrained(tmp_path, config=BiRefNetConfig(patch_order="tile_first"))
    assert stated.config.patch_order == "tile_first"


def test_the_older_code_beside_the_weights_decides(published, tmp_path):
    """The author's older code beside the weights gives the older order."""
    os.link(published / WEIGHTS, tmp_path / WEIGHTS)
    (tmp_path / AUTHOR_CODE).write_text(OLD_CODE)

    assert BiRefNetForImageSegmentation.from_pretrained(tmp_path).config.patch_order == "tile_first"


def test_non_commercial_weights_wait_and_keep_their_name(tmp_path):
    """RMBG-2.0 opens after acceptance only, and what is saved from it is still known as RMBG-2.0."""
    hollow(tmp_path / "rmbg-2.0" / WEIGHTS, "swin_v1_l")
    with pytest.raises(ModelError, match=r"rmbgd models accept rmbg-2\.0"):
        BiRefNetForImageSegmentation.from_pretrained(tmp_path / "rmbg-2.0")

    licences.accept(REGISTRY["rmbg-2.0"], tmp_path, who="alice", now=datetime(2026, 3, 1, tzinfo=UTC))
    opened = BiRefNetForImageSegmentation.from_pretrained(tmp_path / "rmbg-2.0")
    assert (opened.config.published_as, opened.config.patch_order) == ("rmbg-2.0", "tile_first")


def test_a_network_can_be_made_from_a_configuration():
    """Without a checkpoint the model has finite starting values and runs, as transformers' own do."""
    model = AutoModelForImageSegmentation.from_config(BiRefNetConfig("swin_v1_t", "channel_first")).eval()

    assert torch.isfinite(logits(model, torch.zeros(1, 3, 32, 32))).all()
