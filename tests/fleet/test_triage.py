"""What a delivery asks for: one image that cannot be read is put back alone, a root that cannot be read is avoided."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rmbgd.errors import Reason
from rmbgd.fleet.attempts import AttemptLedger
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import HOT, Announcement, consumer
from rmbgd.fleet.pulls import ACK, Delivery, put_back
from rmbgd.fleet.root import RootAnswer
from rmbgd.fleet.share import SharedRoot, fingerprint_of
from rmbgd.fleet.triage import Settled, Todo, Triage
from tests.support.workspace import Workspace

pytestmark = pytest.mark.integration


@pytest.fixture
def ledger(fitted: Broker) -> AttemptLedger:
    return AttemptLedger(fitted, "test")


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
        deliveries.append(Delivery(HOT, consumer("shop"), data, "", number, 1, 0))
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


@pytest.mark.parametrize("retry_wait", [30.0, 3000.0])
def test_an_image_that_cannot_be_read_for_an_hour_is_rejected(
    tmp_path: Path, ledger: AttemptLedger, monkeypatch: pytest.MonkeyPatch, retry_wait: float
) -> None:
    """Or its name would go round for ever. Only looks at it count, and not how often or long it was on the queue."""
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    data = Announcement("shop", "a.png", fingerprint_of(os.lstat(it.drop("a.png"))), "default").encode()
    real = os.open

    def denied(path: str, *given: Any, **more: Any) -> int:
        if str(path).endswith("a.png"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", denied)
    triage = Triage({"shop": root}, ledger, it.events, retry_wait)
    seen = [triage.look(Delivery(HOT, consumer("shop"), data, "", 1, 90 + number, 0)) for number in range(2)]
    it.close()
    assert isinstance(seen[0], Settled)
    assert seen[0].avoid is None
    if retry_wait < 1800:
        assert isinstance(seen[1], Settled)
    else:
        assert isinstance(seen[1], Todo)
        assert (seen[1].found.state, seen[1].found.reason) == ("refused", Reason.IO_ERROR)
        assert os.strerror(errno.EACCES) in seen[1].found.detail


def test_names_with_another_recipe_are_avoided_only_where_none_fits(tmp_path: Path, ledger: AttemptLedger) -> None:
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    triage = Triage({"shop": root}, ledger, it.events, 30.0)
    right = Announcement("shop", "a.png", fingerprint_of(os.lstat(it.drop("a.png"))), "default")
    other = replace(right, recipe="yesterday").encode()

    def look(data: bytes, deliveries: int) -> Todo | Settled:
        return triage.look(Delivery(HOT, consumer("shop"), data, "", 1, deliveries, 0))

    first = look(other, 1)
    assert isinstance(first, Settled)
    assert first.avoid is not None
    assert isinstance(look(right.encode(), 1), Todo)
    later = [look(other, deliveries) for deliveries in (1, 2, 20, 21)]
    it.close()
    assert all(isinstance(each, Settled) and each.avoid is None for each in later)
    assert [each.word for each in later if isinstance(each, Settled)] == [
        put_back(30.0), put_back(60.0), put_back(600.0), ACK,
    ]  # fmt: skip
    assert [event["why"] for event in it.events.named("lease.dropped")] == ["superseded"]


@pytest.mark.parametrize("reason", [Reason.CRASH_LOOP, Reason.CORRUPT])
def test_a_letter_that_was_not_stored_with_its_refusal_is_stored_later(
    tmp_path: Path, ledger: AttemptLedger, monkeypatch: pytest.MonkeyPatch, reason: Reason
) -> None:
    """Its worker ended between the two, or the broker was away."""
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    monkeypatch.setattr(root, "answer", lambda *_, **__: RootAnswer("failed", {"reason": str(reason)}))
    data = Announcement("shop", "a.png", "1-1", "default").encode()
    seen = [
        Triage({"shop": root}, ledger, it.events, 30.0).look(Delivery(HOT, consumer("shop"), data, "", 1, times, 0))
        for times in (1, 2)
    ]
    it.close()
    assert [each.dead for each in seen if isinstance(each, Settled)] == ["", "shop" if reason == "crash_loop" else ""]


def test_a_root_that_is_away_is_avoided(tmp_path: Path, ledger: AttemptLedger) -> None:
    it = Workspace(tmp_path, originals="keep")
    root = SharedRoot(it.folder, it.config.recipe_of(it.folder))
    assert root.trouble() == ""
    it.roots["input"].rename(tmp_path / "away")
    data = Announcement("shop", "a.png", "1-1", "default").encode()
    seen = Triage({"shop": root}, ledger, it.events, 30.0).look(Delivery(HOT, consumer("shop"), data, "", 1, 1, 0))
    it.close()
    assert isinstance(seen, Settled)
    assert seen.avoid is not None
    assert str(it.roots["input"]) in seen.avoid[1]
