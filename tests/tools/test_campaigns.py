"""The arithmetic of the soak's slopes, the counts of campaigns, and the verdicts on uploads."""

from __future__ import annotations

import json
import math
import os
import random
import sys
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tools import campaign
from tools.clients import CLIENTS, Upload, judge
from tools.soak import read, slope


@pytest.mark.parametrize("true", [0.0, 5.0])
def test_slope_lies_within_its_bounds(true: float) -> None:
    """In some 95 of 100 series with noise and a new level in each life, whose readings resemble their neighbours."""
    dice, within = random.Random(1), 0
    for _ in range(200):
        values = []
        for life in range(3):
            noise = accumulate((dice.gauss(0, 1) for _ in range(100)), lambda last, new: 0.5 * last + new)
            values.append([1000 * life + true * step / 100 + each for step, each in enumerate(noise)])
        _, low, high = slope([[step / 100 for step in range(100)]] * 3, values)
        within += low <= true <= high
    assert 180 <= within <= 199


def test_too_few_readings_bound_nothing_and_a_straight_line_has_no_doubt() -> None:
    assert slope([[0, 1], [2, 3]], [[5, 6], [0, 1]])[1:] == (-math.inf, math.inf)
    assert slope([[0, 1, 2, 3, 4]], [[0, 2, 4, 6, 8]]) == (2, 2, 2)


def test_memory_is_read_of_the_life_that_is_watched(tmp_path: Path) -> None:
    memory, pid = tmp_path / "memory", os.getpid()
    memory.write_text(f"{pid + 1} 5 4096")
    assert list(read(pid, tmp_path, memory, life=0, now=0.0)) == []
    memory.write_text(f"{pid} 5 4096")
    (reading,) = read(pid, tmp_path, memory, life=0, now=0.0)
    assert (reading.heap, reading.outside) == (5, reading.rss - 4096)


def test_a_campaign_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Legs that the file tells of are not run again, one that found something is; the file has the sum of all."""
    out, run, bad = tmp_path / "counts.json", [], {2}
    monkeypatch.setattr(sys, "argv", ["kill", "--kills", "25", "--each", "10", "--out", str(out)])

    def leg(base: Path, kills: int, seed: int) -> dict[str, Any]:
        assert not base.exists()
        run.append((kills, seed))
        assert seed not in bad, "lost"
        return {"kills": kills, "kinds": {"heat": seed}, "median_s": 0.5}

    main = partial(campaign.main, "kill", leg, about="", unit="kills", count=2302, each=100)
    assert main() == 1
    bad.clear()
    assert main() == 0
    assert run == [(10, 1), (10, 2), (10, 2), (5, 3)]
    total = json.loads(out.read_text())["total"]
    assert (3, 25, {"heat": 6}) == (total["legs"], total["kills"], total["kinds"])
    monkeypatch.setattr(sys, "argv", ["kill", "--kills", "30", "--each", "10", "--out", str(out)])
    with pytest.raises(SystemExit, match="another campaign"):
        main()


def test_a_leg_with_findings_is_kept_fails_and_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a campaign has options of its own."""
    out, found = tmp_path / "counts.json", iter([3, 0])
    monkeypatch.setattr(sys, "argv", ["clients", "--engine", "real", "--out", str(out)])

    def leg(_base: Path, count: int, seed: int, *, engine: str) -> dict[str, Any]:
        return {"uploads": count, "findings": next(found), "clients": {engine: {"half": seed}}}

    main = partial(campaign.main, "clients", leg, about="", unit="uploads", count=7, each=9, engine=("fake", "real"))
    for findings in (3, 0):
        assert main() == bool(findings)
        total = json.loads(out.read_text())["total"]
        assert (total["uploads"], total["findings"], total["clients"]) == (7, findings, {"real": {"half": 1}})


SOURCE, OTHER = "hash of the source", "of other bytes"


@pytest.mark.parametrize(
    ("way", "complete", "whole", "done", "refused", "stands", "more", "verdict"),
    [
        ("whole", True, 1, [SOURCE], [], None, {}, "done"),
        ("resume", True, 1, [SOURCE], [OTHER], None, {"taken": 2}, "done"),  # it was sent anew
        ("twice", True, 2, [SOURCE, SOURCE], [], None, {}, "done"),
        ("twice", True, 1, [SOURCE, SOURCE], [], None, {}, "doubled"),
        ("left", False, 0, [SOURCE], [], None, {}, "done"),  # it was whole just before the cut
        ("left", False, 0, [], [], OTHER, {}, "left"),
        ("left", False, 0, [], [OTHER], None, {"taken": 1}, "left"),
        ("left", False, 0, [], [], None, {}, "lost"),  # there was a half
        ("left", False, 0, [OTHER], [], None, {}, "half"),
        ("resume", True, 1, [OTHER, SOURCE], [], None, {}, "half"),
        ("whole", True, 1, [SOURCE], [], None, {"right": False}, "lost"),
        ("whole", True, 1, [], [SOURCE], None, {}, "lost"),
        ("whole", True, 1, [], [], SOURCE, {}, "lost"),
        ("whole", True, 1, [], [], None, {}, "lost"),
        ("resume", True, 1, [], [OTHER], None, {"taken": 1}, "lost"),
        ("resume", True, 1, [], [OTHER], None, {}, "own"),
        ("again", False, 0, [], [], None, {}, "own"),
    ],
)
def test_verdict_on_an_upload(
    way: str,
    complete: bool,
    whole: int,
    done: list[str],
    refused: list[str | None],
    stands: str | None,
    more: dict[str, Any],
    verdict: str,
) -> None:
    chances = {"share": 0.5, "dies_of": 9, "pause": 1.0, "again": 1.0, "said": "no route", "stood": True}
    upload = Upload("a.png", CLIENTS[0], Path("a.png"), SOURCE, way, complete=complete, whole=whole, **chances)
    figures, why = judge(upload, done, refused, stands, **more)
    assert [name for name in ("done", "left", "half", "lost", "doubled", "own") if figures[name]] == [verdict]
    assert figures["sent"] == 1
    assert bool(why) == (verdict not in {"done", "left"})
