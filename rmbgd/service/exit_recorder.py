"""`rmbgd-record-exit`: one `service.exit` event, written by systemd's ExecStopPost when the service is gone.

A process that was killed cannot log its own death; this is its only trace. Standard library only, and quick: it runs
while the next start waits. Does not judge: what counts as a failure the report tool decides.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmbgd import events
from rmbgd.service import start_record as starts
from rmbgd.telemetry import jsonl as lines

# As in config.py, which is not imported here: it would load pydantic.
DEFAULT_CONFIG = Path("/etc/rmbgd/rmbgd.toml")
DEFAULT_RUNTIME_DIRECTORY = Path("/run/rmbgd")
DEFAULT_STATE_DIRECTORY = Path("/var/lib/rmbgd")
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
    service = _service_table(options.config)
    runtime = Path(str(service.get("runtime_directory", DEFAULT_RUNTIME_DIRECTORY)))
    keys = exit_keys(os.environ, _status(runtime / STATUS_FILE), lines.boot_id(), time.monotonic())
    line = lines.to_json(lines.envelope("service.exit", events.EVENTS["service.exit"].level) | keys)
    print(line, flush=True)
    state = Path(str(service.get("state_directory", DEFAULT_STATE_DIRECTORY)))
    starts.record_exit(state, os.environ, starts.moment(time.monotonic(), time.time()))
    if isinstance(log_file := service.get("log_file"), str):
        return 0 if lines.JsonlFile(log_file).write(line) else 1
    return 0


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


def _service_table(path: Path) -> Mapping[str, Any]:
    """The [service] table; empty when it cannot be read, because a broken configuration is an exit worth recording."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("service", {})
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _status(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
