"""What a delivery asks for: one image that cannot be read is put back alone, a root that cannot be read is avoided."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.config.load import SourceSettings
from rmbgd.errors import Reason
from rmbgd.fleet.attempts import AttemptLedger
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import HOT, Announcement, consumer
from rmbgd.fleet.pulls import Delivery
from rmbgd.fleet.share import SharedRoot, fingerprint_of
from rmbgd.fleet.streams import set_up
from rmbgd.fleet.triage import Settled, Todo, Triage
from tests.support.broker import Broker as BrokerUnderTest
from tests.support.workspace import Workspace

pytestmark = pytest.mark.integration


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[AttemptLedger]:
    with BrokerUnderTest(tmp_path) as server:
        broker = Broker(SourceSettings(servers=[server.url]), "test", lambda _: None)
        broker.start()
        try:
            broker.wait_until_connected(20)
            set_up(broker, ["shop"], 60.0, change=False)
            yield AttemptLedger(broker, "test")
        finally:
            broker.close()


class Unreadable:
    """os.lstat of a disk that fails at one path, and below it."""

    def __init__(self, path: Path) -> None:
        self._path, self._lstat = str(path), os.lstat

    def __call__(self, path: str, **given: int | None) -> os.stat_result:
        if str(path).startswith(self._path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return self._lstat(path, **given)


@pytest.mark.parametrize("whole", [False, True], ids=["one image", "the root"])
def test_an_image_that_cannot_be_read_does_not_keep_others_from_their_worker(
    tmp_path: Path, ledger: AttemptLedger, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    triage = Triage({"shop": root}, ledger, it.events, 30.0)
    deliveries = []
    for number, name in enumerate(("bad.png", "good.png"), 1):
        fingerprint = fingerprint_of(os.lstat(it.drop(name)))
        data = Announcement("shop", name, fingerprint, "default").encode()
        deliveries.append(Delivery(HOT, consumer("shop"), data, "", number, 1, 0, 0.0))
    inputs = it.roots["input"]
    if whole:
        monkeypatch.setattr(os, "scandir", Unreadable(inputs))
    monkeypatch.setattr(os, "lstat", Unreadable(inputs if whole else inputs / "bad.png"))
    bad, good = map(triage.look, deliveries)
    it.close()
    assert isinstance(bad, Settled)
    assert (bad.avoid is not None) is whole
    assert isinstance(good, Settled if whole else Todo)
    assert [event["path"] for event in it.events.named("image.postponed")] == ([] if whole else ["bad.png"])


@pytest.mark.parametrize("hours", [0.5, 2.0])
def test_an_image_that_cannot_be_read_for_an_hour_is_rejected(
    tmp_path: Path, ledger: AttemptLedger, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """Or its name would go round for ever."""
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    data = Announcement("shop", "a.png", fingerprint_of(os.lstat(it.drop("a.png"))), "default").encode()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    announced = time.time() - hours * 3600
    delivery = Delivery(HOT, consumer("shop"), data, "", 1, 20, 0, announced)
    seen = Triage({"shop": root}, ledger, it.events, 30.0).look(delivery)
    it.close()
    if hours < 1:
        assert isinstance(seen, Settled)
        assert seen.avoid is None
    else:
        assert isinstance(seen, Todo)
        assert (seen.found.state, seen.found.reason) == ("refused", Reason.IO_ERROR)
        assert "may not read it" in seen.found.detail


def test_a_root_that_is_away_is_avoided(tmp_path: Path, ledger: AttemptLedger) -> None:
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    assert root.trouble() == ""
    it.roots["input"].rename(tmp_path / "away")
    data = Announcement("shop", "a.png", "1-1", "default").encode()
    seen = Triage({"shop": root}, ledger, it.events, 30.0).look(Delivery(HOT, consumer("shop"), data, "", 1, 1, 0, 0.0))
    it.close()
    assert isinstance(seen, Settled)
    assert seen.avoid is not None
    assert str(it.roots["input"]) in seen.avoid[1]
