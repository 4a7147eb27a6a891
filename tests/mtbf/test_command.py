"""`rmbgd mtbf` as a whole: both published vectors from real logs, what is printed, and what is never printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.events import EVENTS
from rmbgd.mtbf.command import main, make_report, run
from rmbgd.mtbf.text import render
from tests.mtbf.box import PARTS, Box, options, play

HOUR = 3600.0


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    run(options(*words))
    return capsys.readouterr().out


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """127 days, one planned restart of 120 s, no failure."""
    box = Box("edge", heartbeat=HOUR).start().serve(1000 * HOUR).stop(seconds=1).sleep(117).start()
    return box.serve(2048 * HOUR - 120).health().write(tmp_path / "edge.jsonl")


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """13 machines for 720 h each; three failures with 2.6 s, 31 s and 300 s down."""
    for number in range(13):
        box = Box(f"edge{number:02}", heartbeat=HOUR).start()
        if number < 3:
            at, down = [(153, 2.6), (300, 31.0), (615, 300.0)][number]
            box.serve(at * HOUR).recorded().sleep(down - 2).start(ready_after=2).serve(
                (720 - at) * HOUR - down
            ).health()
        else:
            box.serve(720 * HOUR)
        box.write(tmp_path / "fleet" / f"edge{number:02}.jsonl")
    return tmp_path / "fleet"


def test_vector_without_a_failure(v1: Path, capsys: pytest.CaptureFixture[str]):
    """T, the bounds at five confidences, and the confidence in 3,120 h, to all printed digits; no estimate."""
    found = json.loads(said(capsys, v1, "--claim", 3120, "--json"))["total"]
    lower = {confidence: round(bound, 2) for confidence, bound in found["mtbf"]["lower_hours"].items()}

    assert round(found["operating_hours"], 4) == 3047.9667
    assert found["mtbf"]["hours"] is None
    assert lower == {"0.5": 4397.29, "0.6": 3326.42, "0.8": 1893.81, "0.9": 1323.72, "0.95": 1017.44}
    assert round(found["claim"]["confidence"], 5) == 0.62353
    text = said(capsys, v1, "--claim", 3120)
    for words in ("3,047.9667 h", "at least 1,323.715 h at 90 %", "no failure, so no estimate", "62.353 %"):
        assert words in text


def test_vector_of_thirteen_machines(v2: Path, capsys: pytest.CaptureFixture[str]):
    """T, MTBF, bounds, interval, confidence, MTTR and availability, to all printed digits."""
    text = said(capsys, v2, "--claim", 3120)

    for words in (
        "9,359.9073 h", "3,119.969 h, at least 1,401.019 h at 90 %", "1,207.160 h to 11,446.747 h", "35.276 %",
        "111.2 s", "0.9999900997, 5.20 minutes down a year",
    ):  # fmt: skip
        assert words in text


def test_a_trend_takes_the_single_number_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Five failures in the last days of a month: they come more often, and no mean time is printed."""
    box = Box("edge", heartbeat=HOUR).start().serve(600 * HOUR)
    for _ in range(5):
        box.recorded().sleep(5).start().serve(10 * HOUR)
    path = box.write(tmp_path / "edge.jsonl")

    text = said(capsys, path)
    assert "no single number: they come more often with time (Laplace U = +" in text
    found = json.loads(said(capsys, path, "--json"))["total"]["mtbf"]
    assert found["hours"] is None
    assert found["constant_rate_doubtful"]


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


def test_failovers_and_what_they_avoided(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One with work that came out on the CPU, one with nothing to do, one that lost an image, one not over."""
    box = Box("edge").start().serve(600)
    box.failover().serve(60).image().image().serve(60).failback().serve(600)
    box.failover("xid", images=0).serve(120).failback().serve(600)
    box.failover("sticky_fault").serve(60).refuse("poison", stage="engine").serve(60).failback().serve(600)
    path = box.failover(images=0).serve(120).write(tmp_path / "edge.jsonl")
    found = json.loads(said(capsys, path, "--json"))["total"]["failovers"]

    assert found["outcomes"] == {"avoided": 1, "idle": 1, "broken": 1, "open": 1}
    assert (found["coverage"]["avoided"], found["coverage"]["of"]) == (1, 2)
    assert [trip["reason"] for trip in found["list"]] == ["temperature", "xid", "sticky_fault", "temperature"]
    assert round(found["away_hours"] * HOUR) == 4 * 120
    assert "1 of 2: at least 5.13 % at 90 % confidence" in said(capsys, path)


def test_failures_per_million_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With their bound; refused images are concluded too."""
    box = Box("edge").start()
    for _ in range(1000):
        box.sleep(1).image()
    box.refuse()
    path = box.write(tmp_path / "edge.jsonl")
    assert "at most 2,300.28 at 90 % confidence" in said(capsys, path)  # ln 10 in 1001 images

    box.recorded().sleep(5).start().serve(60).write(path)
    assert "999.00, at most 3,885.83 at 90 % confidence" in said(capsys, path)


def test_top_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each table with its most frequent reason first; the text shows five of them."""
    box = Box("edge").start().refuse("truncated").refuse("corrupt").refuse("truncated").serve(60)
    for kind in "abcdef":
        box.sleep(1).emit("engine.restarted", **dict.fromkeys(required("engine.restarted"), 0) | {"device": "cuda:0"})
        box.emit("engine.fault", **dict.fromkeys(required("engine.fault"), 0) | {"kind": kind})
    path = box.write(tmp_path / "edge.jsonl")
    found = json.loads(said(capsys, path, "--json", "--confidence", 0.95))["total"]

    assert list(found["reasons"]["refused pictures"].items()) == [("truncated", 2), ("corrupt", 1)]
    assert found["reasons"]["engine faults"] == dict.fromkeys("abcdef", 1)
    assert found["engine_restarts"] == {"cuda:0": 6}
    assert "       1  other" in said(capsys, path)


def required(event: str) -> set[str]:
    return {key for key in EVENTS[event].keys if not key.endswith("?")}


def test_a_log_without_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And the exit status tells a script."""
    (tmp_path / "edge.jsonl").write_text("")

    assert run(options(tmp_path)) == 1
    assert "nothing to count" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--confidence", "1"], ["--confidence", "90"], ["--claim", "0"], ["--since", "yesterday"]]
)
def test_numbers_out_of_bounds_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    """With what to write instead."""
    with pytest.raises(SystemExit):
        options("x", *words)

    assert "error: argument" in capsys.readouterr().err


def test_since_and_until_cut_the_log(tmp_path: Path):
    """To whole days of UTC here; a run cut in the middle counts from its first line in the window."""
    box = Box("edge", heartbeat=60).start(ready_after=0).serve(3 * 24 * HOUR)
    path = box.write(tmp_path / "edge.jsonl")

    report = make_report(options(path, "--since", "2026-01-02", "--until", "2026-01-03"))
    assert round(report.hours, 6) == 24


def test_what_others_wrote_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Escapes in a reason or a machine's name come out as text."""
    box = Box("edge").start().serve(60).fail("\x1b[31mx", "\x9bboom\n").sleep(5).start().serve(60)
    path = box.write(tmp_path / "edge.jsonl")
    text = said(capsys, f"bad\x07name={path}")

    assert not {char for char in text if not char.isprintable()} - {"\n"}
    assert "\\x1b[31mx" in text


@pytest.mark.integration
def test_the_tool_runs_where_nothing_is_installed(tmp_path: Path):
    """Standard library only: isolated mode, without site packages. What is wrong is said without a traceback."""
    path = Box("edge").start().serve(3600).write(tmp_path / "edge.jsonl")
    root = Path(__file__).parents[2]
    script = f"import sys; sys.path.insert(0, {str(root)!r}); from rmbgd.mtbf.command import main; sys.exit(main())"
    for log, status, words in (
        (path, 0, "1.0000 h in service"),
        (tmp_path / "x", 1, "no such file; name the log_file"),
    ):
        command = [sys.executable, "-I", "-S", "-c", script, str(log)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert done.returncode == status
        assert words in (done.stderr if status else done.stdout)
        assert done.stderr.count("\n") == status


@pytest.mark.parametrize(("words", "status"), [(["edge.jsonl"], 0), (["none.jsonl"], 1)])
def test_the_module_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int):
    """`python -m rmbgd.mtbf`, and its exit status."""
    Box("edge").start().serve(60).write(tmp_path / "edge.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rmbgd mtbf", *words])
    assert main() == status
