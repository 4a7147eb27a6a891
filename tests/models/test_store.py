from __future__ import annotations

import json

import pytest

from rmbgd.errors import ModelError
from rmbgd.models.registry import REGISTRY, PatchOrder
from rmbgd.models.store import CONFIG, EMBEDDED, ORIGIN, WEIGHTS, resolve


def weights(folder, name=WEIGHTS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    return folder / name


def test_a_name_means_the_models_directory(tmp_path):
    """A registry name is <models>/<name>/model.safetensors, in any case."""
    path = weights(tmp_path / "birefnet-hr")

    assert resolve("BiRefNet-HR", tmp_path).weights == path
    assert resolve("birefnet-hr", tmp_path).entry is REGISTRY["birefnet-hr"]


def test_the_embedded_model_needs_no_directory(tmp_path):
    """u2netp is in the package, by its name and by its path."""
    assert resolve("u2netp", tmp_path / "none").weights == EMBEDDED
    assert resolve(EMBEDDED, tmp_path).entry is REGISTRY["u2netp"]


def test_a_copy_of_the_embedded_weights_is_known_by_its_content(tmp_path):
    """Under another name too; one flipped byte makes it a stranger."""
    copy = tmp_path / "small.safetensors"
    content = bytearray(EMBEDDED.read_bytes())
    copy.write_bytes(content)
    assert resolve(copy, tmp_path).entry is REGISTRY["u2netp"]

    content[-1] ^= 1
    copy.write_bytes(content)
    assert resolve(copy, tmp_path).entry is None


def test_folders_and_files_of_ones_own(tmp_path):
    """Weights that the registry does not know are taken by folder or by file, and called by their path."""
    path = weights(tmp_path / "mine")

    assert resolve(tmp_path / "mine", tmp_path).weights == path
    assert resolve(path, tmp_path).entry is None
    assert resolve(str(path), tmp_path).called == str(path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("birefnet", "rmbgd models fetch birefnet"),
        ("birefnot", "did you mean birefnet"),
        ("mine/", "no such file or folder"),
        ("mine.safetensors", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_said_with_the_way_out(tmp_path, monkeypatch, source, said):
    """A missing model names the command that brings it; a misspelt one the nearest; a missing path itself."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said):
        resolve(source, tmp_path)


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (["pytorch_model.bin", "config.json"], r"convert_checkpoint\.py .*pytorch_model\.bin"),
        (["weights.safetensors"], r"but weights\.safetensors: name the file"),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], "split over several files"),
        ([], "no model.safetensors there"),
    ],
    ids=["pickle", "other name", "shards", "empty"],
)
def test_a_folder_without_weights_says_what_it_has(tmp_path, present, said):
    """What lies in the folder instead of model.safetensors is named, a pickle with the way to convert it."""
    for name in present:
        weights(tmp_path / "mine", name)
    (tmp_path / "mine").mkdir(exist_ok=True)

    with pytest.raises(ModelError, match=said):
        resolve(tmp_path / "mine", tmp_path)


def signs():
    """Ways in which weights outside the models directory still say that they are RMBG-2.0: relative path -> content."""
    card = "---\nlicense: other\nlicense_name: bria-rmbg-2.0\n---\n# A model\n"
    return {
        "record of the fetch": ("x", {ORIGIN: json.dumps({"model": "rmbg-2.0"})}),
        "saved by us": ("x", {CONFIG: json.dumps({"model_type": "birefnet", "published_as": "rmbg-2.0"})}),
        "published config": ("x", {CONFIG: json.dumps({"_name_or_path": "briaai/RMBG-2.0"})}),
        "model card": ("x", {"README.md": card}),
        "folder name": ("RMBG-2.0", {}),
        "hub cache": ("models--briaai--RMBG-2.0/snapshots/0123", {}),
    }


@pytest.mark.parametrize("sign", signs())
def test_the_licence_follows_the_weights(tmp_path, sign):
    """RMBG-2.0 is recognised by what lies beside it, wherever it lies."""
    folder, files = signs()[sign]
    path = weights(tmp_path / "elsewhere" / folder)
    for name, text in files.items():
        path.with_name(name).write_text(text)

    assert resolve(path, tmp_path).entry is REGISTRY["rmbg-2.0"]
    assert resolve(path.parent, tmp_path).entry is REGISTRY["rmbg-2.0"]


def test_a_card_that_mentions_another_model_is_no_sign(tmp_path):
    """A model card that speaks of RMBG-2.0 in its text does not make its weights RMBG-2.0."""
    path = weights(tmp_path / "mine")
    path.with_name("README.md").write_text("---\nlicense: mit\n---\nBetter than RMBG-2.0 by BRIA.\n")

    assert resolve(path, tmp_path).entry is None


def test_free_models_are_not_recognised_by_a_folder_name(tmp_path):
    """A folder that happens to be called birefnet is somebody's own weights, whose facts nobody confirmed."""
    path = weights(tmp_path / "elsewhere" / "birefnet")

    assert resolve(path, tmp_path / "models").entry is None


@pytest.mark.parametrize(
    ("expected", "config"),
    [
        ((1440, 2560), {"input_size": [1440, 2560]}),
        ((1024, 1024), {}),
        ((1024, 1024), {"input_size": [1000, 1000]}),
        ((1024, 1024), {"input_size": "large"}),
        ((1024, 1024), {"input_size": [0, 32]}),
    ],
)
def test_input_size_of_ones_own_weights(tmp_path, expected, config):
    """The saved size where it is a legal one, else 1024x1024; (height, width)."""
    path = weights(tmp_path / "mine")
    path.with_name(CONFIG).write_text(json.dumps(config))

    assert resolve(path, tmp_path).input_size() == expected


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"patch_order": "guess"}', '{"patch_order": 3}'])
def test_a_config_that_says_nothing_legal_says_nothing(tmp_path, text):
    """A torn or strange config.json is as good as none."""
    path = weights(tmp_path / "mine")
    path.with_name(CONFIG).write_text(text)

    assert resolve(path, tmp_path).saved_patch_order() is None


def test_the_saved_order_is_read(tmp_path):
    """What rmbgd wrote into config.json is taken."""
    path = weights(tmp_path / "mine")
    path.with_name(CONFIG).write_text('{"patch_order": "tile_first"}')

    assert resolve(path, tmp_path).saved_patch_order() is PatchOrder.TILE_FIRST


def test_texts_beside_weights_are_bounded(tmp_path):
    """A birefnet.py of unreasonable size is not read."""
    path = weights(tmp_path / "mine")
    path.with_name("birefnet.py").write_text("#" * (2 << 20))

    assert resolve(path, tmp_path).author_code() is None
