"""Output of C libraries and the engine process becomes rate-limited lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from rmbgd.telemetry.captured_output import LAST_WORDS, LINE_MAXIMUM, LINES_AT_ONCE, OutputLines, StderrCapture
from rmbgd.testing.clock import FakeClock

SETUP = """
import ctypes, json, os, signal, sys
from rmbgd.telemetry.captured_output import StderrCapture
emitted = []
def emit(event, /, **keys):
    emitted.append([event, keys])
capture = StderrCapture(emit)
"""
REPORT = """
capture.__exit__()
os.write(2, b"given back\\n")
print(json.dumps(emitted))
"""


def test_each_line_becomes_an_event(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8 and half a line too; the true stderr stays empty, and is given back."""
    monkeypatch.setattr("rmbgd.telemetry.captured_output.faulthandler", Mock())  # pytest has its own
    emitted: list[tuple[str, dict[str, object]]] = []
    with StderrCapture(lambda event, /, **keys: emitted.append((event, keys))) as capture:
        os.write(2, b"bad \xff byte\nabort: bad")
        capture.show_stacks()
    os.write(2, b"given back")
    lines = [r"bad \xff byte", "abort: bad"]
    assert emitted == [("engine.output", {"source": "service", "line": line}) for line in lines]
    assert capfd.readouterr().err == "given back"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "least"),
    [
        ("[print('line', file=sys.stderr) for _ in range(1000)]", LINES_AT_ONCE),  # the first pass, the rest is counted
        (r"os.write(2, b'x' * 100_000 + b'\n')", 1),  # a line of a megabyte becomes short ones
        # Whoever keeps the interpreter lock, so that nothing can read, loses text and does not stand still.
        ("[ctypes.PyDLL(None).write(2, b'y' * 65536, 65536) for _ in range(100)]", 1),
    ],
)
def test_flood_is_cut_and_counted(script: str, least: int) -> None:
    done = subprocess.run([sys.executable, "-c", SETUP + script + REPORT], capture_output=True, text=True, check=True)
    emitted = json.loads(done.stdout)
    assert done.stderr == "given back\n"
    assert least <= len(emitted) < 2 * LINES_AT_ONCE
    assert all(len(keys["line"]) < 1100 for _, keys in emitted)


@pytest.mark.integration
def test_stacks_of_a_dying_process_reach_the_true_stderr() -> None:
    """faulthandler writes when nothing can read any more: past the capture."""
    script = SETUP + "os.kill(os.getpid(), signal.SIGABRT)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert -6 == done.returncode
    assert "Fatal Python error: Aborted" in done.stderr


@pytest.mark.parametrize(
    ("pieces", "passed"),
    [
        # Pieces are joined, empty lines dropped, bytes that are no UTF-8 shown, the rest comes at the end.
        ([b"one\ntw", b"o\n\n\xff three", b"\nfour"], ["one", "two", "\\xff three", "four"]),
        # A process that never ends its line fills no memory; one that ends too late is cut, and shows it.
        ([b"x" * 1001, b"\n" + b"y" * 3000 + b"\n"], ["x" * LINE_MAXIMUM, "x", "y" * LINE_MAXIMUM + " ..."]),
    ],
)
def test_lines_are_whole_however_they_arrive(pieces: list[bytes], passed: list[str]) -> None:
    found: list[str] = []
    output = OutputLines(found.append, FakeClock())
    for piece in pieces:
        output.feed(piece)
    output.finish()
    assert passed == found


def test_left_out_lines_are_counted_and_the_last_words_kept() -> None:
    passed: list[str] = []
    clock = FakeClock()
    output = OutputLines(passed.append, clock)
    output.feed(b"".join(b"%d\n" % n for n in range(1000)))
    flood = len(passed)
    clock.advance(1.0)
    output.feed(b"calm\n")
    assert flood == LINES_AT_ONCE
    assert passed[LINES_AT_ONCE:] == [f"({1000 - LINES_AT_ONCE} lines left out)", "calm"]
    assert output.last_words() == " | ".join([str(n) for n in range(1000 - LAST_WORDS + 1, 1000)] + ["calm"])
