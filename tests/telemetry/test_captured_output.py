"""Output of C libraries and the engine process becomes rate-limited lines."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from rmbgd.telemetry.captured_output import LAST_WORDS, LINE_MAXIMUM, LINES_AT_ONCE, OutputLines
from rmbgd.testing.clock import FakeClock

SETUP = """
import json, os, sys
from rmbgd.telemetry.captured_output import StderrCapture
emitted = []
def emit(event, /, **keys):
    emitted.append([event, keys])
capture = StderrCapture(emit)
"""
REPORT = """
capture.close()
print(json.dumps(emitted))
"""


def captured(script: str) -> tuple[list[tuple[str, dict[str, str]]], str]:
    """What a process that runs `script` under capture emitted, and what reached its true stderr."""
    done = subprocess.run([sys.executable, "-c", SETUP + script + REPORT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (r"os.write(2, b'TIFF: odd tag\n'); print('python too', file=sys.stderr)", ["TIFF: odd tag", "python too"]),
        ("os.write(2, b'abort: bad')", ["abort: bad"]),  # a library that dies in the middle of a line
        (r"os.write(2, b'bad \xff byte\n')", [r"bad \xff byte"]),  # decoders quote the file they choke on
    ],
)
def test_each_line_becomes_an_event(script: str, lines: list[str]) -> None:
    """Whichever way it was written, and the true stderr stays empty."""
    assert ([["engine.output", {"source": "service", "line": line}] for line in lines], "") == captured(script)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "least"),
    [
        (r"[os.write(2, b'line\n') for _ in range(1000)]", LINES_AT_ONCE),  # the first pass, the rest is counted
        (r"os.write(2, b'x' * 100_000 + b'\n')", 1),  # a line of a megabyte becomes short ones
    ],
)
def test_flood_is_cut_and_counted(script: str, least: int) -> None:
    """Neither hundreds of lines about one file nor one endless line drown the log."""
    emitted, _ = captured(script)

    assert least <= len(emitted) < 2 * LINES_AT_ONCE
    assert all(len(keys["line"]) < 1100 for _, keys in emitted)


@pytest.mark.integration
def test_writer_does_not_wait_for_a_reader_that_cannot_run() -> None:
    """A library that writes megabytes while it holds the interpreter lock loses text, and does not stand still."""
    script = """
import ctypes
libc = ctypes.PyDLL(None)  # keeps the interpreter lock: the reading thread cannot run
for _ in range(100):
    libc.write(2, b'y' * 65536, 65536)
"""
    assert captured(script)[0]


@pytest.mark.integration
def test_stacks_of_a_dying_process_reach_the_true_stderr() -> None:
    """faulthandler writes when nothing can read any more: past the capture."""
    script = SETUP + "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert -6 == done.returncode
    assert "Fatal Python error: Aborted" in done.stderr


@pytest.mark.integration
def test_stacks_of_a_living_process_reach_the_true_stderr() -> None:
    """Every thread's, and the process goes on."""
    script = """
    import threading
    gate = threading.Event()
    def some_thread_that_waits():
        gate.wait()
    thread = threading.Thread(target=some_thread_that_waits)
    thread.start()
    capture.show_stacks()
    gate.set()
    thread.join()
    capture.close()
    """
    emitted, rest = captured(textwrap.dedent(script))

    assert "in some_thread_that_waits" in rest
    assert [] == emitted


@pytest.mark.integration
def test_descriptor_is_given_back() -> None:
    """After closing, stderr is what it was; closing twice does no harm."""
    _, rest = captured("capture.close(); os.write(2, b'after\\n')")

    assert "after\n" == rest


def test_lines_are_whole_however_they_arrive() -> None:
    """Pieces are joined, empty lines dropped, bytes that are no UTF-8 shown, the rest comes at the end."""
    passed: list[str] = []
    output = OutputLines(passed.append, FakeClock())
    for piece in (b"one\ntw", b"o\n\n\xff three", b"\nfour"):
        output.feed(piece)
    output.finish()

    assert passed == ["one", "two", "\\xff three", "four"]


def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    """A process that never ends its line fills no memory; one that ends too late is cut, and shows it."""
    passed: list[str] = []
    output = OutputLines(passed.append, FakeClock())
    output.feed(b"x" * (3 * LINE_MAXIMUM + 1))
    output.feed(b"\n" + b"y" * 3000 + b"\n")

    assert [len(line) for line in passed[:3]] == [LINE_MAXIMUM] * 3
    assert passed[3:] == ["x", "y" * LINE_MAXIMUM + " ..."]


def test_left_out_lines_are_counted_and_the_last_words_kept() -> None:
    """Beyond the limit lines are left out, their number is passed on, and the last ones are known."""
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
