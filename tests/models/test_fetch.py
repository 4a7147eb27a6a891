from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmbgd.errors import ModelError
from rmbgd.models import fetch as fetching
from rmbgd.models.checkpoint import sha256_of
from rmbgd.models.fetch import FolderSource, Offer, fetch
from rmbgd.models.hub import HubSource
from rmbgd.models.registry import REGISTRY
from rmbgd.models.store import ORIGIN, WEIGHTS, installed
from tests.models.checkpoints import NEW_CODE, hollow
from tests.models.hub_server import COMMIT, Hub, serving

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LITE = REGISTRY["birefnet-lite"]
# The same entry without a network to fit: the weights may then be small.
SMALL = dataclasses.replace(LITE, backbone=None)


@contextlib.contextmanager
def no_bar(label, total):
    yield lambda count: None


def bring(source, models, entry=SMALL, **more):
    return fetch(entry, source, models, **{"now": NOW, "announce": lambda offer: None, "bar": no_bar, **more})


def weights_into(folder, value=1.0, size=70_000):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.full(size, value, np.float32)}, folder / WEIGHTS)
    return folder


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine with one repository: weights, the author's code, a pickle."""
    folder = weights_into(tmp_path / "repo")
    (folder / "birefnet.py").write_text(NEW_CODE)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with serving(Hub(LITE.hub_id, folder)) as served:
        yield served


@pytest.fixture(autouse=True)
def hub_settings(tmp_path, monkeypatch):
    """Nothing of this machine's own hub settings reaches the tests, and no test leaves notes in them."""
    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


def test_the_hub_gives_weights_and_texts_only(hub, tmp_path):
    """Weights, configuration and the author's text arrive; the pickle beside them is not even asked for."""
    bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")

    assert sorted(os.listdir(tmp_path / "models" / LITE.name)) == [
        "birefnet.py",
        "config.json",
        "config.published.json",
        WEIGHTS,
        ORIGIN,
    ]
    assert not any("pytorch_model.bin" in line for line in hub.asked)


def test_what_arrives_is_what_the_hub_has(hub, tmp_path):
    """The placed file equals the hub's, and its digest, revision and origin are on record beside it."""
    fetched = bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")
    origin = json.loads((fetched.folder / ORIGIN).read_text())

    assert (fetched.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    assert origin["sha256"] == fetched.sha256 == sha256_of(hub.folder / WEIGHTS)
    assert (origin["model"], origin["revision"], origin["licence"]) == (LITE.name, COMMIT, "MIT")


def test_the_published_configuration_is_kept(hub, tmp_path):
    """config.json names classes of ours instead of the author's code, whose own configuration stays beside it."""
    published = {"auto_map": {"AutoModelForImageSegmentation": "birefnet.BiRefNet"}, "bb_pretrained": False}
    (hub.folder / "config.json").write_text(json.dumps(published))
    folder = bring(HubSource(endpoint=hub.endpoint), tmp_path / "models").folder

    assert json.loads((folder / "config.published.json").read_text()) == published
    assert json.loads((folder / "config.json").read_text())["model_type"] == "birefnet"


def test_a_configuration_of_ours_is_carried_as_it_is(tmp_path):
    """What was saved with a known patch order keeps it when it is carried to another machine."""
    saved = {"model_type": "birefnet", "patch_order": "tile_first"}
    weights_into(tmp_path / "usb")
    (tmp_path / "usb" / "config.json").write_text(json.dumps(saved))
    folder = bring(FolderSource(tmp_path / "usb"), tmp_path / "models").folder

    assert json.loads((folder / "config.json").read_text()) == saved


def test_size_is_said_before_the_first_byte(hub, tmp_path):
    """The announcement has the exact size and comes before any file is asked for."""
    said: list[tuple[Offer, list[str]]] = []
    bring(HubSource(endpoint=hub.endpoint), tmp_path, announce=lambda offer: said.append((offer, list(hub.asked))))
    offer, asked_before = said[0]

    assert offer.weights_bytes == (hub.folder / WEIGHTS).stat().st_size
    assert not any("resolve" in line for line in asked_before)


def test_the_same_version_is_not_brought_twice(hub, tmp_path):
    """A second fetch asks for the facts and for no file."""
    bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")
    hub.asked.clear()
    again = bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")

    assert not again.brought
    assert not any("resolve" in line for line in hub.asked)


def test_a_new_version_replaces_the_old_folder_whole(hub, tmp_path):
    """After an update weights and texts are the new ones, and nothing of the old version or of the work is left."""
    bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")
    weights_into(hub.folder, 2.0)
    (hub.folder / "birefnet.py").unlink()
    hub.commit = "f" * 40
    bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")
    placed = tmp_path / "models" / LITE.name

    assert sha256_of(placed / WEIGHTS) == sha256_of(hub.folder / WEIGHTS)
    assert sorted(os.listdir(placed)) == ["config.json", "config.published.json", WEIGHTS, ORIGIN]
    assert os.listdir(tmp_path / "models") == [LITE.name]


def test_a_reader_keeps_the_file_it_has(hub, tmp_path):
    """Weights that are open while an update is placed stay as they were: mapped files never shrink under a reader."""
    fetched = bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")
    before = (fetched.folder / WEIGHTS).read_bytes()
    with (fetched.folder / WEIGHTS).open("rb") as reader:
        weights_into(hub.folder, 2.0, size=10)
        hub.commit = "f" * 40
        bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")

        assert reader.read() == before


def test_a_cut_line_goes_on_where_it_stopped(hub, tmp_path):
    """After a cut in the middle only the rest is asked for, and the result is whole."""
    weights_into(hub.folder, size=6_000_000)
    hub.cut_after = 15_000_000
    fetched = bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")

    assert len(hub.ranges) == 1
    assert 0 < hub.ranges[0] <= 15_000_000
    assert (fetched.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()


def test_a_wrong_digest_is_refused_and_forgotten(hub, tmp_path):
    """Weights that are not those the registry pins are not placed, and the bad download is not kept to be resumed."""
    pinned = dataclasses.replace(SMALL, sha256="0" * 64)
    with pytest.raises(ModelError, match="the registry states 0000"):
        bring(HubSource(endpoint=hub.endpoint), tmp_path / "models", pinned)

    assert os.listdir(tmp_path / "models") == []


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "GatedRepo", "accept the terms"),
        (403, "GatedRepo", "accept the terms"),
        (404, "RepoNotFound", "is not there"),
        (404, "RevisionNotFound", "has no revision"),
        (500, "", "the hub refused"),
    ],
)
def test_refusals_of_the_hub_are_one_line(hub, tmp_path, status, code, said):
    """Each way the hub says no becomes one line that says what to do."""
    hub.error = (status, code)
    with pytest.raises(ModelError, match=said) as refusal:
        bring(HubSource("v9", endpoint=hub.endpoint), tmp_path / "models")

    assert "\n" not in str(refusal.value)


def test_without_network_one_line_names_the_way_out(tmp_path):
    """When nothing answers, the one line names the offline way, and the models directory is untouched."""
    with pytest.raises(ModelError, match=r"no network.*--from FOLDER") as refusal:
        bring(HubSource(endpoint="http://127.0.0.1:9"), tmp_path / "models")

    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "models").exists()


def test_a_repository_without_safetensors_is_refused(hub, tmp_path):
    """Where the hub has only a pickle nothing is brought."""
    (hub.folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        bring(HubSource(endpoint=hub.endpoint), tmp_path / "models")


@pytest.mark.parametrize("below", ["", LITE.name], ids=["the folder itself", "below its name"])
def test_a_folder_serves_without_network(tmp_path, below):
    """--from takes the weights in the folder, or in <folder>/<name>/ as another machine's models directory has them."""
    weights_into(tmp_path / "usb" / below)
    fetched = bring(FolderSource(tmp_path / "usb"), tmp_path / "models")

    assert (fetched.folder / WEIGHTS).read_bytes() == (tmp_path / "usb" / below / WEIGHTS).read_bytes()


def test_a_carried_folder_is_held_to_its_record(hub, tmp_path):
    """Weights that were carried here and damaged on the way are refused by the digest recorded at their fetch."""
    carried = bring(HubSource(endpoint=hub.endpoint), tmp_path / "usb").folder
    with (carried / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")

    with pytest.raises(ModelError, match="states"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models")
    assert not (tmp_path / "models" / LITE.name).exists()


def test_another_model_in_the_folder_is_noticed(hub, tmp_path):
    """A folder whose record names another model is refused before anything is copied."""
    bring(HubSource(endpoint=hub.endpoint), tmp_path / "usb")
    other = dataclasses.replace(REGISTRY["birefnet-portrait"], backbone=None)

    with pytest.raises(ModelError, match="holds birefnet-lite, not birefnet-portrait"):
        bring(FolderSource(tmp_path / "usb" / LITE.name), tmp_path / "models", other)


def test_weights_of_another_backbone_are_not_placed(tmp_path):
    """Swin-T weights offered as the Swin-L model are refused by their header, with what they are."""
    hollow(tmp_path / "usb" / WEIGHTS, "swin_v1_t")
    with pytest.raises(ModelError, match="backbone Swin-T"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models", REGISTRY["birefnet"])


def test_whole_published_weights_are_placed(tmp_path):
    """A file with every published name and shape passes the check of the real registry entry."""
    hollow(tmp_path / "usb" / WEIGHTS, "swin_v1_t")
    bring(FolderSource(tmp_path / "usb"), tmp_path / "models", LITE)

    assert installed(LITE, tmp_path / "models").entry is LITE


def test_a_full_disk_is_said_before_the_download(tmp_path, monkeypatch):
    """Where the room is not there the numbers are said and nothing is brought."""
    weights_into(tmp_path / "usb")
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)

    with pytest.raises(ModelError, match="1 MB are free"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models")


def test_two_fetches_do_not_meet(tmp_path):
    """While one fetch of a model runs, another one of it is refused."""
    weights_into(tmp_path / "usb")
    outer = FolderSource(tmp_path / "usb")
    refusals = []

    class Meanwhile(FolderSource):
        def bring(self, entry, offer, into, bar):
            with pytest.raises(ModelError, match="another fetch") as refusal:
                bring(outer, tmp_path / "models")
            refusals.append(refusal)
            super().bring(entry, offer, into, bar)

    bring(Meanwhile(tmp_path / "usb"), tmp_path / "models")

    assert len(refusals) == 1


def test_leftovers_of_another_version_do_not_speak(tmp_path):
    """The author's code of an interrupted fetch of another version does not end beside these weights."""
    weights_into(tmp_path / "usb")
    staged = tmp_path / "models" / f".fetching-{LITE.name}"
    staged.mkdir(parents=True)
    (staged / "birefnet.py").write_text(NEW_CODE)
    fetched = bring(FolderSource(tmp_path / "usb"), tmp_path / "models")

    assert not (fetched.folder / "birefnet.py").exists()


def test_the_service_may_read_what_was_fetched(tmp_path):
    """Folder and files are readable by other users whatever the operator's umask."""
    weights_into(tmp_path / "usb")
    before = os.umask(0o077)
    try:
        fetched = bring(FolderSource(tmp_path / "usb"), tmp_path / "models")
    finally:
        os.umask(before)

    assert fetched.folder.stat().st_mode & 0o777 == 0o755
    assert {(fetched.folder / n).stat().st_mode & 0o777 for n in os.listdir(fetched.folder)} == {0o644}


def test_fetching_from_a_folder_never_loads_the_hub_client():
    """The offline way imports no network library."""
    code = "import sys, rmbgd.models.fetch, rmbgd.models.store; print('huggingface_hub' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "False"
