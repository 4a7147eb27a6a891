"""Which files belong to which machine, and what can be read of files that are damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmbgd.errors import RmbgdError
from rmbgd.mtbf.logs import gather, read, rotation
from rmbgd.mtbf.machine import MachineHistory, machines
from rmbgd.mtbf.timeline import State
from tests.mtbf.box import Box


def found(*arguments: object, pattern: str | None = None) -> dict[str, MachineHistory]:
    sources = gather([str(argument) for argument in arguments], pattern)
    return {machine.name: machine for machine in machines(read(sources))}


def hours(machine: MachineHistory) -> float:
    return machine.operating / 3600


def text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


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
    for name in names:
        (tmp_path / name).write_text("")
    (source,) = gather([str(tmp_path / name) for name in reversed(names)])
    assert names == [file.name for file in source.files]


@pytest.mark.parametrize("name", ["{}.jsonl", "{}/rmbgd.jsonl"])
def test_a_file_or_a_folder_per_machine(tmp_path: Path, name: str):
    paths = [Box(box).start().serve(3600).write(tmp_path / name.format(box)) for box in ("edge10", "edge9")]
    for arguments in ([tmp_path], paths):
        assert [(name, hours(machine)) for name, machine in found(*arguments).items()] == [("edge9", 1), ("edge10", 1)]


def test_names_of_the_operator_go_before_the_host_in_the_log_and_that_before_paths(tmp_path: Path):
    """NAME=LOG, and --device with a pattern. One name for two logs makes one machine."""
    box = Box("boots", host="till-3").start().serve(3600).stop().sleep(10).start().serve(3600)
    old, new = tmp_path / "site-9" / "x.jsonl", tmp_path / "site-9" / "y.jsonl"
    old.parent.mkdir()
    old.write_text(text(box.lines[:64]))
    new.write_text(text(box.lines[64:]))

    for name, logs in (("till-3", [new, old]), ("kiosk", [f"kiosk={old}", f"kiosk={new}"])):
        machines = found(*logs)
        assert (set(machines), hours(machines[name]), machines[name].failures) == ({name}, 2.0, [])
    assert set(found(old, pattern=r"site-(\d+)")) == {"9"}
    assert set(found(old, pattern=r"site-\d+")) == {"site-9"}


def test_two_names_for_one_boot_are_told(tmp_path: Path):
    for name in ("a", "b"):
        Box("edge").start().serve(3600).write(tmp_path / f"{name}.jsonl")
    assert any("shares a boot with b" in note for note in found(tmp_path)["a"].notes)


@pytest.mark.parametrize(
    ("argument", "pattern", "words"),
    [
        ("x.jsonl", "(", "--device"),
        ("x.jsonl", "nothing-like-it", "--device"),  # rather than counting all machines as one
        ("empty", None, "no log in this folder"),
        ("missing", None, "no such file"),
    ],
)
def test_what_names_no_log_is_refused(tmp_path: Path, argument: str, pattern: str | None, words: str):
    Box("edge").start().write(tmp_path / "x.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    with pytest.raises(RmbgdError, match=words):
        found(tmp_path / argument, pattern=pattern)


# --- contents


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_compressed_and_rotated_parts_are_one_log(tmp_path: Path, opener):
    box = Box("edge").start().serve(7200).stop().sleep(10).start().serve(3600)
    with opener(tmp_path / "edge.jsonl.2.gz", "wt") as file:
        file.write(text(box.lines[:60]))
    (tmp_path / "edge.jsonl.1").write_text(text(box.lines[60:120]))
    (tmp_path / "edge.jsonl").write_text(text(box.lines[120:]))
    machine = found(tmp_path)["edge"]
    assert (hours(machine), machine.failures) == (3.0, [])


LINES = Box("edge").start().serve(3600).lines
JOURNAL = [json.dumps({"MESSAGE": line, "_HOSTNAME": "till-3", "_PID": "1"}) for line in LINES]
# As rmbgd writes today, as `journalctl -o json --all` exports it: a sentence, the event beside it.
NATIVE = [
    json.dumps({"MESSAGE": "3 waiting", "RMBGD_JSON": line, "RMBGD_EVENT": "x", "_HOSTNAME": "till-3"})
    for line in LINES
]
# A value that is no printable UTF-8, and a field that comes twice.
ODD = [
    json.dumps({"MESSAGE": [1, 2, 255], "RMBGD_JSON": list(line.encode()), "_HOSTNAME": "till-3"})
    for line in LINES[:30]
]
ODD += [json.dumps({"MESSAGE": ["a", "b"], "RMBGD_JSON": [line, "x"], "_HOSTNAME": "till-3"}) for line in LINES[30:]]
CUT = json.dumps(
    {"MESSAGE": "thread failed", "RMBGD_JSON": None, "RMBGD_EVENT": "service.failed", "_HOSTNAME": "till-3"}
)
SHOWN = [f"Jan 01 00:00:00 till-3 rmbgd[77]: {line}".replace('{"event": ', '{"event":') for line in LINES]


@pytest.mark.parametrize(
    ("content", "machine", "note"),
    [
        # A power cut in the middle of a write; the zeros that some file systems leave, with a line right behind them.
        (text(LINES) + '{"event":"health","level":"in', "edge", "1 torn"),
        (text(LINES[:30]) + "\0" * 512 + text(LINES[30:]) + "\0" * 100, "edge", ""),
        # `journalctl -o json`: our line in MESSAGE, the host beside it, systemd's own lines between.
        (text([JOURNAL[0], json.dumps({"MESSAGE": "Started rmbgd."}), *JOURNAL[1:]]), "till-3", "other programs"),
        (text([JOURNAL[0], json.dumps({"MESSAGE": "Started rmbgd."}), *NATIVE[1:]]), "till-3", "other programs"),
        (text(NATIVE), "till-3", ""),
        (text(ODD), "till-3", ""),
        (text([*NATIVE, CUT]), "till-3", "1 event that journalctl cut short; export with `journalctl -o json --all`"),
        (text(SHOWN), "edge", ""),  # by journalctl, with time, host and program before the event
        (text(json.dumps(json.loads(line) | {"boot_id": "unknown"}) for line in LINES), "edge", ""),
    ],
)
def test_a_log_is_read_as_it_is_found(tmp_path: Path, content: str, machine: str, note: str):
    (tmp_path / "edge.log").write_text(content)
    ((name, history),) = found(tmp_path).items()
    assert (name, hours(history)) == (machine, 1.0)
    assert any(note in each for each in history.notes) if note else history.notes == []


@pytest.mark.parametrize("exported", [JOURNAL, NATIVE])
def test_an_event_from_journal_and_log_file_counts_once(tmp_path: Path, exported: list[str]):
    (tmp_path / "till-3.jsonl").write_text(text(LINES))
    (tmp_path / "till-3.json").write_text(text(exported))
    ((name, history),) = found(tmp_path).items()
    assert (name, hours(history), len(history.boots)) == ("till-3", 1.0, 1)
    assert history.boots[0].repeated == len(LINES)


def test_a_kernel_that_names_no_boot_is_told_apart_by_its_clock(tmp_path: Path):
    box = Box("edge").start().serve(3600).reboot(10).start().serve(3600)
    box.lines = [json.dumps(json.loads(line) | {"boot_id": "unknown"}) for line in box.lines]
    machine = found(box.write(tmp_path / "edge.jsonl"))["edge"]
    assert (hours(machine), round(machine.timeline.seconds(State.POWER_LOSS))) == (2.0, 12)


def test_an_archive_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path):
    whole = gzip.compress(text(Box("edge").start().serve(36_000).lines).encode())
    (tmp_path / "edge.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    machine = found(tmp_path)["edge"]
    assert 0 < hours(machine) < 10
    assert any("damaged" in note for note in machine.notes)


def test_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text(LINES).encode())))
    assert hours(found("edge=-")["edge"]) == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "[]", "null", "{}", '{"event": 5}', '{"event":"health"}', "not json", "[" * 100_000,
        '{"event":"health","time":"x","monotonic":1,"boot_id":"b","pid":1}',
        '{"event":"health","time":"2026-01-01T00:00:00Z","monotonic":"1","boot_id":"b","pid":1}',
        *(
            f'{{"event":"image.done","time":"2026-01-01T00:00:00Z","monotonic":{at},"boot_id":"b","pid":{pid}}}'
            for at, pid in [("true", 1), ("NaN", 1), ("Infinity", 1), ("1" * 400, 1), (1, "true"), (1, "1" * 40)]
        ),
    ],
)  # fmt: skip
def test_lines_that_are_not_ours_are_left_out_and_told(tmp_path: Path, line: str):
    (tmp_path / "edge.jsonl").write_text(text([*LINES, line]))
    machine = found(tmp_path)["edge"]
    assert hours(machine) == 1.0
    assert any("left out" in note for note in machine.notes)


@pytest.mark.parametrize("time", ["Infinity", "NaN", "1e300", "1" * 400, '"x"'])
def test_a_time_that_nothing_measures_ends_no_report(tmp_path: Path, time: str):
    box = Box("edge").start().image(milliseconds={"total": 1, "wait": 2.0}).serve(60)
    (tmp_path / "edge.jsonl").write_text(text(box.lines).replace('"total": 1,', f'"total": {time},'))
    (boot,) = found(tmp_path)["edge"].boots
    assert [list(boot.images.values(stage)) for stage in ("total", "wait")] == [[], [2.0]]
