"""`rmbgd report`: options, exit statuses, the file it writes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmbgd import page
from rmbgd.cli import report
from rmbgd.errors import Exit
from tests.imaging.builders import photo, saved
from tests.support.workspace import Workspace


@pytest.fixture
def configured(configuration: Callable[..., Path], tmp_path: Path) -> Path:
    """The configuration of a service that has published one image."""
    path = configuration()
    path.write_text(path.read_text().replace('/in"', '/input"').replace('/out"', '/output"'))
    it = Workspace(tmp_path)
    it.drop("a.png", saved(photo(60, 80), "PNG"))
    it.work("a.png", saved(np.zeros((60, 80, 4), np.uint8), "PNG"))
    it.close()
    return path


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace's clock stands still in 2026."""
    monkeypatch.setattr("time.time", lambda: 1767225700.0)


def test_a_page_is_written_and_counted(configured: Path, tmp_path: Path, rmbgd: Any) -> None:
    target = tmp_path / "report.html"
    status, out, err = rmbgd("report", "--config", configured, "--html", target)
    assert (Exit.OK, "") == (status, err)
    counts = "0 rejected, 0 waiting for review, 0 without a subject, 0 filling the frame"
    assert out.startswith(f"{target}: 1 image, {counts}; ")
    text = target.read_text()
    assert text.endswith("</html>\n")
    assert 2 == text.count("<img")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_says_who_may_see_the_images(
    configured: Path, tmp_path: Path, rmbgd: Any, mask: int, mode: int
) -> None:
    former = os.umask(mask)
    try:
        assert Exit.OK == rmbgd("report", "--config", configured, "--html", tmp_path / "report.html")[0]
        assert mask == os.umask(mask)
    finally:
        os.umask(former)
    assert mode == (tmp_path / "report.html").stat().st_mode & 0o777


def test_json_has_the_counts_and_every_fact(configured: Path, rmbgd: Any) -> None:
    status, out, _ = rmbgd("report", "--config", configured, "--since", "3650d", "--json")
    told = json.loads(out)
    assert (Exit.OK, {"failed": 0, "review": 0, "empty": 0, "full": 0, "done": 1}) == (status, told["counts"])
    (image,) = told["images"]
    assert ("shop", "a.png", "done", "a.png") == tuple(image[key] for key in ("folder", "path", "state", "output"))
    assert ("ok", 1, 1, "cpu", 0.009) == tuple(
        image[key] for key in ("verdict", "width", "height", "device", "seconds")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "rmbgd report: name a page to write with --html FILE, or ask for --json"),
        (["--json", "--folder", "shp"], "rmbgd report: there is no folder 'shp': did you mean 'shop'?"),
        (["--json", "--since", "24"], "'24' is no time of up to ten years; write it like 90m, 24h or 7d"),
        (["--json", "--since", "0h"], "'0h' is no time"),
        (["--json", "--since", "99999d"], "'99999d' is no time"),
        (["--json", "--limit", "0"], "'0' is not between 1 and 2000"),
    ],
)
def test_a_mistake_in_the_options_is_told_in_a_line(words: list[str], said: str, configured: Path, rmbgd: Any) -> None:
    status, out, err = rmbgd("report", "--config", configured, *words)
    assert (Exit.USAGE, "") == (status, out)
    assert said in err


@pytest.mark.parametrize(("word", "seconds"), [("90m", 5400.0), ("24h", 86400.0), ("7d", 604800.0), ("30s", 30.0)])
def test_a_time_is_written_with_its_unit(word: str, seconds: float) -> None:
    assert seconds == report._seconds(word)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "this is no regular file; name another"),
        ("absent/report.html", "No such file or directory; make it, or name another path"),
    ],
)
def test_a_target_that_cannot_be_written_is_told_in_a_line(
    target: str, said: str, configured: Path, tmp_path: Path, rmbgd: Any
) -> None:
    status, out, err = rmbgd("report", "--config", configured, "--html", tmp_path / target)
    assert (Exit.FAILED, "", 1) == (status, out, len(err.splitlines()))
    assert said in err


def test_cutouts_that_this_user_may_not_read_are_told(
    configured: Path, tmp_path: Path, rmbgd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the answer of access(2) is played."""
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, *more, **how: path != tmp_path / "output" and real(path, *more, **how)
    )
    status, _, err = rmbgd("report", "--config", configured, "--html", tmp_path / "report.html")
    assert Exit.OK == status
    assert f"rmbgd report: {tmp_path}/output: you may not read it, so its cutouts are not shown: be root" in err


def test_without_the_extra_it_says_what_to_install(
    configured: Path, tmp_path: Path, rmbgd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    page.environment.cache_clear()
    status, _, err = rmbgd("report", "--config", configured, "--html", tmp_path / "report.html")
    assert (Exit.CONFIGURATION, 1) == (status, len(err.splitlines()))
    assert "pip install 'rmbgd[report]'" in err
    assert Exit.OK == rmbgd("report", "--config", configured, "--json")[0]


def test_without_a_ledger_it_says_so(configuration: Callable[..., Path], rmbgd: Any) -> None:
    status, _, err = rmbgd("report", "--config", configuration(), "--json")
    assert (Exit.FAILED, True) == (status, "there is no ledger; the service makes one when it starts" in err)
