"""Which files belong to which machine, and what can be read of files that are damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmbgd.errors import RmbgdError
from rmbgd.mtbf.logs import gather, read, rotation
from rmbgd.mtbf.machine import MachineHistory, machines
from tests.mtbf.box import Box


def found(*arguments: object, pattern: str | None = None) -> dict[str, MachineHistory]:
    sources = gather([str(argument) for argument in arguments], pattern)
    return {machine.name: machine for machine in machines(read(sources))}


def hours(machine: MachineHistory) -> float:
    return machine.operating / 3600


def split(box: Box, parts: int) -> list[str]:
    size = -(-len(box.lines) // parts)
    return ["".join(line + "\n" for line in box.lines[i : i + size]) for i in range(0, len(box.lines), size)]


# --- names


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("rmbgd.jsonl", "rmbgd"), ("rmbgd.jsonl.1", "rmbgd"), ("rmbgd.jsonl.12.gz", "rmbgd"),
        ("rmbgd.jsonl-20260131.gz", "rmbgd"), ("rmbgd-20260131.jsonl", "rmbgd"), ("edge-7.jsonl", "edge-7"),
        ("edge.v2.log.3.xz", "edge.v2"), ("rmbgd.jsonl-2026-01-31", "rmbgd"),
    ],
)  # fmt: skip
def test_the_stem_of_a_rotated_name(name: str, stem: str):
    """Whatever logrotate is told to append."""
    assert stem == rotation(name)[0]


@pytest.mark.parametrize(
    "names",
    [
        ["a.jsonl.10.gz", "a.jsonl.2.gz", "a.jsonl.1", "a.jsonl"],
        ["a.jsonl-20260101.gz", "a.jsonl-20260201", "a.jsonl"],
        ["a-20260101.jsonl", "a-20260115.jsonl", "a.jsonl"],
    ],
)
def test_parts_are_read_oldest_first(tmp_path: Path, names: list[str]):
    """Numbers count backwards, dates forwards, the bare name is newest."""
    for name in names:
        (tmp_path / name).write_text("")
    (source,) = gather([str(tmp_path / name) for name in reversed(names)])

    assert names == [file.name for file in source.files]


def test_a_file_per_machine(tmp_path: Path):
    """In one folder: the file's name is the machine's."""
    for name in ("edge1", "edge2"):
        Box(name).start().serve(3600).write(tmp_path / f"{name}.jsonl")

    assert {name: hours(machine) for name, machine in found(tmp_path).items()} == {"edge1": 1.0, "edge2": 1.0}


def test_a_folder_per_machine(tmp_path: Path):
    """Under one folder, or named one by one: the folder's name is the machine's, for the file's says nothing."""
    for name in ("edge1", "edge2"):
        Box(name).start().serve(3600).write(tmp_path / name / "rmbgd.jsonl")

    assert set(found(tmp_path)) == {"edge1", "edge2"}
    assert set(found(tmp_path / "edge1" / "rmbgd.jsonl", tmp_path / "edge2" / "rmbgd.jsonl")) == {"edge1", "edge2"}


def test_the_host_that_the_log_names_goes_before_paths(tmp_path: Path):
    """Two files of one host are one machine, whatever they are called."""
    first = Box("boots", host="till-3").start().serve(3600)
    lines = len(first.lines)
    first.stop().sleep(10).start().serve(3600)
    (tmp_path / "old.jsonl").write_text("\n".join(first.lines[: lines + 2]) + "\n")
    (tmp_path / "new.jsonl").write_text("\n".join(first.lines[lines + 2 :]) + "\n")

    machine = found(tmp_path / "new.jsonl", tmp_path / "old.jsonl")["till-3"]
    assert hours(machine) == 2.0
    assert machine.failures == []


def test_the_operator_s_name_goes_before_all(tmp_path: Path):
    """NAME=LOG, and --device with a pattern."""
    path = Box("edge", host="till-3").start().serve(3600).write(tmp_path / "site-9" / "x.jsonl")

    assert set(found(f"kiosk={path}")) == {"kiosk"}
    assert set(found(path, pattern=r"site-(\d+)")) == {"9"}
    assert set(found(path, pattern=r"site-\d+")) == {"site-9"}


def test_one_name_for_two_logs_makes_one_machine(tmp_path: Path):
    """Its time adds up; a stop in the one and a start in the other belong together."""
    box = Box("edge").start().serve(3600).stop().sleep(10)
    (tmp_path / "a.jsonl").write_text("\n".join(box.lines) + "\n")
    box.lines.clear()
    box.start().serve(3600).write(tmp_path / "b.jsonl")

    machine = found(f"kiosk={tmp_path / 'a.jsonl'}", f"kiosk={tmp_path / 'b.jsonl'}")["kiosk"]
    assert hours(machine) == 2.0


def test_two_names_for_one_boot_are_told(tmp_path: Path):
    """Containers of one host, or one machine counted twice: the operator knows which."""
    box = Box("edge").start().serve(3600)
    for name in ("a", "b"):
        box.write(tmp_path / f"{name}.jsonl")

    assert any("shares a boot with b" in note for note in found(tmp_path)["a"].notes)


@pytest.mark.parametrize("pattern", ["(", "nothing-like-it"])
def test_a_pattern_that_does_not_fit_is_refused(tmp_path: Path, pattern: str):
    """Rather than counting all machines as one."""
    path = Box("edge").start().write(tmp_path / "x.jsonl")

    with pytest.raises(RmbgdError, match="--device"):
        found(path, pattern=pattern)


def test_a_folder_without_logs_is_refused(tmp_path: Path):
    """With the names that are looked for."""
    (tmp_path / "readme.txt").write_text("hello")

    with pytest.raises(RmbgdError, match="no log in this folder"):
        found(tmp_path)


# --- contents


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_compressed_and_rotated_parts_are_one_log(tmp_path: Path, opener):
    """By their content, whatever their names."""
    box = Box("edge").start().serve(7200).stop().sleep(10).start().serve(3600)
    old, middle, new = split(box, 3)
    with opener(tmp_path / "edge.jsonl.2.gz", "wt") as file:
        file.write(old)
    (tmp_path / "edge.jsonl.1").write_text(middle)
    (tmp_path / "edge.jsonl").write_text(new)

    machine = found(tmp_path)["edge"]
    assert hours(machine) == 3.0
    assert machine.failures == []


def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path):
    """A power cut in the middle of a write."""
    path = Box("edge").start().serve(3600).write(tmp_path / "edge.jsonl")
    path.write_text(path.read_text() + '{"event":"health","level":"in')

    machine = found(path)["edge"]
    assert hours(machine) == 1.0
    assert any("1 torn" in note for note in machine.notes)


def test_a_tail_of_zeros_is_skipped(tmp_path: Path):
    """What some file systems leave after a power cut; the next line begins right behind it."""
    box = Box("edge").start().serve(1800)
    first = len(box.lines)
    box.serve(1800)
    text = "\n".join(box.lines[:first]).encode() + b"\n" + bytes(512) + "\n".join(box.lines[first:]).encode() + b"\n"
    (tmp_path / "edge.jsonl").write_bytes(text + bytes(100))

    machine = found(tmp_path)["edge"]
    assert hours(machine) == 1.0
    assert machine.notes == []


def test_an_archive_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path):
    """And told."""
    box = Box("edge").start().serve(360_000)
    whole = gzip.compress("".join(line + "\n" for line in box.lines).encode())
    (tmp_path / "edge.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    machine = found(tmp_path)["edge"]
    assert 0 < hours(machine) < 100
    assert any("damaged" in note for note in machine.notes)


def test_the_same_part_twice_counts_once(tmp_path: Path):
    """Copied before and after rotation."""
    box = Box("edge").start()
    for _ in range(100):
        box.sleep(30).image().health()
    box.write(tmp_path / "edge.jsonl")
    box.write(tmp_path / "edge.jsonl.1")

    machine = found(tmp_path)["edge"]
    assert machine.counts["outcomes"]["done"] == 100
    assert round(machine.operating) == 3000
    assert any("more than once" in note for note in machine.notes)


def test_an_export_of_the_journal_is_read(tmp_path: Path):
    """`journalctl -o json`: our line in MESSAGE, the host beside it, systemd's own lines between."""
    box = Box("edge").start().serve(3600)
    lines = [json.dumps({"MESSAGE": line, "_HOSTNAME": "till-3", "_PID": "1"}) for line in box.lines]
    lines.insert(1, json.dumps({"MESSAGE": "Started rmbgd.", "_HOSTNAME": "till-3"}))
    (tmp_path / "export.json").write_text("\n".join(lines) + "\n")

    machine = found(tmp_path)["till-3"]
    assert hours(machine) == 1.0
    assert any("other programs" in note for note in machine.notes)


def test_lines_as_journalctl_shows_them_are_read(tmp_path: Path):
    """With time, host and program before the event."""
    box = Box("edge").start().serve(3600)
    box.lines = [f"Jan 01 00:00:00 till-3 rmbgd[77]: {line}".replace('{"event": ', '{"event":') for line in box.lines]
    box.write(tmp_path / "edge.log")

    assert hours(found(tmp_path)["edge"]) == 1.0


def test_standard_input(monkeypatch: pytest.MonkeyPatch):
    """As `-`, for pipes."""
    text = "".join(line + "\n" for line in Box("edge").start().serve(3600).lines)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))

    assert hours(found("edge=-")["edge"]) == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "[]", "null", "{}", '{"event": 5}', '{"event":"health"}', "not json", "[" * 100_000,
        '{"event":"health","time":"x","monotonic":1,"boot_id":"b","pid":1}',
        '{"event":"health","time":"2026-01-01T00:00:00Z","monotonic":"1","boot_id":"b","pid":1}',
        '{"event":"health","time":"2026-01-01T00:00:00Z","monotonic":true,"boot_id":"b","pid":1}',
    ],
)  # fmt: skip
def test_lines_that_are_not_ours_are_left_out_and_told(tmp_path: Path, line: str):
    """None of them ends the report."""
    path = Box("edge").start().serve(3600).write(tmp_path / "edge.jsonl")
    path.write_text(path.read_text() + line + "\n")

    machine = found(path)["edge"]
    assert hours(machine) == 1.0
    assert any("left out" in note for note in machine.notes)
