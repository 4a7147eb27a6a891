"""Sweep: what is old goes behind what is new, a full queue gets nothing, and one bad image or root ends nothing."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmbgd.cli import fleet_actions
from rmbgd.errors import Exit, RmbgdError
from rmbgd.fleet import message
from rmbgd.fleet import sweep as module
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.message import BULK, HOT
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.root import RootAnswer
from rmbgd.fleet.share import SharedRoot
from rmbgd.fleet.status import FleetStatus
from rmbgd.fleet.streams import queue_states
from rmbgd.fleet.sweep import sweep
from tests.support.workspace import Workspace

pytestmark = pytest.mark.integration


@pytest.fixture
def root(tmp_path: Path) -> Iterator[SharedRoot]:
    it = Workspace(tmp_path, originals="keep")
    for number in range(5):
        os.utime(it.drop(f"{number}.png"), (1e9, 1e9))
    yield SharedRoot(it.folder, it.config.recipe_of(it.folder))
    it.close()


def waiting(broker: Broker) -> dict[str, int]:
    return {state.stream: state.waiting for state in queue_states(broker, ["shop"])}


def test_what_came_lately_is_announced_before_what_is_old(fitted: Broker, root: SharedRoot) -> None:
    assert sweep(fitted, root).announced == 5
    assert waiting(fitted) == {HOT: 5, BULK: 0}


def test_one_sweep_announces_so_many_old_images_and_leaves_the_rest(
    fitted: Broker, root: SharedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message, "LATELY", -1.0)
    monkeypatch.setattr(module, "OLD_MAXIMUM", 3)
    swept = sweep(fitted, root)
    assert (swept.seen, swept.announced, swept.left) == (5, 3, 2)
    assert waiting(fitted) == {HOT: 0, BULK: 3}
    monkeypatch.setattr(module, "WAITING_MAXIMUM", 2)  # a backfill is at work
    swept = sweep(fitted, root)
    assert (swept.seen, swept.announced, swept.left) == (5, 0, 5)


def test_a_full_queue_leaves_images_for_the_next_sweep(
    fitted: Broker, root: SharedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    answers: Iterator[list[BrokerFault | None]] = iter([[None, None], [None, BrokerFault("full", "maximum messages")]])
    monkeypatch.setattr(fitted, "publish", lambda _: next(answers))
    swept = sweep(fitted, root)
    assert (swept.seen, swept.announced, swept.left) == (5, 3, 2)


@pytest.mark.parametrize("whole", [False, True], ids=["one record", "the root"])
def test_a_record_that_cannot_be_read_keeps_no_other_image_back(
    fitted: Broker, root: SharedRoot, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    real = root.answer

    def answer(key: str, fingerprint: str, **more: Any) -> RootAnswer | None:
        if key == "2.png":
            if whole:
                monkeypatch.setattr(root, "trouble", lambda: "it is away")
            raise OSError(errno.EIO, os.strerror(errno.EIO), key)
        return real(key, fingerprint, **more)

    monkeypatch.setattr(root, "answer", answer)
    if whole:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            sweep(fitted, root)
    else:
        swept = sweep(fitted, root)
        assert (swept.seen, swept.announced, swept.unknown) == (5, 4, 1)


def test_a_root_that_is_away_is_told_of_and_the_others_are_swept(
    fitted: Broker, root: SharedRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root.folder.model_copy(update={"name": "away", "input": tmp_path / "nowhere"})
    away = SharedRoot(folder, root.recipe)
    with pytest.raises(RmbgdError, match="nowhere"):
        sweep(fitted, away)
    fleet: Any = argparse.Namespace(broker=fitted, roots={"away": away, "shop": root})
    assert fleet_actions._sweep(fleet, argparse.Namespace(root=[], days=None, json=False)) == Exit.FAILED
    told = capsys.readouterr()
    assert "root 'away': it is not there" in told.err
    assert "shop: 5 images, 5 without a result announced" in told.out


def test_the_status_says_what_troubles_each_worker(capsys: pytest.CaptureFixture[str]) -> None:
    worker = {"host": "h1", "pid": 7, "trouble": {"shop": "it is missing", "": "its clock is 90 s behind the broker's"}}
    fleet_actions._print_status(FleetStatus([worker, {"host": "h2", "pid": 8}], [], 0, []))
    told = capsys.readouterr().out
    assert "h1 7: root 'shop': it is missing" in told
    assert "h1 7: its clock is 90 s behind the broker's" in told
    assert "h2 8:" not in told
