"""What C libraries write to descriptor 2 becomes events; what faulthandler writes does not."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

from rmbgd.telemetry.captured_output import LINES_AT_ONCE

SETUP = """
import json, os, sys
from rmbgd.telemetry import captured_output as stderr
told = []
def emit(event, /, **keys):
    told.append([event, keys])
capture = stderr.capture_stderr(emit)
"""
REPORT = """
capture.close()
print(json.dumps(told))
"""


def captured(script: str) -> tuple[list[tuple[str, dict[str, str]]], str]:
    """What a process that runs `script` under capture emitted, and what reached its true stderr."""
    done = subprocess.run([sys.executable, "-c", SETUP + script + REPORT], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_lines_of_a_c_library_become_events() -> None:
    """Each line is one event, whichever way it was written, and the true stderr stays empty."""
    told, rest = captured("os.write(2, b'TIFF: odd tag\\n'); print('python too', file=sys.stderr)")

    assert "" == rest
    assert [
        ["engine.output", {"source": "service", "line": "TIFF: odd tag"}],
        ["engine.output", {"source": "service", "line": "python too"}],
    ] == told


def test_last_line_without_an_end_is_told() -> None:
    """A library that dies in the middle of a line still says what it had to say."""
    told, _ = captured("os.write(2, b'abort: bad')")

    assert ["abort: bad"] == [keys["line"] for _, keys in told]


def test_bytes_that_are_no_text_are_shown_as_escapes() -> None:
    """Decoders quote the file they choke on."""
    told, _ = captured("os.write(2, b'bad \\xff byte\\n')")

    assert [r"bad \xff byte"] == [keys["line"] for _, keys in told]


def test_flood_is_cut_and_counted() -> None:
    """Hundreds of lines about one file do not drown the log: the first pass, the rest is counted."""
    told, _ = captured("[os.write(2, b'line\\n') for _ in range(1000)]")

    assert LINES_AT_ONCE <= len(told) < 2 * LINES_AT_ONCE


def test_endless_line_is_cut() -> None:
    """A megabyte without a newline becomes short lines."""
    told, _ = captured("os.write(2, b'x' * 100_000 + b'\\n')")

    assert told
    assert all(len(keys["line"]) < 1100 for _, keys in told)


def test_writer_does_not_wait_for_a_reader_that_cannot_run() -> None:
    """A library that writes megabytes while it holds the interpreter lock loses text, and does not stand still."""
    script = """
import ctypes
libc = ctypes.PyDLL(None)  # keeps the interpreter lock: the reading thread cannot run
for _ in range(100):
    libc.write(2, b'y' * 65536, 65536)
"""
    told, _ = captured(script)

    assert told


def test_stacks_of_a_dying_process_reach_the_true_stderr() -> None:
    """faulthandler writes while nobody can read any more: past the capture."""
    script = SETUP + "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert -6 == done.returncode
    assert "Fatal Python error: Aborted" in done.stderr


def test_stacks_of_a_living_process_reach_the_true_stderr() -> None:
    """Every thread's, and the process goes on."""
    script = """
    import threading
    gate = threading.Event()
    def somebody_who_waits():
        gate.wait()
    thread = threading.Thread(target=somebody_who_waits)
    thread.start()
    capture.show_stacks()
    gate.set()
    thread.join()
    capture.close()
    """
    events, rest = captured(textwrap.dedent(script))

    assert "in somebody_who_waits" in rest
    assert [] == events


def test_descriptor_is_given_back() -> None:
    """After closing, stderr is what it was; closing twice does no harm."""
    _, rest = captured("capture.close(); os.write(2, b'after\\n')")

    assert "after\n" == rest
