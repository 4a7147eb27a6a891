"""What `rmbgd fleet` does over a connection to the broker, as a configuration names it."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rmbgd.cli.table import print_table
from rmbgd.config.load import Config
from rmbgd.errors import Exit, RmbgdError, explain
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.dead import retry_dead
from rmbgd.fleet.root import Root
from rmbgd.fleet.status import FleetStatus, look
from rmbgd.fleet.streams import set_up
from rmbgd.fleet.sweep import sweep
from rmbgd.fleet.worker import fleet_config, open_roots, root_of
from rmbgd.fleet.workers import end_drain, order_drain, read_workers
from rmbgd.telemetry.jsonl import to_json
from rmbgd.wording import did_you_mean, duration, printable

CONNECT_PATIENCE = 10.0  # s


@dataclass(frozen=True, slots=True)
class ConnectedFleet:
    config: Config
    broker: Broker
    roots: Mapping[str, Root]

    @property
    def state(self) -> Path:
        return Path(self.config.service.state_directory)


@contextmanager
def connected(path: Path) -> Iterator[ConnectedFleet]:
    """The fleet of a configuration. Raises ConfigError, and BrokerFault where there is no broker within seconds."""
    config = fleet_config(path)
    broker = Broker(config.source, "rmbgd command", lambda _: None)
    broker.start()
    try:
        broker.wait_until_connected(CONNECT_PATIENCE)
        yield ConnectedFleet(config, broker, open_roots(config))
    finally:
        broker.close()


def act(options: argparse.Namespace) -> int:
    """Raises ConfigError, and BrokerFault with what the broker lacks."""
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
    said = set_up(fleet.broker, fleet.roots, fleet.config.source.lease, change=options.change)
    for line in said:
        print(printable(line))
    differs = any(", and should be" in line and not line.endswith(", changed") for line in said)
    print("all is there" if not said else "change it with --change, or by hand" if differs else "all is there now")
    return Exit.FAILED if differs else Exit.OK


def _status(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
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
        for each in status.workers:
            for root, why in (each.get("trouble") or {}).items():
                print(printable(f"{each.get('host')} {each.get('pid')}: {f'root {root!r}: ' if root else ''}{why}"))
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
    names = options.root or list(fleet.roots)
    within = None if options.days is None else options.days * 86_400.0
    failed = False
    for root in [root_of(fleet.roots, name) for name in names]:
        try:
            swept = sweep(fleet.broker, root, younger_than=within)
        except (OSError, RmbgdError) as error:  # the others can be swept
            text = str(error) if isinstance(error, RmbgdError) else f"root '{root.folder.name}': {explain(error)}"
            print(f"rmbgd fleet: {printable(text)}", file=sys.stderr)
            failed = True
            continue
        failed |= bool(swept.unknown)
        told: dict[str, Any] = {"root": root.folder.name, **asdict(swept)}
        if options.json:
            print(to_json(told))
        elif swept.waiting and not swept.seen:
            print(printable(f"{root.folder.name}: {swept.waiting} images wait in the queue; swept when fewer do"))
        else:
            counts = f"{swept.seen} images, {swept.announced} without a result announced"
            more = {
                "left for the next sweep or a backfill": swept.left,
                "with a record that cannot be read": swept.unknown,
            }
            more |= {"folders that cannot be read": swept.unread, "old temporaries removed": swept.temporaries}
            told_too = [f"{count} {what}" for what, count in more.items() if count or what == "old temporaries removed"]
            print(printable(f"{root.folder.name}: {', '.join([counts, *told_too])}"))
    return Exit.FAILED if failed else Exit.OK


def _retry_dead(fleet: ConnectedFleet, options: argparse.Namespace) -> int:
    roots = [root_of(fleet.roots, name) for name in options.root or list(fleet.roots)]
    retried, left = retry_dead(fleet.broker, roots)
    if options.json:
        print(to_json({"retried": retried, "left": left}))
    else:
        print(f"{retried} announced again" + (f", {left} of other roots left" if left else ""))
    return Exit.OK
