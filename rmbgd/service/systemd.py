"""sd_notify: readiness, status and watchdog messages to systemd, through systemd-python."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from rmbgd.errors import ConfigError

MISSING = (
    "started by systemd as a notifying service (NOTIFY_SOCKET is set), but the package systemd-python is missing: "
    "systemd would never learn that the service is ready. Install it with `pip install 'rmbgd[systemd]'` into the "
    "environment of the service; it is compiled against libsystemd, whose headers are in libsystemd-dev on Debian and "
    "Ubuntu (beside pkg-config and a C compiler)"
)
MICRO = 1_000_000


class Notifier:
    """Sends the assignments of sd_notify(3) through `send`. Each call is cheap, from any thread."""

    def __init__(self, send: Callable[[str], Any] | None, *, watchdog_seconds: float | None = None) -> None:
        self._send = send
        self.watchdog_seconds = watchdog_seconds
        """Timeout of systemd's watchdog in seconds; None when it does not watch."""

    def _notify(self, *assignments: str) -> None:
        if self._send is not None:  # a newline within one would begin another
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
    """The notifier for this process. Raises ConfigError when systemd waits for READY=1 and the library is missing."""
    if not environ.get("NOTIFY_SOCKET"):
        return Notifier(None)
    try:
        daemon = importlib.import_module("systemd.daemon")
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return Notifier(daemon.notify, watchdog_seconds=watchdog_seconds(environ, os.getpid()))
