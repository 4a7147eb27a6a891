"""The report as a page: whole, without a network, safe whatever the log says."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd import page
from rmbgd.errors import ConfigError, RmbgdError
from rmbgd.mtbf import html
from rmbgd.mtbf.command import make_report, run
from tests.mtbf.box import PARTS, Box, options, play
from tests.support.pages import Tags, whole_page

HOSTILE = "<script>alert(1)</script>&\"'"


def page_of(*words: object) -> str:
    """The page, which is whole: tags closed in order, drawings well-formed and without a number that is none."""
    page = html.render(make_report(options(*words)))
    assert Tags(page).open == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
        assert not re.search(r"\b(nan|inf)\b", drawing)
    return page


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    for number, name in enumerate(("edge", HOSTILE.replace("/", ""))):
        box = Box(f"boots{number}", heartbeat=60).start()
        for _ in range(50):
            box.sleep(30).image().health()
        box.refuse(HOSTILE).failover(HOSTILE).serve(600).image(device="cpu").failback().serve(600)
        box.recorded("signal", "killed", HOSTILE).sleep(5).start().serve(600).stop().sleep(900).start().serve(60)
        box.sleep(5000).health().reboot(60).start().serve(600)
        box.write(tmp_path / f"{name}.jsonl")
    return tmp_path


def test_the_page_holds_every_plot_and_needs_no_network(fleet: Path):
    """Life, temperature of each machine, images, stages, claim to outcome. No script, link, image, font, or address."""
    page = page_of(fleet, "--claim", 100)
    tags = whole_page(page)
    labels = [attrs.get("aria-label") for tag, attrs in tags.seen if tag == "svg"]

    assert (len(labels), labels[0]) == (1 + 2 + 3, "operating time and failures of each machine")
    assert labels[-3:] == ["images an hour", "time in each stage", "time from claim to outcome"]
    assert "img" not in {tag for tag, _ in tags.seen}
    assert "src" not in {name for _, attrs in tags.seen for name in attrs}
    # What others wrote, as reasons, names of machines and of signals, is escaped in tables and in drawings.
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script>alert(1)</script>" in tags.text


def test_an_estimate_stands_with_its_bound(fleet: Path):
    words = r"Mean time between failures [\d.,]+ h at least [\d.,]+ h at 90 % confidence"
    assert re.search(words, Tags(page_of(fleet)).text)
    quiet = Box("quiet", heartbeat=60).start().serve(6000).write(fleet / "quiet" / "quiet.jsonl")
    assert re.search(r"≥ 0\.724 h .*no failure, so no estimate", Tags(page_of(quiet)).text)


def test_light_and_dark_define_the_same_colours(fleet: Path):
    """A colour that one of them forgets would be the other's by accident; plots and legends use no other."""
    text = page_of(fleet)
    styles = text.split("} }")[0].split("prefers-color-scheme: dark")
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in styles)
    assert light == dark
    assert set(re.findall(r"var\((--\w+)\)", text)) <= light
    assert set(html.device_styles(make_report(options(fleet)).machines).values()) <= {name[2:] for name in light}


def test_an_image_before_the_first_time_in_service_is_not_drawn(tmp_path: Path):
    """What a start tells of the run before stands ahead of its `ready`; bars stay within their plot."""
    box = Box("edge").launch().image(recovered=True).sleep(600)
    box.emit("service.ready", seconds=600.0, device="cuda:0", recovered=1).serve(300).image()
    page = page_of(box.serve(300).write(tmp_path / "edge.jsonl"))
    assert page.count("1 cuda:0,") == 1
    assert min(float(x) for x in re.findall(r'<rect x="([-\d.]+)"', page)) >= 60


def test_a_page_without_a_run_says_so(tmp_path: Path):
    (tmp_path / "edge.jsonl").write_text("")
    page = page_of(tmp_path)
    assert "<svg" not in page
    assert "nothing to count" in page


def test_the_file_is_written_whole(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(options(fleet, "--html", tmp_path / "report.html")) == 0
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    assert "MTBF" in capsys.readouterr().out
    assert not [path.name for path in tmp_path.iterdir() if "tmp" in path.name]
    with pytest.raises(RmbgdError, match="name a file that can be written"):
        run(options(fleet, "--html", fleet / "missing" / "report.html"))


def test_a_page_needs_the_extra(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without jinja2: at once, with the command that brings it; nothing is written, and the text needs no jinja2."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    page.environment.cache_clear()
    with pytest.raises(ConfigError, match=r"jinja2.*pip install 'rmbgd\[report\]'"):
        run(options(fleet / "missing.jsonl", "--html", tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()
    assert run(options(fleet)) == 0


def test_the_template_is_installed_with_the_package():
    assert '"rmbgd.mtbf" = ["report.html.j2"]' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


@settings(max_examples=40, deadline=None)
@given(PARTS)
def test_any_history_makes_a_whole_page(tmp_path_factory, parts):
    page_of(play(parts, set()).write(tmp_path_factory.mktemp("log") / "edge.jsonl"))


@settings(deadline=None)
@given(st.integers(1, 20), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_few_and_within(count: int, low: float, width: float):
    found = html.ticks(low, low + width, count)
    assert len(found) <= count + 1
    assert {f"{after - before:.0e}"[0] for before, after in pairwise(found)} <= set("125")
    assert all(low - 1e-6 * width <= value <= low + width + 1e-6 * width for value in found)


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000), st.integers(1, 1_000_000_000))
def test_time_ticks_are_few_and_within(begin: int, spread: int):
    window = (begin, begin + spread)
    found = html.time_ticks(window)
    assert all(begin <= at <= begin + spread for at, _ in found)
    assert len(found) <= 10 or spread > 9 * 365 * 86400
    assert html.bin_width(window) >= 60
