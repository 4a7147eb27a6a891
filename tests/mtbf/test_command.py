"""`rmbgd mtbf` as a whole: both published vectors from real logs, what is printed, and what is never printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.events import EVENTS
from rmbgd.mtbf.command import main, make_report, run
from rmbgd.mtbf.text import render
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
    """127 days, one planned restart of 120 s: all printed digits of T, a bound and the confidence; no estimate."""
    box = Box(heartbeat=HOUR).start().serve(1000 * HOUR).stop(seconds=1).sleep(117).start().serve(2048 * HOUR - 120)
    found, text = report_of(box.health(), "--claim", 3120)
    assert (found["mtbf"]["hours"], list(found["mtbf"]["lower_hours"])) == (None, ["0.5", "0.6", "0.8", "0.9", "0.95"])
    for words in ("3,047.9667 h", "at least 1,323.715 h at 90 %", "no failure, so no estimate", "62.353 %"):
        assert words in text


def test_vector_of_thirteen_machines(tmp_path: Path, capsys: Capture):
    """13 machines for 720 h each; three failures with 2.6 s, 31 s and 300 s down: all printed digits."""
    failures = {0: (153, 2.6), 1: (300, 31.0), 2: (615, 300.0)}
    for number in range(13):
        box, (at, down) = Box(f"edge{number:02}", heartbeat=HOUR).start(), failures.get(number, (720, 0))
        box.serve(at * HOUR)
        if down:
            box.recorded().sleep(down - 2).start().serve((720 - at) * HOUR - down).health()
        box.write(tmp_path / f"edge{number:02}.jsonl")
    run(options(tmp_path, "--claim", 3120))
    text = capsys.readouterr().out
    for words in (
        "9,359.9073 h", "3,119.969 h, at least 1,401.019 h at 90 %", "1,207.160 h to 11,446.747 h", "35.276 %",
        "111.2 s", "0.9999900997, 5.20 minutes down a year",
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
    assert "at most 2,300.28 at 90 % confidence" in report_of(box.refuse())[1]  # ln 10 in 1001 images
    _, text = report_of(box.recorded().sleep(5).start().serve(60))
    assert "999.00, at most 3,885.83 at 90 % confidence" in text


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
    assert "1.0000 h in service" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
