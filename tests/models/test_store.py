from __future__ import annotations

import json

import pytest

from rmbgd.errors import ModelError
from rmbgd.models.registry import REGISTRY, PatchOrder
from rmbgd.models.store import AUTHOR_CODE, CONFIG, EMBEDDED, ORIGIN, WEIGHTS, resolve
from tests.models.checkpoints import NEW_CODE


def weights(folder, name=WEIGHTS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    return folder / name


def test_a_name_means_the_models_directory_or_the_package(tmp_path):
    path = weights(tmp_path / "birefnet-hr")
    assert resolve("BiRefNet-HR", tmp_path).weights == path
    assert resolve("birefnet-hr", tmp_path).entry is REGISTRY["birefnet-hr"]
    assert resolve("u2netp", tmp_path / "none").weights == EMBEDDED
    assert resolve(EMBEDDED, tmp_path).entry is REGISTRY["u2netp"]


def test_a_copy_of_the_embedded_weights_is_known_by_its_content(tmp_path):
    copy = tmp_path / "small.safetensors"
    content = bytearray(EMBEDDED.read_bytes())
    copy.write_bytes(content)
    assert resolve(copy, tmp_path).entry is REGISTRY["u2netp"]
    content[-1] ^= 1
    copy.write_bytes(content)
    assert resolve(copy, tmp_path).entry is None


def test_other_folders_and_files(tmp_path):
    path = weights(tmp_path / "mine")
    assert resolve(tmp_path / "mine", tmp_path).weights == path
    assert resolve(path, tmp_path).entry is None
    assert resolve(str(path), tmp_path).name == str(path)


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
    for name in present:
        weights(tmp_path / "mine", name)
    (tmp_path / "mine").mkdir(exist_ok=True)
    with pytest.raises(ModelError, match=said):
        resolve(tmp_path / "mine", tmp_path)


# Ways in which weights outside the models directory still say that they are RMBG-2.0: folder, file beside -> content.
SIGNS = {
    "record of the fetch": ("x", ORIGIN, json.dumps({"model": "rmbg-2.0"})),
    "saved by us": ("x", CONFIG, json.dumps({"model_type": "birefnet", "published_as": "rmbg-2.0"})),
    "published config": ("x", CONFIG, json.dumps({"_name_or_path": "briaai/RMBG-2.0"})),
    "model card": ("x", "README.md", "---\nlicense: other\nlicense_name: bria-rmbg-2.0\n---\n# A model\n"),
    "folder name": ("RMBG-2.0", "empty", ""),
    "hub cache": ("models--briaai--RMBG-2.0/snapshots/0123", "empty", ""),
}


@pytest.mark.parametrize(("folder", "file", "text"), SIGNS.values(), ids=SIGNS)
def test_the_licence_follows_the_weights(tmp_path, folder, file, text):
    path = weights(tmp_path / "elsewhere" / folder)
    path.with_name(file).write_text(text)
    assert resolve(path, tmp_path).entry is REGISTRY["rmbg-2.0"]
    assert resolve(path.parent, tmp_path).entry is REGISTRY["rmbg-2.0"]


@pytest.mark.parametrize(
    ("folder", "card"), [("mine", "---\nlicense: mit\n---\nBetter than RMBG-2.0 by BRIA.\n"), ("birefnet", "")]
)
def test_weak_signs_do_not_count(tmp_path, folder, card):
    path = weights(tmp_path / "elsewhere" / folder)
    path.with_name("README.md").write_text(card)
    assert resolve(path, tmp_path / "models").entry is None


@pytest.mark.parametrize(
    ("expected", "config"),
    [
        ((1440, 2560), {"input_size": [1440, 2560]}),
        *(((1024, 1024), {"input_size": illegal}) for illegal in ([1000, 1000], "large", [0, 32])),
        ((1024, 1024), {}),
    ],
)
def test_the_saved_input_size_and_patch_order_are_read(tmp_path, expected, config):
    path = weights(tmp_path / "mine")
    path.with_name(CONFIG).write_text(json.dumps(config | {"patch_order": "tile_first"}))
    assert resolve(path, tmp_path).input_size() == expected
    assert resolve(path, tmp_path).patch_order().order is PatchOrder.TILE_FIRST


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"x"', *(f'{{"patch_order": {value}}}' for value in ('"guess"', 3, "[1]", "{}")), "[" * 200_000],
    ids=lambda text: text[:20],
)
def test_texts_that_say_nothing_legal_or_are_too_long_say_nothing(tmp_path, text):
    path = weights(tmp_path / "mine")
    path.with_name(CONFIG).write_text(text)
    path.with_name(AUTHOR_CODE).write_text(NEW_CODE + "#" * (2 << 20))
    with pytest.raises(ModelError, match="neither the registry nor a birefnet"):
        resolve(path, tmp_path).patch_order()
