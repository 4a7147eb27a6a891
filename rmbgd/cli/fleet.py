"""`rmbgd fleet`: set up the queue, see workers and lag, drain hosts, sweep roots, retry dead letters."""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rmbgd.cli.main import add_config
from rmbgd.cli.table import print_table
from rmbgd.config import load as configuration
from rmbgd.config.extras import is_installed
from rmbgd.config.load import Config
from rmbgd.errors import ConfigError, Exit, RmbgdError, missing_extra
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import did_you_mean, duration, printable

if TYPE_CHECKING:
    from rmbgd.fleet.broker import Broker
    from rmbgd.fleet.share import Share
    from rmbgd.fleet.status import FleetStatus

CONNECT_PATIENCE = 10.0  # s
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


@dataclass(frozen=True, slots=True)
class ConnectedFleet:
    config: Config
    broker: Broker
    roots: dict[str, Share]

    @property
    def state(self) -> Path:
        return Path(self.config.service.state_directory)


@contextmanager
def connected(path: Path) -> Iterator[ConnectedFleet]:
    """The fleet of a configuration. Raises ConfigError, and BrokerFault where there is no broker within seconds."""
    need_library()
    from rmbgd.fleet.broker import Broker
    from rmbgd.fleet.worker import open_roots

    config = configuration.load(path)
    if config.source.kind != "jetstream":
        raise ConfigError(f'{path}: source.kind: is "{config.source.kind}"; a fleet has kind = "jetstream"')
    broker = Broker(config.source, "rmbgd command", lambda _: None)
    broker.start()
    try:
        broker.wait_until_connected(CONNECT_PATIENCE)
        yield ConnectedFleet(config, broker, open_roots(config))
    finally:
        broker.close()


def root_of(fleet: ConnectedFleet, name: str) -> Share:
    if name not in fleet.roots:
        hint = did_you_mean(name, fleet.roots) or f"there is {', '.join(sorted(fleet.roots))}"
        raise RmbgdError(f"no root '{name}' in the configuration; {hint}")
    return fleet.roots[name]


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
            sub.add_argument(
                "--patience", type=float, default=0.0, metavar="S", help="seconds to wait until it answers"
            )
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
    with connected(options.config) as fleet:
        match options.action:
            case "setup":
                return _setup(fleet, options)
            case "status":
                return _status(fleet, options)
            case "drain" | "resume":
                return _drain(fleet, options)
            case "sweep":
                return _sweep(fleet, options)
            case _:
                return _retry_dead(fleet, options)


def _setup(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
    from rmbgd.fleet.streams import set_up

    said = set_up(fleet.broker, fleet.roots, fleet.config.source.lease, change=options.change)
    for line in said:
        print(printable(line))
    differs = any(", and should be" in line and not line.endswith(", changed") for line in said)
    print("all is there" if not said else "change it with --change, or by hand" if differs else "all is there now")
    return Exit.FAILED if differs else Exit.OK


def _status(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
    from rmbgd.fleet.status import look

    while True:
        status = look(fleet.broker, list(fleet.roots))
        if options.json:
            print(to_json(asdict(status)), flush=True)
        else:
            if options.watch:
                print("\033[H\033[2J", end="")
            _print_status(status)
        if not options.watch:
            return Exit.OK if status.workers else Exit.FAILED
        time.sleep(2.0)


def _print_status(status: FleetStatus) -> None:
    now = time.time()
    if not status.workers:
        print("no worker reports; start one with: systemctl start rmbgd@0")
    else:
        table = Table(
            "HOST", "PROCESS", "DEVICE", "STATE", "IMAGES/S", "LEASES", "VERSION", "SEEN", box=None, pad_edge=False
        )
        for each in status.workers:
            state = each.get("paused") or each.get("engine", "")
            seen = f"{duration(max(0.0, now - float(each.get('time', now))))} ago"
            cells = (each.get("host"), each.get("pid"), each.get("device"), state, each.get("rate"), each.get("leases"))
            table.add_row(*(printable(str(cell)) for cell in (*cells, each.get("version"), seen)))
        print_table(table)
    print()
    table = Table("ROOT", "QUEUE", "WAITING", "LEASED", "REDELIVERED", "LAG", box=None, pad_edge=False)
    for queue in status.queues:
        lag = duration(queue.lag) if queue.lag is not None else ""
        cells = (queue.root, queue.queue, queue.waiting, queue.leased, queue.redelivered, lag)
        table.add_row(*(printable(str(cell)) for cell in cells))
    print_table(table)
    if status.dead:
        print(f"\n{status.dead} dead letters: see the failed folders; `rmbgd fleet retry-dead` announces them again")
    for host in status.drained:
        print(printable(f"{host} is drained; `rmbgd fleet resume {host}` ends that"))


def _drain(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
    from rmbgd.fleet.workers import end_drain, order_drain, read_workers

    hosts = {str(each.get("host")) for each in read_workers(fleet.broker)}
    if options.action == "resume":
        end_drain(fleet.broker, options.host)
        print(printable(f"{options.host} leases images again, within ten seconds"))
        return Exit.OK
    if options.host not in hosts:
        hint = did_you_mean(options.host, hosts) or f"there is {', '.join(sorted(hosts)) or 'none'}"
        raise RmbgdError(f"no worker reports from host '{options.host}'; {hint}")
    order_drain(fleet.broker, options.host, getpass.getuser())
    print(printable(f"{options.host} is drained: its workers lease nothing more, within ten seconds"))
    return Exit.OK


def _sweep(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
    from rmbgd.fleet.sweep import sweep

    names = options.root or list(fleet.roots)
    within = None if options.days is None else options.days * 86_400.0
    for root in [root_of(fleet, name) for name in names]:
        try:
            swept = sweep(fleet.broker, root, younger_than=within)
        except OSError as error:
            raise RmbgdError(f"root '{root.folder.name}': {error.strerror}: {error.filename}") from error
        told: dict[str, Any] = {"root": root.folder.name, **asdict(swept)}
        if options.json:
            print(to_json(told))
        elif swept.waiting and not swept.seen:
            print(printable(f"{root.folder.name}: {swept.waiting} images wait in the queue; swept when fewer do"))
        else:
            counts = f"{swept.seen} images, {swept.announced} without a result announced"
            print(printable(f"{root.folder.name}: {counts}, {swept.temporaries} old temporaries removed"))
    return Exit.OK


def _retry_dead(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
    from rmbgd.fleet.dead import retry_dead

    roots = [root_of(fleet, name) for name in options.root or list(fleet.roots)]
    retried, left = retry_dead(fleet.broker, roots)
    if options.json:
        print(to_json({"retried": retried, "left": left}))
    else:
        print(f"{retried} announced again" + (f", {left} of other roots left" if left else ""))
    return Exit.OK


def _keys(options: argparse.Namespace) -> int:
    need_library()
    from rmbgd.fleet.keys import write_keys

    for path in write_keys(options.directory, replace=options.replace):
        print(printable(f"wrote {path}"))
    return Exit.OK


def _check_broker(options: argparse.Namespace) -> int:
    from rmbgd.fleet.broker_check import check_broker

    found = check_broker(options.monitor, options.patience)
    for finding in found:
        print(printable(str(finding)))
    if not found:
        print("the broker is as it should be")
    return Exit.FAILED if any(finding.fatal for finding in found) else Exit.OK
