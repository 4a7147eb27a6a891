"""The audit of a service's folders: every input in exactly one place, every output whole, right and its own.

Looks at the folders as an operator does, and into the ledger when the service is down.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

from rmbgd.clock import SystemClock
from rmbgd.errors import Reason
from rmbgd.naming import expand, is_temporary
from rmbgd.store.ledger import Ledger
from tests.support.images import assert_cutout_of, rgba_of

PLACES = ("done", "failed", "input")
SET_OF_THREE: dict[str, Any] = {
    "deliver": [
        {"path": "{dir}/{stem}.png"},
        {"path": "small/{dir}/{stem}.png", "longest_side": 32},
        {"path": "masks/{dir}/{stem}.png", "content": "mask"},
    ]
}
"""A recipe whose first file is what one without any gives."""
RECIPES: dict[str, dict[str, Any]] = {"one": {}, "three": SET_OF_THREE}  # by the number of files an image gives


def outputs_of(name: str, recipe: Mapping[str, Any] | None = None) -> list[str]:
    """The files of an image's set, in their order, where its stem is its own."""
    templates = [each["path"] for each in (recipe or {}).get("deliver", [{"path": "{dir}/{stem}.png"}])]
    return [expand(template, name, ".png", when=date(2026, 1, 31))[0] for template in templates]


def files(root: Path) -> list[str]:
    """Regular files below `root`, as relative paths, without the service's own folder."""
    found = []
    for directory, names, here in os.walk(root):
        if ".rmbgd" in names:
            names.remove(".rmbgd")
        found += [os.path.relpath(os.path.join(directory, name), root) for name in here]
    return sorted(found)


def claimed(root: Path) -> list[str]:
    """What lies in the claim folder, beside its lock."""
    own = root / ".rmbgd"
    return sorted(set(os.listdir(own)) - {"lock"}) if own.is_dir() else []


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
    roots: Mapping[str, Path],
    dropped: Mapping[str, bytes],
    *,
    bad: Mapping[str, Reason] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """All is over: good ones are cutouts and archived, bad ones refused with their reason, nothing else lies about.

    For archive mode, inputs with stems of their own, and losslessly compressed images.
    """
    bad = bad or {}
    ended = places(roots, dropped)
    assert ended == {name: "failed" if name in bad else "done" for name in dropped}
    assert claimed(roots["input"]) == []
    sets = {name: outputs_of(name, recipe) for name in dropped if name not in bad}
    published = sorted(path for outputs in sets.values() for path in outputs)
    assert published == [name for name in files(roots["output"]) if not name.endswith(".json")]
    for name, (first, *others) in sets.items():
        assert_cutout_of(dropped[name], roots["output"] / first)
        for other in others:
            rgba_of(roots["output"] / other)
    for name, reason in bad.items():
        assert reason_of(roots["failed"], name) == reason
    assert [name for root in roots.values() for name in files(root) if ".rmbgd" in name] == []


def reason_of(failed: Path, name: str) -> str:
    """What the reason file beside a refused original says."""
    return str(json.loads((failed / f"{name}.error.json").read_bytes())["reason"])


class Conservation:
    """The cheap audit between two lives: every original in one place, every archived one with its cutout.

    For archive mode on one file system, and while the service is down. Looks at each cutout once, so that thousands of
    audits cost what one does. What is whole at the end is `assert_complete`'s.
    """

    def __init__(
        self, roots: Mapping[str, Path], dropped: Mapping[str, bytes], recipe: Mapping[str, Any] | None = None
    ) -> None:
        self._roots, self._recipe = roots, recipe
        self._dropped = dropped  # grows while the service is fed
        self._whole: set[str] = set()

    def check(self) -> dict[str, int]:
        """How many originals are where. Raises AssertionError."""
        # Without the temporaries that a killed service leaves: a copy, a reason file half written.
        done, failed, published = (
            [name for name in files(self._roots[role]) if not is_temporary(os.path.basename(name))]
            for role in ("done", "failed", "output")
        )
        failed = [name for name in failed if not name.endswith(".error.json")]
        waiting, taken = files(self._roots["input"]), claimed(self._roots["input"])
        where = {"input": len(waiting), "claimed": len(taken), "done": len(done), "failed": len(failed)}
        assert sum(where.values()) == len(self._dropped), (
            f"{len(self._dropped)} were dropped, but there are {where}; failed: {failed}"
        )
        cutouts = {path for name in done for path in outputs_of(name, self._recipe)}
        assert cutouts <= set(published), f"archived without a cutout: {cutouts - set(published)}"
        firsts = {outputs_of(name, self._recipe)[0]: data for name, data in self._dropped.items()}
        for name in set(published) - self._whole:  # also what is published, and its original not yet archived
            cutout = self._roots["output"] / name
            try:
                if name in firsts:
                    assert_cutout_of(firsts[name], cutout)
                else:
                    rgba_of(cutout)
            except OSError as error:  # what Pillow says of a file that is cut off
                raise AssertionError(f"{cutout}, {cutout.stat().st_size} bytes, is no image: {error}") from error
        self._whole |= cutouts
        return where


def assert_ledger_settled(state: Path, *, done: int, failed: int = 0) -> None:
    """The service is down, and by its ledger nothing is open: accepted = published + refused."""
    with closing(Ledger(state / "ledger.sqlite", SystemClock())) as ledger:
        assert ledger.unfinished() == []
        found = {state: count for state, count in ledger.counts().items() if count}
    assert found == {key: count for key, count in (("done", done), ("failed", failed)) if count}


def assert_each_told(endings: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Job -> how many events told its outcome: one, and others only by a next start that says so. In any order."""
    told: dict[int, list[bool]] = {}
    for event in endings:
        told.setdefault(event["job"], []).append(bool(event.get("recovered")))
    twice = {job: each for job, each in told.items() if each.count(False) > 1}
    assert not twice, f"told more than once, job -> whether by a next start: {twice}"
    return {job: len(each) for job, each in told.items()}


def assert_settled(
    service: Any,
    dropped: Mapping[str, bytes],
    *,
    bad: Mapping[str, Reason] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """P0, after every fault: folders, outputs, ledger and events tell the same story, and each image ends once.

    For archive mode and inputs of one version each. The service, a ServiceUnderTest, may be up or down.

    (a) each original lies in one place, unchanged, each good one's cutout is right, nothing else lies about;
    (b) the ledger has one job for each, ended as the folders say, and, when the service is down, nothing is open;
    (c) each output's bytes hash to what the ledger and its event say;
    (d) each outcome is told once, and once more only by a next start that says so.
    """
    bad = bad or {}
    assert_complete(service.roots, dropped, bad=bad, recipe=recipe)
    with closing(sqlite3.connect(f"file:{service.state / 'ledger.sqlite'}?mode=ro", uri=True)) as ledger:
        ledger.row_factory = sqlite3.Row
        found = [dict(row) for row in ledger.execute("SELECT * FROM job WHERE state <> 'waiting' ORDER BY id")]
    unretired = [row for row in found if row["retired_at"] is None]
    assert not service.is_down or not unretired, f"the ledger has open rows: {unretired}"
    jobs = [row for row in found if not row["path"].startswith(b"turn-")]
    rows = {os.fsdecode(row["path"]): row for row in jobs}
    assert len(rows) == len(jobs), "an image was worked on as two jobs"
    assert rows.keys() == dropped.keys(), "the ledger knows other images than were dropped"
    told = service.recorded("image.done") + service.recorded("image.failed")
    told = [event for event in told if event["path"] in dropped]
    assert_each_told(told)
    events = {event["path"]: event for event in told}
    assert events.keys() == dropped.keys()
    for path, row in rows.items():
        event = events[path]
        state, reason = ("failed", bad[path]) if path in bad else ("done", None)
        assert (row["id"], row["state"], row["reason"]) == (event["job"], state, reason), path
        assert (event["event"], event.get("reason")) == (f"image.{state}", reason), path
        if path in bad:
            continue
        data = (service.output / os.fsdecode(row["target"])).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert digest == row["sha256_out"] == event["sha256_out"], f"{path}: what is published is not what was recorded"
        assert len(data) == row["size_out"] == event["bytes_out"], path
        for each in event.get("outputs", ()):
            data = (service.output / each["path"]).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (each["sha256"], each["size"]), each["path"]
