"""The systemd journal's native protocol: entries with fields, over its datagram socket.

Standard library only, because the exit recorder uses it. Protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import importlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SOCKET = "/run/systemd/journal/socket"
TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)  # for a datagram; it then goes as a file descriptor
PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog's, as the journal filters by
# What an operator filters the journal by (`journalctl RMBGD_EVENT=image.failed`); the rest is in RMBGD_JSON.
KEYS = ("event", "level", "folder", "path", "job", "reason", "device", "model", "stage", "kind")
Send = Callable[..., object]  # as systemd.journal.sendv: takes each field as b"NAME=value"


def fields(keys: Mapping[str, Any]) -> dict[str, str]:
    """RMBGD_EVENT, RMBGD_PATH ...: the keys of an event that it is found by."""
    return {f"RMBGD_{key.upper()}": str(keys[key]) for key in KEYS if keys.get(key) is not None}


def entry(message: str, line: str, keys: Mapping[str, Any]) -> list[bytes]:
    """The fields of one event: `message` for people, `line` the whole event as JSON, `keys` with event and level."""
    own = {
        "MESSAGE": message,
        "PRIORITY": str(PRIORITY.get(keys["level"], 6)),
        "SYSLOG_IDENTIFIER": "rmbgd",  # what the unit says holds for stdout only
        **fields(keys),
        "RMBGD_JSON": line,
    }
    return [f"{name}=".encode() + as_bytes(value) for name, value in own.items()]


def as_bytes(text: str) -> bytes:
    """A file name as the bytes that it has on disk; of any other text what UTF-8 can say."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def leads_to_journal(descriptor: int) -> bool:
    """Whether `descriptor` leads to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def open_journal() -> Send:
    """systemd-python's where it is installed, else our own."""
    try:
        return importlib.import_module("systemd.journal").sendv  # type: ignore[no-any-return]
    except ImportError:
        return sendv


def sendv(*fields: bytes, path: str = SOCKET) -> None:
    """Send one entry; waits while journald does not read. Raises OSError, also when no journal is there."""
    data = serialize(fields)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(data, path)
        except OSError as error:
            if error.errno not in TOO_LARGE:
                raise
            _send_file(sender, data, path)


def _send_file(sender: socket.socket, data: bytes, path: str) -> None:
    """In memory that nobody can change any more; journald takes no other."""
    descriptor = os.memfd_create("rmbgd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        sender.sendmsg([], [passed], 0, path)


def serialize(fields: Iterable[bytes]) -> bytes:
    r"""NAME=value\n; a value with a newline as NAME\n, its length (64 bits, little-endian), value\n."""
    data = bytearray()
    for field in fields:
        name, _, value = field.partition(b"=")
        if b"\n" in value:
            data += name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            data += field + b"\n"
    return bytes(data)
