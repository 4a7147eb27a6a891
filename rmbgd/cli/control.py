"""Asks the running service through its control socket; says why, where that does not work."""

from __future__ import annotations

import grp
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmbgd.cli.status import directories
from rmbgd.errors import Exit, RmbgdError
from rmbgd.service.control import SOCKET, connected
from rmbgd.store.ledger_lock import LEDGER, is_locked


class ServiceUnreachable(RmbgdError):
    """No service answers. `stopped`: because none runs."""

    def __init__(self, text: str, *, stopped: bool) -> None:
        self.exit = Exit.NOT_RUNNING if stopped else Exit.FAILED
        super().__init__(text)


def ask(config: Path, request: Mapping[str, Any], *, timeout: float | None = 30.0) -> dict[str, Any]:
    """The service's answer. Raises ServiceUnreachable, and RmbgdError with what the service refuses, or may not do."""
    runtime, state = directories(config)
    path = runtime / SOCKET
    try:
        with connected(path) as client:
            client.settimeout(timeout)
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as answers:
                answer = json.loads(answers.readline())
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        if is_locked(str(state / LEDGER)):
            text = f"rmbgd is running, but not reachable (no control socket at {path}): it is starting, or its log has"
            raise ServiceUnreachable(f"{text} `control.lost`", stopped=False) from None
        text = f"rmbgd is not running (no control socket at {path})"
        raise ServiceUnreachable(f"{text}; start it with: {_start(config)}", stopped=True) from None
    except PermissionError:
        raise RmbgdError(f"you may not use {path}: be root, or in the group {_group(runtime)}") from None
    except (TimeoutError, BlockingIOError):
        raise RmbgdError("the service does not answer; see `rmbgd status`, or try again") from None
    except (OSError, ValueError) as error:
        raise RmbgdError(f"the service ended the conversation ({error}); see `rmbgd status`, or try again") from error
    if "error" in answer:
        raise RmbgdError(str(answer["error"]))
    return dict(answer)


def _start(config: Path) -> str:
    return "systemctl start rmbgd" if str(config).startswith("/etc/") else f"rmbgd run --config {config}"


def _group(directory: Path) -> str:
    """Of those who may use the socket."""
    try:
        return grp.getgrgid(os.stat(directory).st_gid).gr_name
    except (OSError, KeyError):
        return "of the service"
