"""The audit of a service's folders: every input in exactly one place, every output whole, right and its own.

Looks at the folders as an operator does, and into the ledger when the service is down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rmbgd.clock import SystemClock
from rmbgd.errors import Reason
from rmbgd.store.ledger import Ledger
from tests.support.images import assert_cutout_of

PLACES = ("done", "failed", "input")


def files(root: Path) -> list[str]:
    """Regular files below `root`, as relative paths, without the service's own folder."""
    found = []
    for directory, names, here in os.walk(root):
        if ".rmbgd" in names:
            names.remove(".rmbgd")
        found += [os.path.relpath(os.path.join(directory, name), root) for name in here]
    return sorted(found)


def claimed(root: Path) -> list[str]:
    """What lies in the claim folder."""
    own = root / ".rmbgd"
    return sorted(os.listdir(own)) if own.is_dir() else []


def places(roots: Mapping[str, Path], dropped: Mapping[str, bytes]) -> dict[str, str]:
    """Where each input of archive mode is: done, failed or input; fails when it is nowhere, twice, or was altered."""
    standing = {place: set(files(roots[place])) for place in PLACES}
    ended = {}
    for name, data in dropped.items():
        where = [place for place in PLACES if name in standing[place]]
        assert len(where) == 1, f"{name!r} is in {where or 'no place'}; claimed: {claimed(roots['input'])}; {standing}"
        assert (roots[where[0]] / name).read_bytes() == data, f"{name!r} in {where[0]} is not what was dropped"
        ended[name] = where[0]
    return ended


def assert_complete(
    roots: Mapping[str, Path], dropped: Mapping[str, bytes], *, bad: Mapping[str, Reason] | None = None
) -> None:
    """All is over: good ones are cutouts and archived, bad ones refused with their reason, nothing else lies about.

    For archive mode, inputs with stems of their own, and losslessly compressed images.
    """
    bad = bad or {}
    ended = places(roots, dropped)
    assert ended == {name: "failed" if name in bad else "done" for name in dropped}
    assert claimed(roots["input"]) == []
    good = {os.path.splitext(name)[0] + ".png": data for name, data in dropped.items() if name not in bad}
    assert sorted(good) == [name for name in files(roots["output"]) if not name.endswith(".json")]
    for name, data in good.items():
        assert_cutout_of(data, roots["output"] / name)
    for name, reason in bad.items():
        assert reason_of(roots["failed"], name) == reason
    assert [name for root in roots.values() for name in files(root) if ".rmbgd" in name] == []


def reason_of(failed: Path, name: str) -> str:
    """What the reason file beside a refused original says."""
    return str(json.loads((failed / f"{name}.error.json").read_bytes())["reason"])


def assert_ledger_settled(state: Path, *, done: int, failed: int = 0) -> None:
    """The service is down, and by its ledger nothing is open: accepted = published + refused."""
    ledger = Ledger(state / "ledger.sqlite", SystemClock())
    try:
        assert ledger.unfinished() == []
        found = {state: count for state, count in ledger.counts().items() if count}
    finally:
        ledger.close()
    assert found == {key: count for key, count in (("done", done), ("failed", failed)) if count}


def assert_each_told(endings: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Job -> how many events told its outcome: one, and others only by a next start that says so. In any order."""
    told: dict[int, list[bool]] = {}
    for event in endings:
        told.setdefault(event["job"], []).append(bool(event.get("recovered")))
    twice = {job: each for job, each in told.items() if each.count(False) > 1}
    assert not twice, f"told more than once, job -> whether by a next start: {twice}"
    return {job: len(each) for job, each in told.items()}
