"""What systemd is told: ready, stopping, status, alive. Through systemd-python; silent when systemd did not start us.

Does not decide whether the service is alive: monitor.py does.
"""

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
    """Tells systemd how we are. Each call is cheap, from any thread. `send` takes the assignments of sd_notify(3)."""

    def __init__(self, send: Callable[[str], Any] | None, *, watchdog_seconds: float | None = None) -> None:
        self._send = send
        self.watchdog_seconds = watchdog_seconds
        """Systemd's patience in seconds; None when it does not watch."""

    @property
    def active(self) -> bool:
        return self._send is not None

    def _tell(self, *assignments: str) -> None:
        if self._send is not None:
            self._send("\n".join(assignments))

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={_one_line(status)}")

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        self._tell(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """Every thread moves. Say so at least every half `watchdog_seconds`."""
        self._tell("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Starting or stopping takes `seconds` more from now; without another call systemd then loses patience."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * MICRO)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """What sd_watchdog_enabled(3) finds: WATCHDOG_USEC, unless it is meant for another process."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        return int(environ["WATCHDOG_USEC"]) / MICRO or None
    except (KeyError, ValueError):
        return None


def open_notifier(environ: Mapping[str, str] | None = None) -> Notifier:
    """The notifier for how we were started. Raises ConfigError when systemd waits for word and we have no voice."""
    environ = os.environ if environ is None else environ
    if not environ.get("NOTIFY_SOCKET"):
        return Notifier(None)
    try:
        daemon = importlib.import_module("systemd.daemon")
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return Notifier(daemon.notify, watchdog_seconds=watchdog_seconds(environ, os.getpid()))
