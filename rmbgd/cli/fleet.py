"""`rmbgd fleet`: set up the queue, see workers and lag, drain hosts, sweep roots, retry dead letters."""

from __future__ import annotations

import argparse
from pathlib import Path

from rmbgd.cli.main import add_config
from rmbgd.config.extras import is_installed
from rmbgd.errors import Exit, missing_extra
from rmbgd.wording import printable

MONITOR = "http://127.0.0.1:8222"
ACTIONS = {
    "setup": "make the streams, consumers and buckets of the queue, and compare those that are there",
    "status": "show workers, and what waits in the queue",
    "drain": "let the workers of a host finish what they have, and lease nothing more",
    "resume": "end a drain",
    "sweep": "announce again what a root has without a result",
    "retry-dead": "announce again the images that made their workers crash",
    "keys": "make keys for feeder, worker and administrator",
    "check-broker": "check how the broker of this machine keeps what it confirms",
}


def need_library() -> None:
    """Raises ConfigError where the extra is not installed."""
    if not is_installed("nats"):
        raise missing_extra("nats-py", "fleet", "a fleet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in ACTIONS.items():
        sub = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == "setup":
            sub.add_argument("--change", action="store_true", help="also change what is otherwise than it should be")
        elif name == "status":
            sub.add_argument("--watch", action="store_true", help="show it again every two seconds")
        elif name in ("drain", "resume"):
            sub.add_argument("host", metavar="HOST", help="as `rmbgd fleet status` names it")
        elif name == "sweep":
            sub.add_argument("root", nargs="*", metavar="ROOT", help="name of a root (default: every one)")
            sub.add_argument("--days", type=_days, metavar="N", help="only images that changed in the last N days")
        elif name == "retry-dead":
            sub.add_argument("root", nargs="*", metavar="ROOT", help="name of a root (default: every one)")
        elif name == "keys":
            sub.add_argument("directory", type=Path, metavar="DIR", help="where the keys are to be")
            sub.add_argument("--replace", action="store_true", help="replace keys that are there")
            continue
        elif name == "check-broker":
            sub.add_argument(
                "--monitor", default=MONITOR, metavar="URL", help=f"its monitoring port (default: {MONITOR})"
            )
            sub.add_argument("--wait", type=float, default=0.0, metavar="S", help="seconds to wait until it answers")
            continue
        add_config(sub, json=name in ("status", "sweep", "retry-dead"))


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days < 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days above 0")
    return days


def run(options: argparse.Namespace) -> int:
    if options.action == "check-broker":
        return _check_broker(options)
    if options.action == "keys":
        return _keys(options)
    need_library()
    from rmbgd.cli.fleet_actions import act

    return act(options)


def _keys(options: argparse.Namespace) -> int:
    need_library()
    from rmbgd.fleet.keys import write_keys

    for path in write_keys(options.directory, replace=options.replace):
        print(printable(f"wrote {path}"))
    return Exit.OK


def _check_broker(options: argparse.Namespace) -> int:
    from rmbgd.fleet.broker_check import check_broker

    found = check_broker(options.monitor, options.wait)
    for finding in found:
        print(printable(str(finding)))
    if not found:
        print("the broker is as it should be")
    return Exit.FAILED if any(finding.fatal for finding in found) else Exit.OK
