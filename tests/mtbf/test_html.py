"""The report as a page: whole, without a network, safe whatever the log says."""

from __future__ import annotations

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.errors import RmbgdError
from rmbgd.mtbf.command import add_arguments, make_report, run
from rmbgd.mtbf.html import COLOURS, STYLE, bin_width, nice_step, render_page, ticks, time_ticks
from tests.mtbf.box import Box
from tests.mtbf.test_timeline import PARTS, play

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = "<script>alert(1)</script>&\"'"


class Tags(HTMLParser):
    """What a page is made of; fails on a tag that is closed without being open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        # rows and cells may end with their table
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def options(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def page_of(*words: object) -> str:
    return render_page(make_report(options(*words)))


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Two machines with a bit of everything."""
    for number, name in enumerate(("edge", HOSTILE.replace("/", ""))):
        box = Box(f"boots{number}", heartbeat=60).start()
        for _ in range(50):
            box.sleep(30).image().heartbeat()
        box.refuse(HOSTILE).failover(HOSTILE).serve(600).image(device="cpu").failback().serve(600)
        box.recorded("signal", "killed", HOSTILE).sleep(5).start().serve(600).stop().sleep(900).start().serve(60)
        box.sleep(5000).heartbeat().reboot(60).start().serve(600)
        box.write(tmp_path / f"{name}.jsonl")
    return tmp_path


def test_every_plot_is_there(fleet: Path):
    """Life, temperature of each machine, images an hour, stages, claim to outcome."""
    labels = [attrs.get("aria-label") for tag, attrs in Tags(page_of(fleet)).seen if tag == "svg"]

    assert len(labels) == 1 + 2 + 3
    assert labels[0] == "operating time and failures of each machine"
    assert labels[-3:] == ["images an hour", "time in each stage", "time from claim to outcome"]


def test_the_page_is_whole(fleet: Path):
    """Every tag is closed in order; every drawing is well-formed XML without a number that is none."""
    page = page_of(fleet, "--claim", 100)

    assert Tags(page).open == []
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert drawings
    for drawing in drawings:
        ET.fromstring(drawing.replace("&nbsp;", " "))
        assert not re.search(r"\b(nan|inf)\b", drawing)


def test_nothing_is_loaded_and_nothing_runs(fleet: Path):
    """No script, no link, no image, no font, no address."""
    page = page_of(fleet)
    tags = Tags(page)

    assert not {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert not {name for _, attrs in tags.seen for name in attrs if name.startswith("on") or name in ("src", "href")}
    assert "url(" not in page
    assert "http" not in page
    assert "@import" not in page


def test_what_others_wrote_is_text(fleet: Path):
    """Reasons, names of machines and of signals are escaped, in tables and in drawings."""
    page = page_of(fleet)

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert any("<script>alert(1)</script>" in words for words in Tags(page).words)


def test_an_estimate_stands_with_its_bound(fleet: Path):
    """In the tile that is read first; without failures the bound alone."""
    words = " ".join(Tags(page_of(fleet)).words).replace("\u00a0", " ")
    assert re.search(r"Mean time between failures .*? h at least [\d.,]+ h at 90 % confidence", words)

    quiet = Box("quiet", heartbeat=60).start().serve(6000).write(fleet / "quiet" / "quiet.jsonl")
    words = " ".join(Tags(page_of(quiet)).words).replace("\u00a0", " ")
    assert "≥ 0.7 h" in words
    assert "no failure, so no estimate" in words


def test_light_and_dark_define_the_same_colours():
    """A colour that one of them forgets would be the other's by accident."""
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in STYLE.split("@media (prefers-color-scheme: dark)"))
    dark = set(re.findall(r"(--[\w-]+):", STYLE.split("prefers-color-scheme: dark")[1].split("} }")[0]))

    assert light == dark
    assert set(COLOURS.values()) <= light
    assert set(re.findall(r"var\((--[\w-]+)\)", STYLE)) <= light


def test_a_page_without_a_run_says_so(tmp_path: Path):
    """An empty log makes no empty plots."""
    path = tmp_path / "edge.jsonl"
    path.write_text("")
    page = page_of(path)

    assert "<svg" not in page
    assert "nothing to count" in page


def test_the_file_is_written_whole(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And the text is printed besides."""
    target = tmp_path / "report.html"

    assert run(options(fleet, "--html", target)) == 0
    assert target.read_text().endswith("</html>\n")
    assert "MTBF" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_page_that_cannot_be_written_is_said(fleet: Path):
    """With what to do."""
    with pytest.raises(RmbgdError, match="name a file that can be written"):
        run(options(fleet, "--html", fleet / "missing" / "report.html"))


@settings(max_examples=40, deadline=None)
@given(PARTS)
def test_any_history_makes_a_whole_page(tmp_path_factory, parts):
    """Empty, short, torn: no drawing breaks."""
    page = page_of(play(parts, set()).write(tmp_path_factory.mktemp("log") / "edge.jsonl"))

    assert Tags(page).open == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)


# --- axes


@settings(deadline=None)
@given(st.floats(1e-6, 1e9), st.integers(1, 20))
def test_steps_are_round_and_few(spread: float, count: int):
    """1, 2 or 5 times a power of ten, and at most `count` of them."""
    step = nice_step(spread, count)

    assert spread / step <= count * (1 + 1e-6)
    assert f"{step:.0e}"[0] in "125"


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_within(low: float, spread: float):
    """Up to rounding of a float."""
    found = ticks(low, low + spread, 6)

    assert all(low - 1e-6 * spread <= value <= low + spread + 1e-6 * spread for value in found)
    assert len(found) <= 7


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000), st.integers(1, 1_000_000_000))
def test_time_ticks_are_few_and_within(begin: int, spread: int):
    """Labels do not run into each other; half a century still fits."""
    found = time_ticks(begin, begin + spread, 9)

    assert all(begin <= at <= begin + spread for at, _ in found)
    assert len(found) <= 10 or spread > 9 * 365 * 86400
    assert bin_width(begin, begin + spread, 120) >= 60
