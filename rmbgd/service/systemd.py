"""sd_notify(3): readiness, status and watchdog messages to systemd, over its datagram socket."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

SEND_TIMEOUT = 5.0  # s; systemd that takes nothing for so long loses a message, and no thread of ours
MICRO = 1_000_000


class Notifier:
    """Sends the assignments of sd_notify(3) through `send`. Each call is cheap, from any thread."""

    def __init__(self, send: Callable[[str], Any] | None, *, watchdog_seconds: float | None = None) -> None:
        self._send = send
        self.watchdog_seconds = watchdog_seconds
        """Timeout of systemd's watchdog in seconds; None when it does not watch."""

    def _notify(self, *assignments: str) -> None:
        if self._send is not None:  # a newline within one would begin another
            with contextlib.suppress(OSError):  # systemd does not listen: the work goes on
                self._send("\n".join(" ".join(each.split()) for each in assignments))

    def ready(self, status: str) -> None:
        self._notify("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        self._notify("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        self._notify(f"STATUS={text}")

    def watchdog(self) -> None:
        """Every thread makes progress. Call it at least every half `watchdog_seconds`."""
        self._notify("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Starting or stopping takes `seconds` more from now; without another call systemd then gives up."""
        self._notify(f"EXTEND_TIMEOUT_USEC={int(seconds * MICRO)}")


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """As sd_watchdog_enabled(3): WATCHDOG_USEC in seconds, unless it is meant for another process."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        return int(environ["WATCHDOG_USEC"]) / MICRO or None
    except (KeyError, ValueError):
        return None


def open_notifier(environ: Mapping[str, str] = os.environ) -> Notifier:
    """The notifier for this process; a silent one where systemd does not wait for it.

    Through systemd-python where it is installed, which knows every kind of address that its libsystemd does.
    """
    if not (address := environ.get("NOTIFY_SOCKET")):
        return Notifier(None)
    try:
        send = importlib.import_module("systemd.daemon").notify
    except ImportError:
        send = socket_sender(address)
    return Notifier(send, watchdog_seconds=watchdog_seconds(environ, os.getpid()))


def socket_sender(address: str) -> Callable[[str], None]:
    """Sends to a path, or where `address` begins with @ to a socket in the abstract name space."""
    target = f"\0{address[1:]}" if address.startswith("@") else address

    def send(text: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT)
            sender.sendto(text.encode("utf-8", "backslashreplace"), target)

    return send
