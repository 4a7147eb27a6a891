from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmbgd.errors import ModelError
from rmbgd.models import fetch as fetching
from rmbgd.models.checkpoint import sha256_of
from rmbgd.models.fetch import FolderSource, HubSource, Offer, fetch
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
    source = HubSource(endpoint=source.endpoint) if isinstance(source, Hub) else source
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
    """Weights, configuration and the author's text arrive, with digest, revision and origin on record beside them; the
    pickle is not even asked for."""
    fetched = bring(hub, tmp_path / "models")
    origin = json.loads((fetched.folder / ORIGIN).read_text())

    files = {"birefnet.py", "config.json", "config.published.json", WEIGHTS, ORIGIN}
    assert set(os.listdir(tmp_path / "models" / LITE.name)) == files
    assert not any("pytorch_model.bin" in line for line in hub.asked)
    assert (fetched.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    assert origin["sha256"] == fetched.sha256 == sha256_of(hub.folder / WEIGHTS)
    assert (origin["model"], origin["revision"], origin["licence"]) == (LITE.name, COMMIT, "MIT")


def test_the_published_configuration_is_kept(hub, tmp_path):
    """config.json names classes of ours instead of the author's code, whose own configuration stays beside it."""
    published = {"auto_map": {"AutoModelForImageSegmentation": "birefnet.BiRefNet"}, "bb_pretrained": False}
    (hub.folder / "config.json").write_text(json.dumps(published))
    folder = bring(hub, tmp_path / "models").folder

    assert json.loads((folder / "config.published.json").read_text()) == published
    assert json.loads((folder / "config.json").read_text())["model_type"] == "birefnet"


def test_a_configuration_of_ours_is_carried_as_it_is(tmp_path):
    """What was saved with a known patch order keeps it when it is carried to another machine."""
    saved = {"model_type": "birefnet", "patch_order": "tile_first"}
    weights_into(tmp_path / "usb")
    (tmp_path / "usb" / "config.json").write_text(json.dumps(saved))
    folder = bring(FolderSource(tmp_path / "usb"), tmp_path / "models").folder

    assert json.loads((folder / "config.json").read_text()) == saved


def test_size_is_announced_before_the_first_byte(hub, tmp_path):
    """The announcement has the exact size and comes before any file is asked for."""
    said: list[tuple[Offer, list[str]]] = []
    bring(hub, tmp_path, announce=lambda offer: said.append((offer, list(hub.asked))))
    offer, asked_before = said[0]

    assert offer.weights_bytes == (hub.folder / WEIGHTS).stat().st_size
    assert not any("resolve" in line for line in asked_before)


def test_the_same_version_is_not_brought_twice(hub, tmp_path):
    """A second fetch asks for the facts and for no file."""
    bring(hub, tmp_path / "models")
    hub.asked.clear()
    again = bring(hub, tmp_path / "models")

    assert not again.brought
    assert not any("resolve" in line for line in hub.asked)


def test_a_new_version_replaces_the_old_folder_whole(hub, tmp_path):
    """After an update weights and texts are the new ones, and nothing of the old version or of the work is left; a
    reader keeps the file it has: mapped files never shrink under it."""
    placed = bring(hub, tmp_path / "models").folder
    before = (placed / WEIGHTS).read_bytes()
    with (placed / WEIGHTS).open("rb") as reader:
        weights_into(hub.folder, 2.0, size=10)
        (hub.folder / "birefnet.py").unlink()
        hub.commit = "f" * 40
        bring(hub, tmp_path / "models")
        assert reader.read() == before

    assert sha256_of(placed / WEIGHTS) == sha256_of(hub.folder / WEIGHTS)
    assert sorted(os.listdir(placed)) == ["config.json", "config.published.json", WEIGHTS, ORIGIN]
    assert os.listdir(tmp_path / "models") == [LITE.name]


@pytest.mark.integration
def test_an_interrupted_download_is_resumed(hub, tmp_path):
    """After a lost connection only the rest is asked for, and the result is whole."""
    weights_into(hub.folder, size=6_000_000)
    hub.cut_after = 15_000_000
    fetched = bring(hub, tmp_path / "models")

    assert len(hub.ranges) == 1
    assert 0 < hub.ranges[0] <= 15_000_000
    assert (fetched.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()


def test_a_wrong_digest_is_refused_and_forgotten(hub, tmp_path):
    """Weights that are not those the registry pins are not placed, and the bad download is not kept to be resumed."""
    pinned = dataclasses.replace(SMALL, sha256="0" * 64)
    with pytest.raises(ModelError, match="the registry states 0000"):
        bring(hub, tmp_path / "models", pinned)

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
        bring(hub, tmp_path / "models")


@pytest.mark.parametrize("below", ["", LITE.name], ids=["the folder itself", "below its name"])
def test_a_folder_serves_without_network(tmp_path, below):
    """--from takes the weights in the folder, or in <folder>/<name>/ as another machine's models directory has them."""
    weights_into(tmp_path / "usb" / below)
    fetched = bring(FolderSource(tmp_path / "usb"), tmp_path / "models")

    assert (fetched.folder / WEIGHTS).read_bytes() == (tmp_path / "usb" / below / WEIGHTS).read_bytes()


def test_a_carried_folder_is_held_to_its_record(hub, tmp_path):
    """Weights that were carried here and damaged on the way are refused by the digest recorded at their fetch."""
    carried = bring(hub, tmp_path / "usb").folder
    with (carried / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")

    with pytest.raises(ModelError, match="states"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models")
    assert not (tmp_path / "models" / LITE.name).exists()


def test_a_record_that_is_no_digest_is_no_digest(tmp_path):
    """A carried folder whose record states nonsense is refused, not a crash."""
    weights_into(tmp_path / "usb")
    (tmp_path / "usb" / ORIGIN).write_text('{"sha256": ["x"]}')

    with pytest.raises(ModelError, match="states"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models")


def test_another_model_in_the_folder_is_noticed(hub, tmp_path):
    """A folder whose record names another model is refused before anything is copied."""
    bring(hub, tmp_path / "usb")
    other = dataclasses.replace(REGISTRY["birefnet-portrait"], backbone=None)

    with pytest.raises(ModelError, match="holds birefnet-lite, not birefnet-portrait"):
        bring(FolderSource(tmp_path / "usb" / LITE.name), tmp_path / "models", other)


def test_weights_are_held_to_the_published_network(tmp_path):
    """Swin-T weights offered as the Swin-L model are refused by their header, with what they are; as themselves a file
    with every published name and shape is placed."""
    hollow(tmp_path / "usb" / WEIGHTS, "swin_v1_t")
    with pytest.raises(ModelError, match="backbone Swin-T"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models", REGISTRY["birefnet"])
    bring(FolderSource(tmp_path / "usb"), tmp_path / "models", LITE)

    assert installed(LITE, tmp_path / "models").entry is LITE


def test_a_full_disk_is_reported_before_the_download(tmp_path, monkeypatch):
    """Where the space is missing the numbers are reported and nothing is fetched."""
    weights_into(tmp_path / "usb")
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)

    with pytest.raises(ModelError, match="1 MB are free"):
        bring(FolderSource(tmp_path / "usb"), tmp_path / "models")


def test_two_fetches_of_one_model_exclude_each_other(tmp_path):
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


def test_texts_of_an_interrupted_fetch_are_removed(tmp_path):
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
