"""The journal's native protocol, over a real socket: what journald would receive."""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.telemetry import journal


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(os.fspath(tmp_path / "socket"))
        listening.settimeout(30)
        yield listening


def parsed(data: bytes) -> dict[bytes, bytes]:
    """As journald reads it."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        found[name] = value
    return found


def test_entry_arrives_with_its_fields(tmp_path: Path, journald: socket.socket) -> None:
    """A name with a newline, and one that is no UTF-8, are not changed."""
    keys = {"event": "image.failed", "level": "warning", "path": "a\n=\udcff.jpg", "folder": "shop", "job": 7}
    journal.sendv(*journal.entry("refused", "{}", keys), path=os.fspath(tmp_path / "socket"))
    assert parsed(journald.recv(65536)) == {
        b"MESSAGE": b"refused", b"PRIORITY": b"4", b"SYSLOG_IDENTIFIER": b"rmbgd", b"RMBGD_JSON": b"{}",
        b"RMBGD_EVENT": b"image.failed", b"RMBGD_LEVEL": b"warning", b"RMBGD_FOLDER": b"shop", b"RMBGD_JOB": b"7",
        b"RMBGD_PATH": b"a\n=\xff.jpg",
    }  # fmt: skip


def test_entry_too_large_for_a_datagram_comes_in_sealed_memory(tmp_path: Path, journald: socket.socket) -> None:
    large = b"MESSAGE=" + b"x" * (8 << 20)
    journal.sendv(large, path=os.fspath(tmp_path / "socket"))
    room = socket.CMSG_LEN(array.array("i").itemsize)
    data, [(_, kind, passed)], *_ = journald.recvmsg(65536, room)
    assert (b"", socket.SCM_RIGHTS) == (data, kind)
    with open(array.array("i", passed)[0], "rb") as memory:
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        memory.seek(0)
        assert large + b"\n" == memory.read()


def test_no_journal_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        journal.sendv(b"MESSAGE=x", path=os.fspath(tmp_path / "socket"))


def test_characters_that_no_file_name_has_lose_no_entry() -> None:
    assert rb"RMBGD_PATH=\ud800" in journal.entry("", "", {"event": "x", "level": "info", "path": "\ud800"})
