"""`rmbgd mtbf` as a whole: both published vectors from real logs, what is printed, and what is never printed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.errors import RmbgdError
from rmbgd.events import EVENTS
from rmbgd.mtbf.command import main, make_report, run
from rmbgd.mtbf.text import TREND_NOTE, exact, render, rounded, share
from tests.mtbf.box import HOUR, PARTS, Box, options, play

Capture = pytest.CaptureFixture[str]
Report = Callable[..., tuple[dict, str]]


@pytest.fixture
def report_of(tmp_path: Path, capsys: Capture) -> Report:
    """Reports the box's log: the JSON's total, and the text."""

    def report(box: Box, *words: object) -> tuple[dict, str]:
        path = box.write(tmp_path / "edge.jsonl")
        run(options(path, *words, "--json"))
        total = json.loads(capsys.readouterr().out)["total"]
        run(options(path, *words))
        return total, capsys.readouterr().out

    return report


def test_vector_without_a_failure(report_of: Report):
    """127 days, one planned restart of 120 s: all published digits of T, a bound and the confidence; no estimate."""
    box = Box(heartbeat=HOUR).start().serve(1000 * HOUR).stop(seconds=1).sleep(117).start().serve(2048 * HOUR - 120)
    found, text = report_of(box.health(), "--claim", 3120)
    assert (found["mtbf"]["hours"], list(found["mtbf"]["lower_hours"])) == (None, ["0.5", "0.6", "0.8", "0.9", "0.95"])
    digits = [found["operating_hours"], found["mtbf"]["lower_hours"]["0.9"], found["claim"]["confidence"]]
    assert ["3047.967", "1323.715", "0.624"] == [f"{digit:.3f}" for digit in digits]
    for words in ("3,048 h", "at least 1,320 h at 90 %", "no failure, so no estimate", "62.4 %"):
        assert words in text


def test_vector_of_thirteen_machines(tmp_path: Path, capsys: Capture):
    """13 machines for 720 h each; three failures with 2.6 s, 31 s and 300 s down: all published digits in the JSON."""
    failures = {0: (153, 2.6), 1: (300, 31.0), 2: (615, 300.0)}
    for number in range(13):
        box, (at, down) = Box(f"edge{number:02}", heartbeat=HOUR).start(), failures.get(number, (720, 0))
        box.serve(at * HOUR)
        if down:
            box.recorded().sleep(down - 2).start().serve((720 - at) * HOUR - down).health()
        box.write(tmp_path / f"edge{number:02}.jsonl")
    run(options(tmp_path, "--claim", 3120, "--json"))
    found = json.loads(capsys.readouterr().out)["total"]
    mtbf = found["mtbf"]
    digits = [found["operating_hours"], mtbf["hours"], mtbf["lower_hours"]["0.9"], *mtbf["two_sided_hours"]]
    assert ["9359.907", "3119.969", "1401.019", "1207.160", "11446.747"] == [f"{digit:.3f}" for digit in digits]
    assert ["0.35276", "0.9999900997"] == [f"{found['claim']['confidence']:.5f}", f"{found['availability']:.10f}"]
    run(options(tmp_path, "--claim", 3120))
    text = capsys.readouterr().out
    for words in (
        "9,360 h", "3,120 h, at least 1,400 h at 90 %", "1,210 h to 11,400 h", "35.3 %", "111 s over",
        "99.99901 %, 5.2 minutes down a year",
    ):  # fmt: skip
        assert words in text


def test_a_trend_takes_the_single_number_away(report_of: Report):
    """Five failures in the last days of a month: they come more often, and no mean time is printed."""
    box = Box(heartbeat=HOUR).start().serve(600 * HOUR)
    for _ in range(5):
        box.recorded().sleep(5).start().serve(10 * HOUR)
    found, text = report_of(box)
    assert "no single number: they come more often with time (Laplace U = +" in text
    assert (found["mtbf"]["hours"], found["mtbf"]["constant_rate_doubtful"]) == (None, True)


@settings(max_examples=40, deadline=None)
@given(PARTS, st.sets(st.integers(0, 200), max_size=40))
def test_no_point_estimate_without_its_bound(tmp_path_factory, parts, dropped):
    """Whatever the log: text and JSON give the estimate with its bound, and without failures the bound alone."""
    path = play([("serve", 30), *parts], dropped).write(tmp_path_factory.mktemp("log") / "edge.jsonl")
    report = make_report(options(path))
    lines, found = render(report).splitlines(), report.as_dict()
    assert any(line.startswith("MTBF") for line in lines)
    assert all("at least" in line for line in lines if re.match(r"(MTBF|between failovers) +[\d,.]+ h", line))
    for mtbf in (one["mtbf"] for one in [found["total"], *found["machines"]]):
        assert mtbf["lower_hours"]
        assert mtbf["hours"] is None or (mtbf["failures"] and not mtbf["constant_rate_doubtful"])
    json.dumps(found, allow_nan=False)


def test_failovers_and_what_they_avoided(report_of: Report):
    box = Box().start().serve(600)
    box.failover().serve(60).image().image().serve(60).failback().serve(600)
    box.failover("xid", images=0).serve(120).failback().serve(600)
    box.failover("sticky_fault").serve(60).refuse("poison", stage="engine").serve(60).failback().serve(600)
    total, text = report_of(box.failover(images=0).serve(120))
    found = total["failovers"]
    assert found["outcomes"] == {"avoided": 1, "idle": 1, "broken": 1, "open": 1}
    assert (found["coverage"]["avoided"], found["coverage"]["of"]) == (1, 2)
    assert [trip["reason"] for trip in found["list"]] == ["temperature", "xid", "sticky_fault", "temperature"]
    assert round(found["away_hours"] * HOUR) == 4 * 120
    assert "1 of 2: at least 5.13 % at 90 % confidence" in text


def test_failures_per_million_images(report_of: Report):
    box = Box().start()
    for _ in range(1000):
        box.sleep(1).image()
    assert "at most 2,300 at 90 % confidence" in report_of(box.refuse())[1]  # ln 10 in 1001 images
    _, text = report_of(box.recorded().sleep(5).start().serve(60))
    assert "999, at most 3,890 at 90 % confidence" in text


def fleet_of_two(folder: Path, **plain: object) -> Path:
    """Machine a published three images, b one; and some of them again. `plain`: one more of b, with these keys."""
    a, b = Box("a").start().serve(60), Box("b").start().serve(70)
    for number in (1, 2, 3):
        a.image(path=f"{number}.png", fingerprint=f"1-{number}", job=1000 + number)
    b.image(path="4.png", fingerprint="1-4", job=2000, recovered=True)  # whose worker died before it could tell
    b.image(path="4.png", fingerprint="1-4", job=2001, recovered=True).sleep(1)
    b.image(path="1.png", fingerprint="1-1", job=2002, recovered=True)
    b.image(path="2.png", fingerprint="1-2", job=2003, duplicate=True)
    b.image(path="1.png", fingerprint="1-5", job=2004)  # another version is another image
    b.image(path="1.png", fingerprint="1-1", folder="web", job=2005)  # so is that of another root
    if plain:
        b.image(job=2006, **plain)
    for box in (a, b):
        box.serve(60).write(folder / f"{box.name}.jsonl")
    return folder


def test_an_image_of_a_fleet_counts_once_over_all_machines(tmp_path: Path, capsys: Capture):
    fleet = fleet_of_two(tmp_path)
    run(options(fleet, "--json"))
    report = json.loads(capsys.readouterr().out)
    found = report["total"]["pictures"]
    assert (found["done"], found["further"]) == (6, {"recovered": 2, "duplicate": 1, "unmarked": 0})
    assert [each["pictures"]["done"] for each in report["machines"]] == [3, 5]  # of b's own, one came twice
    assert found["failures_per_million"]["upper"] == pytest.approx(1e6 / 6 * math.log(10), rel=1e-3)
    run(options(fleet, "--html", tmp_path / "report.html"))
    text = capsys.readouterr().out
    assert re.search(r"images +6 published, 0 rejected", text)
    assert re.search(r"published again +2 recovered, 1 duplicate\n", text)
    assert "a defect" not in text
    assert "published again: 2 recovered, 1 duplicate" in (tmp_path / "report.html").read_text()


def test_an_image_of_a_fleet_that_is_published_again_unmarked_is_a_defect(tmp_path: Path, capsys: Capture):
    run(options(fleet_of_two(tmp_path, path="3.png", fingerprint="1-3"), "--html", tmp_path / "report.html"))
    for text in (capsys.readouterr().out, (tmp_path / "report.html").read_text()):
        assert "2 recovered, 1 duplicate, 1 unmarked" in text
        assert "1 times an image was published again, marked neither recovered nor duplicate: a defect" in text


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["recovered", "duplicate", None])), max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_marks_of_a_version_are_counted_in_any_order(tmp_path_factory, told: list[tuple[int, str | None]]):
    box = Box().start().serve(60)
    for job, (version, mark) in enumerate(told):
        box.image(path="a.png", fingerprint=f"1-{version}", job=job, **({mark: True} if mark else {}))
    report = make_report(options(box.serve(60).write(tmp_path_factory.mktemp("box") / "edge.jsonl")))
    marks = [[mark for each, mark in told if each == version] for version in {version for version, _ in told}]
    assert report.done == len(marks)
    assert report.further["unmarked"] == sum(max(each.count(None) - 1, 0) for each in marks)
    assert report.further.total() == len(told) - len(marks)


def test_a_bound_that_does_not_fit_is_explained(tmp_path: Path, capsys: Capture):
    """Beside machines whose failures show no trend; and no figure has more digits than its failures carry."""
    late = Box("late", heartbeat=HOUR).start().serve(600 * HOUR)
    for _ in range(5):
        late.recorded().sleep(5).start().serve(10 * HOUR)
    late.write(tmp_path / "late.jsonl")
    Box("well", heartbeat=HOUR).start().serve(650 * HOUR).write(tmp_path / "well.jsonl")
    run(options(tmp_path))
    text = capsys.readouterr().out
    assert re.search(r"^late .* 70\.1 h \*", text, re.MULTILINE)
    assert TREND_NOTE in text
    assert "?" not in text
    run(options(tmp_path / "well.jsonl"))
    assert TREND_NOTE not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9999973022, "99.99973 %"), (0.99999999, "99.9999990 %"), (0.5, "50 %"), (0.051, "5.1 %"), (1.0, "100 %")],
)
def test_share_is_never_rounded_to_what_it_is_not(value: float, text: str):
    assert text == share(value, 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(14_415.02, "14,400"), (155.44, "155"), (1.236, "1.24"), (0.0012345, "0.00123"), (math.inf, "inf")],
)
def test_derived_figures_have_three_digits(value: float, text: str):
    assert text == rounded(value)


@pytest.mark.parametrize(("value", "text"), [(14_415.02, "14,415"), (155.44, "155.4"), (1.25, "1.250")])
def test_counted_hours_keep_their_digits(value: float, text: str):
    assert text == exact(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("usage: rmbgd\n" * 280, "none of 280 lines is an rmbgd event"), ("{}", "its one line is no rmbgd event")],
)
def test_a_file_that_is_no_log_is_said_to_be_none(tmp_path: Path, text: str, words: str):
    (tmp_path / "help.txt").write_text(text)
    with pytest.raises(RmbgdError, match=f"help.txt: {words}.*log_file.*journalctl -u rmbgd -o json --all"):
        run(options(tmp_path / "help.txt"))


def test_several_files_that_are_no_logs_are_told_in_one_line(tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        RmbgdError, match=r"^[^\n]*a\.txt: its one line is no rmbgd event; [^\n]*b\.txt: [^\n]*; name [^\n]*$"
    ):
        run(options(tmp_path / "a.txt", tmp_path / "b.txt"))


def test_top_reasons(report_of: Report):
    """Each table with its most frequent reason first; the text shows five of them."""
    box = Box().start().refuse("truncated").refuse("corrupt").refuse("truncated").serve(60)
    for kind in "abcdef":
        box.sleep(1).emit("engine.restarted", **dict.fromkeys(required("engine.restarted"), 0) | {"device": "cuda:0"})
        box.emit("engine.fault", **dict.fromkeys(required("engine.fault"), 0) | {"kind": kind})
    found, text = report_of(box, "--confidence", 0.95)
    assert list(found["reasons"]["refused pictures"].items()) == [("truncated", 2), ("corrupt", 1)]
    assert found["reasons"]["engine faults"] == dict.fromkeys("abcdef", 1)
    assert found["engine_restarts"] == {"cuda:0": 6}
    assert "       1  other" in text


def required(event: str) -> set[str]:
    return {key for key in EVENTS[event].keys if not key.endswith("?")}


def test_a_log_without_a_run_says_so(tmp_path: Path, capsys: Capture):
    (tmp_path / "edge.jsonl").write_text("")
    assert run(options(tmp_path)) == 1
    assert "nothing to count" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--confidence", "1"], ["--confidence", "90"], ["--claim", "0"], ["--since", "yesterday"]]
)
def test_numbers_out_of_bounds_are_refused(words: list[str], capsys: Capture):
    with pytest.raises(SystemExit):
        options("x", *words)
    assert "error: argument" in capsys.readouterr().err


def test_since_and_until_cut_the_log(tmp_path: Path):
    path = Box("edge", heartbeat=60).start(ready_after=0).serve(3 * 24 * HOUR).write(tmp_path / "edge.jsonl")
    assert round(make_report(options(path, "--since", "2026-01-02", "--until", "2026-01-03")).hours, 6) == 24


def test_what_others_wrote_cannot_steer_a_terminal(tmp_path: Path, capsys: Capture):
    box = Box("edge").start().serve(60).fail("\x1b[31mx", "\x9bboom\n").sleep(5).start().serve(60)
    run(options(f"bad\x07name={box.write(tmp_path / 'edge.jsonl')}"))
    text = capsys.readouterr().out
    assert not {char for char in text if not char.isprintable()} - {"\n"}
    assert "\\x1b[31mx" in text


@pytest.mark.integration
def test_the_tool_runs_where_nothing_is_installed(tmp_path: Path):
    """Standard library only: isolated mode, without site packages."""
    path = Box("edge").start().serve(3600).write(tmp_path / "edge.jsonl")
    root = Path(__file__).parents[2]
    script = f"import sys; sys.path.insert(0, {str(root)!r}); from rmbgd.mtbf.command import main; sys.exit(main())"
    command = [sys.executable, "-I", "-S", "-c", script, path]
    assert "1.000 h in service" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("log", "status", "words"),
    [("edge.jsonl", 0, ""), ("x", 1, "no such file; name the log_file"), ("x" * 300, 1, "too long; name another path")],
)
def test_the_module_runs_alone(tmp_path: Path, monkeypatch, capsys: Capture, log: str, status: int, words: str):
    """What is wrong is said in one line, without a traceback."""
    Box("edge").start().serve(60).write(tmp_path / "edge.jsonl")
    monkeypatch.setattr("sys.argv", ["rmbgd mtbf", str(tmp_path / log)])
    assert main() == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == status
