from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmbgd.errors import ModelError
from rmbgd.models import fetch as fetching
from rmbgd.models.checkpoint import sha256_of
from rmbgd.models.fetch import FolderSource, HubSource, Offer, fetch
from rmbgd.models.registry import REGISTRY
from rmbgd.models.store import ORIGIN, WEIGHTS, read_json
from tests.models.checkpoints import NEW_CODE
from tests.models.hub_server import COMMIT, Hub, serving

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LITE = REGISTRY["birefnet-lite"]
# The same entry without a network to fit: the weights may then be small.
SMALL = dataclasses.replace(LITE, backbone=None)


def bring(source, models, entry=SMALL, **more):
    """`source`: a hub's or a folder's, or the hub or the folder itself."""
    if isinstance(source, Hub):
        source = HubSource(endpoint=source.endpoint)
    elif isinstance(source, Path):
        source = FolderSource(source)
    no_bar = contextlib.nullcontext(lambda count: None)
    rest = {"now": NOW, "announce": lambda offer: None, "bar": lambda label, total: no_bar}
    return fetch(entry, source, models, **rest | more)


def weights_into(folder, value=1.0, size=70_000):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.full(size, value, np.float32)}, folder / WEIGHTS)
    return folder


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def usb(tmp_path):
    """A folder that somebody carried here, with weights in it."""
    return weights_into(tmp_path / "usb")


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


def test_the_hub_gives_weights_and_texts_only(hub, models):
    """The pickle is not even asked for; the author's configuration, which names his code, is kept beside ours."""
    published = {"auto_map": {"AutoModelForImageSegmentation": "birefnet.BiRefNet"}, "bb_pretrained": False}
    (hub.folder / "config.json").write_text(json.dumps(published))
    fetched = bring(hub, models)
    files = {"birefnet.py", "config.json", "config.published.json", WEIGHTS, ORIGIN}
    assert set(os.listdir(models / LITE.name)) == files
    assert not any("pytorch_model.bin" in line for line in hub.asked)
    assert (fetched.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    origin, ours, theirs = (read_json(fetched.folder / n) for n in (ORIGIN, "config.json", "config.published.json"))
    assert origin["sha256"] == fetched.sha256 == sha256_of(hub.folder / WEIGHTS)
    assert (origin["model"], origin["revision"], origin["licence"]) == (LITE.name, COMMIT, "MIT")
    assert (ours["model_type"], theirs) == ("birefnet", published)


def test_a_configuration_of_ours_is_carried_as_it_is(usb, models):
    saved = {"model_type": "birefnet", "patch_order": "tile_first"}
    (usb / "config.json").write_text(json.dumps(saved))
    assert read_json(bring(usb, models).folder / "config.json") == saved


def test_size_is_announced_before_the_first_byte(hub, tmp_path):
    said: list[tuple[Offer, list[str]]] = []
    bring(hub, tmp_path, announce=lambda offer: said.append((offer, list(hub.asked))))
    ((offer, asked_before),) = said
    assert offer.weights_bytes == (hub.folder / WEIGHTS).stat().st_size
    assert not any("resolve" in line for line in asked_before)


def test_the_same_version_is_not_brought_twice(hub, models):
    bring(hub, models)
    hub.asked.clear()
    assert not bring(hub, models).brought
    assert not any("resolve" in line for line in hub.asked)


def test_a_new_version_replaces_the_old_folder_whole(hub, models):
    """Nothing of the old version is left; a reader keeps the file it has: mapped files never shrink under it."""
    placed = bring(hub, models).folder
    before = (placed / WEIGHTS).read_bytes()
    with (placed / WEIGHTS).open("rb") as reader:
        weights_into(hub.folder, 2.0, size=10)
        (hub.folder / "birefnet.py").unlink()
        hub.commit = "f" * 40
        bring(hub, models)
        assert reader.read() == before
    assert sha256_of(placed / WEIGHTS) == sha256_of(hub.folder / WEIGHTS)
    assert sorted(os.listdir(placed)) == ["config.json", "config.published.json", WEIGHTS, ORIGIN]
    assert os.listdir(models) == [LITE.name]


@pytest.mark.integration
def test_an_interrupted_download_is_resumed(hub, models):
    weights_into(hub.folder, size=6_000_000)
    hub.cut_after = 15_000_000
    fetched = bring(hub, models)
    assert len(hub.ranges) == 1
    assert 0 < hub.ranges[0] <= 15_000_000
    assert (fetched.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()


def test_a_wrong_digest_is_refused_and_forgotten(hub, models):
    """The bad download is not kept to be resumed."""
    with pytest.raises(ModelError, match="the registry states 0000"):
        bring(hub, models, dataclasses.replace(SMALL, sha256="0" * 64))
    assert os.listdir(models) == []


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
def test_refusals_of_the_hub_are_one_line(hub, models, status, code, said):
    hub.error = (status, code)
    with pytest.raises(ModelError, match=said) as refusal:
        bring(HubSource("v9", endpoint=hub.endpoint), models)
    assert "\n" not in str(refusal.value)


def test_without_network_one_line_names_the_way_out(models):
    with pytest.raises(ModelError, match=r"no network.*--from FOLDER") as refusal:
        bring(HubSource(endpoint="http://127.0.0.1:9"), models)
    assert "\n" not in str(refusal.value)
    assert not models.exists()


def test_a_repository_without_safetensors_is_refused(hub, models):
    (hub.folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        bring(hub, models)


def test_a_pickle_is_not_fetched_and_the_way_to_convert_it_is_said(hub, models):
    """As ToonOut is published."""
    (hub.folder / WEIGHTS).rename(hub.folder / "tuned.pth")
    with pytest.raises(ModelError, match=r"tuned\.pth only, a pickle.*convert_checkpoint.*--from FOLDER"):
        bring(hub, models, dataclasses.replace(SMALL, pickle="tuned.pth"))
    assert not any("resolve" in line for line in hub.asked)


def test_a_commit_gives_the_weights_that_it_gave_at_first(hub, models):
    """Trust on first use: a hub that has other weights for the same commit is not believed; what is here stays."""
    first = bring(hub, models)
    weights_into(hub.folder, 2.0)
    for again in (False, True):
        with pytest.raises(ModelError, match=f"the first fetch of this commit states {first.sha256}"):
            bring(hub, models, again=again)
    assert sha256_of(first.folder / WEIGHTS) == first.sha256 == read_json(first.folder / ORIGIN)["sha256"]


@pytest.mark.parametrize("below", ["", LITE.name], ids=["the folder itself", "below its name"])
def test_a_folder_serves_without_network(tmp_path, models, below):
    source = weights_into(tmp_path / "carried" / below)
    assert sha256_of(source / WEIGHTS) == bring(tmp_path / "carried", models).sha256


def test_a_carried_folder_is_held_to_its_record(hub, tmp_path, models):
    carried = bring(hub, tmp_path / "usb").folder
    with (carried / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(ModelError, match="states"):
        bring(tmp_path / "usb", models)
    assert not (models / LITE.name).exists()


@pytest.mark.parametrize(
    ("record", "said"),
    [({"sha256": ["x"]}, "states"), ({"model": "birefnet-portrait"}, "holds birefnet-portrait, not birefnet-lite")],
    ids=["no digest", "another model"],
)
def test_a_record_that_does_not_fit_is_refused(usb, models, record, said):
    (usb / ORIGIN).write_text(json.dumps(record))
    with pytest.raises(ModelError, match=said):
        bring(usb, models)


def test_a_full_disk_is_reported_before_the_download(usb, models, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(ModelError, match="1 MB are free"):
        bring(usb, models)


def test_two_fetches_of_one_model_exclude_each_other(usb, models):
    refusals = []

    class Meanwhile(FolderSource):
        def bring(self, entry, offer, into, bar):
            with pytest.raises(ModelError, match="another fetch") as refusal:
                bring(usb, models)
            refusals.append(refusal)
            super().bring(entry, offer, into, bar)

    bring(Meanwhile(usb), models)
    assert len(refusals) == 1


def test_texts_of_an_interrupted_fetch_are_removed(usb, models):
    """The author's code of another version does not end beside these weights."""
    staged = models / f".fetching-{LITE.name}"
    staged.mkdir(parents=True)
    (staged / "birefnet.py").write_text(NEW_CODE)
    assert not (bring(usb, models).folder / "birefnet.py").exists()


def test_the_service_may_read_what_was_fetched(usb, models):
    """Whatever the operator's umask."""
    before = os.umask(0o077)
    try:
        fetched = bring(usb, models)
    finally:
        os.umask(before)
    assert fetched.folder.stat().st_mode & 0o777 == 0o755
    assert {(fetched.folder / n).stat().st_mode & 0o777 for n in os.listdir(fetched.folder)} == {0o644}
