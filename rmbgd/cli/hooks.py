"""`rmbgd hooks`: run what the service has put into its spool, outside of its sandbox; try a hook out."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rmbgd import events
from rmbgd.cli.main import add_config
from rmbgd.config import load as configuration
from rmbgd.errors import ConfigError, Exit
from rmbgd.service.hooks import HOOKS, SPOOL, run_hook, run_spool
from rmbgd.telemetry import jsonl, log
from rmbgd.telemetry.messages import message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", dest="action", metavar="run | test", required=True)
    text = "run what the service asked for since the last time, and end; rmbgd-hooks.path starts this"
    add_config(commands.add_parser("run", help=text, description=text))
    text = "run one hook now, with an example event"
    test = commands.add_parser("test", help=text, description=text)
    test.add_argument("hook", choices=tuple(HOOKS), help="which one")
    add_config(test)


def run(options: argparse.Namespace) -> int:
    """Raises ConfigError."""
    config = configuration.load(options.config)
    if options.action == "test":
        if not (hook := getattr(config.hooks, options.hook)):
            raise ConfigError(f"{options.config}: hooks.{options.hook} is not set; give it a command or a unit")
        if problem := run_hook(hook, example(options.hook), config.hooks.timeout):
            print(f"rmbgd hooks: {problem}", file=sys.stderr)
            return Exit.FAILED
        print(f"hooks.{options.hook}: done")
        return Exit.OK
    runtime = config.service.runtime_directory
    owner = drop_rights(runtime) if os.geteuid() == 0 and runtime.is_dir() else None
    with log.open_log(config.service) as events_log:

        def failed(hook: str, detail: str) -> None:
            events_log.emit("hook.failed", hook=hook, detail=detail)

        run_spool(runtime / SPOOL, config.hooks, failed, owner=owner, as_root=as_root)
    return Exit.OK


def drop_rights(runtime: os.PathLike[str]) -> tuple[int, int]:
    """Go on as the owner of the runtime directory, which is the service's user. Returns user and group.

    The spool is that user's: root must not follow what it put there. Root is kept in reserve, see `as_root`.
    """
    status = os.stat(runtime)
    try:
        os.initgroups(pwd.getpwuid(status.st_uid).pw_name, status.st_gid)
    except KeyError:  # a user without a name
        os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    return status.st_uid, status.st_gid


@contextmanager
def as_root() -> Iterator[None]:
    """What only root may: start a unit, or give a command to another user. Nothing where this process is not root's."""
    if os.getuid() != 0:
        yield
        return
    user = os.geteuid()
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(user)


def example(hook: str) -> dict[str, object]:
    """A call as the service would write it."""
    keys: dict[str, object] = {
        "on_failed": {"folder": "example", "path": "example.jpg", "reason": "truncated", "detail": "this is a test"},
        "on_idle": {"waiting": 0, "in_flight": 0, "done": 1, "failed": 0, "device": "cpu", "uptime": 60.0},
        "on_failover": {"from": "cuda:0", "to": "cpu", "reason": "temperature", "reading": 91.0, "threshold": 85.0},
    }[hook]  # type: ignore[assignment]
    kind = HOOKS[hook]
    said = {"hook": hook, "count": 1, "lost": 0, "message": message(kind, keys)}
    return jsonl.envelope(kind, events.EVENTS[kind].level) | keys | said
