"""One event, one line of JSON; and the file of lines survives what is done to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.events import ENVELOPE
from rmbgd.telemetry import jsonl as lines


class Colour(StrEnum):
    RED = "red"


def test_every_value_becomes_json() -> None:
    """Paths, bytes, enums, sets, numpy's scalars, moments, NaN and strangers: none of them breaks the line."""
    values = {
        "path": Path("/a/b"),
        "bytes": b"\xff\xfe.jpg",
        "enum": Colour.RED,
        "set": {"b", "a"},
        "numpy": np.float32(0.5),
        "array": np.arange(2),
        "moment": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "nan": float("nan"),
        "nested": [{"inner": float("inf")}, (1, 2)],
        "stranger": ...,
        3: "key",
    }

    assert {
        "path": "/a/b",
        "bytes": "\udcff\udcfe.jpg",
        "enum": "red",
        "set": ["a", "b"],
        "numpy": 0.5,
        "array": [0, 1],
        "moment": "2026-01-02T03:04:05.678Z",
        "nan": None,
        "nested": [{"inner": None}, [1, 2]],
        "stranger": "Ellipsis",
        "3": "key",
    } == json.loads(lines.to_json(values))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_like))
def test_any_value_is_one_printable_ascii_line(values: dict[str, object]) -> None:
    """No value can end the line early, or send a control character to a terminal."""
    line = lines.to_json(values)

    assert line.isascii()
    assert line.isprintable()
    assert isinstance(json.loads(line), dict)


def test_hostile_file_name_survives_the_round_trip() -> None:
    """A name of bytes that are no UTF-8, with an escape and a newline, is found again by os.fsencode."""
    name = b"\xff\x1b[2J\n.jpg"

    assert name == os.fsencode(json.loads(lines.to_json({"path": os.fsdecode(name)}))["path"])


def test_long_text_is_cut_and_says_so() -> None:
    """One value cannot fill the log."""
    kept = json.loads(lines.to_json({"text": "x" * 1_000_000}))["text"]

    assert len(kept) < 2 * lines.KEPT_MAXIMUM
    assert kept.endswith("(1000000 characters)")


def test_envelope_has_the_keys_of_the_vocabulary() -> None:
    """Each line says what, how bad, when on two clocks, in which boot, process and version."""
    assert ENVELOPE == tuple(lines.envelope("health", "info"))


def test_time_is_rfc_3339_in_utc_with_milliseconds() -> None:
    """2026-01-31T09:15:00.123Z, whatever the local zone."""
    stamp = lines.envelope("health", "info")["time"]

    assert stamp == lines.rfc3339(datetime.fromisoformat(stamp))
    assert stamp.endswith("Z")


def test_process_is_known_by_its_start() -> None:
    """The same for as long as it lives, and nothing for a number that no process has."""
    own = lines.process_start(os.getpid())

    assert own is not None
    assert own == lines.process_start(os.getpid())
    assert lines.process_start(2**22 + 1) is None


def test_line_goes_to_the_new_file_after_rotation_by_rename(tmp_path: Path) -> None:
    """logrotate needs no signal: the old file keeps the old lines, a new one gets the new."""
    path = tmp_path / "log"
    file = lines.JsonlFile(path)
    file.write("one")
    path.rename(tmp_path / "log.1")

    assert file.write("two")
    assert "one\n" == (tmp_path / "log.1").read_text()
    assert "two\n" == path.read_text()


def test_line_goes_to_a_new_file_after_deletion(tmp_path: Path) -> None:
    """A deleted log does not swallow lines into a file without a name."""
    path = tmp_path / "log"
    file = lines.JsonlFile(path)
    file.write("one")
    path.unlink()

    assert file.write("two")
    assert "two\n" == path.read_text()


def test_half_a_line_of_a_killed_process_does_not_swallow_the_next(tmp_path: Path) -> None:
    """The first line after a power cut stands on a line of its own."""
    path = tmp_path / "log"
    path.write_text('one\n{"event":"he')
    lines.JsonlFile(path).write("two")

    assert ["one", '{"event":"he', "two"] == path.read_text().splitlines()


def test_missing_folder_is_counted_and_comes_back(tmp_path: Path) -> None:
    """What cannot be written is dropped and counted, and nothing is raised; writing goes on when it can."""
    file = lines.JsonlFile(tmp_path / "later" / "log")

    assert not file.write("one")
    (tmp_path / "later").mkdir()
    assert file.write("two")
    assert 1 == file.dropped
    assert "two\n" == (tmp_path / "later" / "log").read_text()


def test_full_disk_is_counted_and_later_lines_are_whole(tmp_path: Path) -> None:
    """ENOSPC in the middle of a line: it is counted as lost, and what follows when there is room stands whole."""
    path = tmp_path / "log"
    script = (
        "import os, resource, signal, sys\n"
        "from rmbgd.telemetry import jsonl as lines\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = lines.JsonlFile(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))\n"
        "first = file.write('123456')\n"
        "second = file.write('abcdefgh')\n"
        "third = file.write('lost')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(first, second, third, file.write('whole'), file.dropped)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)

    assert "True False False True 2\n" == done.stdout
    assert ["123456", "abc", "whole"] == path.read_text().splitlines()


def test_new_file_is_for_owner_and_group_only(tmp_path: Path) -> None:
    """Names of customers' files are in the log; the umask does not decide who reads it."""
    before = os.umask(0o077)
    try:
        lines.JsonlFile(tmp_path / "log").write("one")
    finally:
        os.umask(before)

    assert 0o640 == (tmp_path / "log").stat().st_mode & 0o777


def test_signal_handler_may_log_while_a_line_is_written(tmp_path: Path) -> None:
    """The lock is the writing thread's own: logging from a handler does not stand still."""
    file = lines.JsonlFile(tmp_path / "log")

    with file._lock:
        assert file.write("from the handler")
