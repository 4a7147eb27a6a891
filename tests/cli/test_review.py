"""`rmbgd review` where no service runs, and what people see of images that wait."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rmbgd.errors import Exit
from rmbgd.publish.review import Reviewer
from rmbgd.testing.clock import FakeClock
from tests.support.reviews import built, doubt

TOLD = {"score": 0.25, "unusual": -3.5, "review": {"features": {"holes": 2}, "version": 1}}


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A ledger with one image that waits, one that was approved and one that was rejected; its configuration."""
    with closing(built(tmp_path, clock=FakeClock())) as it:
        jobs = [doubt(it, f"{name}.jpg", {f"{name}.png": name.encode()}, **TOLD) for name in "abc"]
        reviewer = Reviewer([it.folder], it.publisher, it.ledger, it.clock, it.events)
        reviewer.approve(jobs[1], "anna")
        it.clock.advance(1)
        reviewer.reject(jobs[2], "anna")
    path = tmp_path / "rmbgd.toml"
    folders = {role: tmp_path / role for role in ("input", "output", "done", "failed", "review")}
    text = "\n".join(f'{role} = "{place}"' for role, place in folders.items())
    service = f'state_directory = "{tmp_path}/state"\nruntime_directory = "{tmp_path}/run"\n'
    path.write_text(f'[service]\n{service}[[folder]]\nname = "shop"\n{text}\n')
    return path


def test_what_waits_is_listed_without_a_service(configured: Path, rmbgd: Any) -> None:
    status, out, _ = rmbgd("review", "list", "--json", "--config", configured)
    (row,) = json.loads(out)["rows"]
    review = configured.parent / "review"
    assert status == Exit.OK
    assert (row["path"], row["folder"], row["score"], row["unusual"]) == ("a.jpg", "shop", 0.25, -3.5)
    assert (row["reasons"], row["asked"]) == (["soft inside"], "")
    assert (row["files"], row["preview"]) == ([str(review / "a.png")], str(review / "a.review.jpg"))
    (review / "a.png").write_bytes(b"edited")
    out = rmbgd("review", "list", "--folder", "shop", "--config", configured)[1]
    head, line = out.splitlines()
    assert head.split() == ["JOB", "IMAGE", "FOR", "SCORE", "UNUSUAL", "WHY"]
    assert "shop/a.jpg" in line
    assert line.endswith("0.25   -3.50    it was changed: approve it as it is now, or reject; soft inside")


def test_list_shows_what_waits_too(configured: Path, rmbgd: Any) -> None:
    out = rmbgd("list", "review", "--config", configured)[1]
    assert [line.split()[0] for line in out.splitlines()] == ["IMAGE", "shop/a.jpg"]
    assert "rejected" in rmbgd("list", "done", "--config", configured)[1]


def test_decisions_are_exported(configured: Path, rmbgd: Any) -> None:
    status, out, _ = rmbgd("review", "export", "--config", configured)
    labels = [json.loads(line) for line in out.splitlines()]
    assert status == Exit.OK
    assert [(label["path"], label["label"]) for label in labels] == [("b.jpg", "approved"), ("c.jpg", "rejected")]
    assert all((label["features"], label["version"], label["score"]) == ({"holes": 2}, 1, 0.25) for label in labels)


def test_the_report_counts_what_waits(configured: Path, rmbgd: Any) -> None:
    out = rmbgd("report", "--json", "--since", "520w", "--config", configured)[1]
    assert json.loads(out)["counts"] == {"failed": 1, "review": 1, "empty": 0, "full": 0, "done": 1}
