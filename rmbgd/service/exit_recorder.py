"""`rmbgd-record-exit` (ExecStopPost): write a `service.exit` event when the service is gone.

A process that was killed cannot log its own death; this is its only trace. Standard library only, and quick: it runs
while the next start waits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmbgd import events
from rmbgd.paths import DEFAULT_CONFIG, DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY, unit_directories
from rmbgd.service import start_record
from rmbgd.telemetry import journal, jsonl, messages

STATUS_FILE = "status.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="rmbgd-record-exit",
        description="Write a service.exit event from SERVICE_RESULT, EXIT_CODE and EXIT_STATUS, as systemd sets them "
        "for ExecStopPost, to stdout and to the log file of the configuration.",
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if "SERVICE_RESULT" not in os.environ:
        print("rmbgd-record-exit: SERVICE_RESULT is not set; systemd runs this as ExecStopPost", file=sys.stderr)
        return 2
    found = _read(Path(os.path.expanduser(options.config)), tomllib.loads).get("service")
    service = unit_directories() | (found if isinstance(found, dict) else {})
    runtime = Path(os.path.expanduser(str(service.get("runtime_directory", DEFAULT_RUNTIME_DIRECTORY))))
    keys = exit_keys(os.environ, _read(runtime / STATUS_FILE, json.loads), jsonl.boot_id(), time.monotonic())
    keys = jsonl.envelope("service.exit", events.EVENTS["service.exit"].level) | keys
    line = jsonl.to_json(keys)
    state = Path(os.path.expanduser(str(service.get("state_directory", DEFAULT_STATE_DIRECTORY))))
    start_record.record_exit(state, os.environ, start_record.moment(time.monotonic(), time.time()))
    log_file = service.get("log_file")
    written = not isinstance(log_file, str) or jsonl.JsonlFile(os.path.expanduser(log_file)).write(line)
    _show(line, keys)  # last: a journal that hangs would keep the rest from being written
    return 0 if written else 1


def _show(line: str, keys: Mapping[str, Any]) -> None:
    """In the journal as the service's own entries are; else on stdout."""
    if journal.leads_to_journal(1):
        with contextlib.suppress(OSError):
            journal.sendv(*journal.entry(messages.message("service.exit", keys), line, keys))
            return
    print(line, flush=True)


def exit_keys(environ: Mapping[str, str], status: Mapping[str, Any], boot_id: str, now: float) -> dict[str, Any]:
    """The event's keys. `status` is the last status file, believed only when of this run; `now` is monotonic, in s."""
    keys: dict[str, Any] = {
        "result": environ["SERVICE_RESULT"],
        "code": environ.get("EXIT_CODE", "unknown"),
        "status": environ.get("EXIT_STATUS", "unknown"),
    }
    same_run = status.get("boot_id") == boot_id and status.get("invocation_id") == environ.get("INVOCATION_ID")
    started = status.get("started")
    if same_run and isinstance(started, (int, float)):
        keys["uptime"] = round(now - started, 3)
        if isinstance(pid := status.get("pid"), int):
            keys["ended_pid"] = pid
    return keys


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The table in a file; empty when it cannot be read, because a broken configuration is an exit worth recording."""
    try:
        found = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
