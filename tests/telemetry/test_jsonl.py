"""One event, one line of JSON; and the file of lines survives what is done to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from http import HTTPMethod
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.telemetry import jsonl


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("/a/b"), "/a/b"),
        (b"\xff\x1b[2J\n.jpg", "\udcff\x1b[2J\n.jpg"),
        (os.fsdecode(b"\xff\x1b[2J\n.jpg"), "\udcff\x1b[2J\n.jpg"),  # a hostile file name is found again by os.fsencode
        ("x" * 1_000_000, "x" * jsonl.TEXT_MAXIMUM + "... (1000000 characters)"),  # one value cannot fill the log
        (HTTPMethod.GET, "GET"),
        ({"b", "a"}, ["a", "b"]),
        (np.float32(0.5), 0.5),
        (np.arange(2), [0, 1]),
        (datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), "2026-01-02T03:04:05.678Z"),
        (float("nan"), None),
        ([{"inner": float("inf")}, (1, 2)], [{"inner": None}, [1, 2]]),
        (..., "Ellipsis"),
        ({3: "key"}, {"3": "key"}),
    ],
)
def test_every_value_becomes_json(value: object, expected: object) -> None:
    assert {"key": expected} == json.loads(jsonl.to_json({"key": value}))


TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # controls of the writing's direction
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)


@given(st.dictionaries(st.text(max_size=8), leaves | st.lists(leaves, max_size=3), max_size=4))
def test_any_value_is_one_line_that_steers_nothing(values: dict[str, object]) -> None:
    line = jsonl.to_json(values)
    assert line.encode("utf-8", "strict").decode() == line
    assert {unicodedata.category(char) for char in line}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    assert {unicodedata.bidirectional(char) for char in line}.isdisjoint(TURNING)
    assert len(line.splitlines()) == 1
    assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Vase mit Ümläut.JPG", "Vase mit Ümläut.JPG"),  # as grep looks for it
        ("靴\u3000😀.jpg", "靴\u3000😀.jpg"),
        ("a\x1b\x7f\x9b\u202e\u2066\u200f\u2028\udcff.jpg", r"a\u001b\u007f\u009b\u202e\u2066\u200f\u2028\udcff.jpg"),
        ("\U000e0041tag\ufeff", r"\udb40\udc41tag\ufeff"),
    ],
)
def test_names_are_in_utf8_but_for_what_nobody_sees(name: str, written: str) -> None:
    line = jsonl.to_json({"path": name})
    assert f'{{"path":"{written}"}}' == line
    assert name == json.loads(line)["path"]


def test_process_is_known_by_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for as long as it lives, and nothing for a number that no process has; nor has every kernel a boot."""
    assert jsonl.process_start(os.getpid()) == jsonl.process_start(os.getpid()) is not None
    assert jsonl.process_start(2**22 + 1) is None
    monkeypatch.setattr(jsonl, "open", Mock(side_effect=OSError), raising=False)
    assert jsonl.boot_id.__wrapped__() == "unknown"


def copy_and_truncate(path: Path, old: Path) -> None:
    old.write_bytes(path.read_bytes())
    os.truncate(path, 0)


@pytest.mark.parametrize("rotate", [Path.rename, copy_and_truncate, lambda path, _: path.unlink()])
def test_lines_follow_the_path_through_rotation(rotate: Callable[[Path, Path], None], tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    file = jsonl.JsonlFile(path)
    file.write("one")
    rotate(path, old)
    assert file.write("two")
    assert "two\n" == path.read_text()
    assert not old.exists() or "one\n" == old.read_text()


def test_half_a_line_of_a_killed_process_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('one\n{"event":"he')
    jsonl.JsonlFile(path).write("two")
    assert ["one", '{"event":"he', "two"] == path.read_text().splitlines()


def test_missing_folder_is_counted_and_comes_back(tmp_path: Path) -> None:
    file = jsonl.JsonlFile(tmp_path / "later" / "log")
    assert not file.write("one")
    (tmp_path / "later").mkdir()
    assert file.write("two")
    assert 1 == file.dropped
    assert "two\n" == (tmp_path / "later" / "log").read_text()


@pytest.mark.integration
def test_full_disk_is_counted_and_later_lines_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script = """
import resource, signal, sys
from rmbgd.telemetry.jsonl import JsonlFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = JsonlFile(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
written = [file.write(line) for line in ("123456", "abcdefgh", "lost")]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*written, file.write("whole"), file.dropped)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "True False False True 2\n" == done.stdout
    assert ["123456", "abc", "whole"] == path.read_text().splitlines()


def test_new_file_is_for_owner_and_group_only(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o077))
        jsonl.JsonlFile(tmp_path / "log").write("one")
    assert 0o640 == (tmp_path / "log").stat().st_mode & 0o777


def test_signal_handler_may_log_while_a_line_is_written(tmp_path: Path) -> None:
    file = jsonl.JsonlFile(tmp_path / "log")
    with file._lock:
        assert file.write("from the handler")
