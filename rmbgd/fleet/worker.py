"""Builds what makes a service a worker of a fleet, or its announcer: roots, connection, source and publisher."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rmbgd.clock import Clock
from rmbgd.config.load import Config, load
from rmbgd.errors import ConfigError, RmbgdError, explain
from rmbgd.events import Emit
from rmbgd.fleet.announcer import Announcer
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.publisher import RootPublisher
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.root import Root
from rmbgd.fleet.sequence_root import SequenceRoot
from rmbgd.fleet.share import SharedRoot
from rmbgd.fleet.source import LeaseSource
from rmbgd.heartbeat import Heartbeat
from rmbgd.pipeline.pipeline import PipelineContext
from rmbgd.publish.quarantine import Quarantine
from rmbgd.sequence.sequences import Sequences
from rmbgd.wording import did_you_mean


class ConnectionEvents:
    """Emits source.connected, and source.lost once for each outage and each new cause. Called on the broker's loop."""

    def __init__(self, servers: list[str], emit: Emit, clock: Clock) -> None:
        self._servers, self._emit, self._clock = ", ".join(servers), emit, clock
        self._lost_at: float | None = None
        self._said: set[str] = set()

    def __call__(self, fault: BrokerFault | None, version: str) -> None:
        now = self._clock.monotonic()
        if fault is None:
            away = {} if self._lost_at is None else {"seconds": round(now - self._lost_at, 3)}
            self._emit("source.connected", servers=self._servers, server_version=version, **away)
            self._lost_at, self._said = None, set()
        else:
            self._lost_at = now if self._lost_at is None else self._lost_at
            if fault.detail not in self._said:
                self._said.add(fault.detail)
                self._emit("source.lost", servers=self._servers, kind=fault.kind, detail=fault.detail)


@dataclass(frozen=True, slots=True)
class Worker:
    source: LeaseSource
    publisher: RootPublisher


def open_worker(
    config: Config,
    quarantine: Quarantine,
    *,
    clock: Clock,
    emit: Emit,
    heartbeat: Heartbeat,
    describe: Callable[[], Mapping[str, object]],
    on_compared: Callable[[], None],
    sequences: Sequences,
) -> Worker:
    """It connects by itself. `describe`: device and state, for the fleet's status. Raises ConfigError."""
    events = ConnectionEvents(config.source.servers, emit, clock)

    def changed(fault: BrokerFault | None) -> None:
        events(fault, broker.version)
        source.wake()

    broker = Broker(config.source, f"rmbgd worker {socket.gethostname()}", changed)
    make_spools(config)
    roots = open_roots(config)
    source = LeaseSource(
        config,
        broker=broker,
        roots=roots,
        clock=clock,
        emit=emit,
        heartbeat=heartbeat,
        describe=describe,
        on_compared=on_compared,
        sequences=sequences,
    )

    return Worker(source, RootPublisher(roots, quarantine, emit))


def open_announcer(context: PipelineContext, quarantine: Quarantine) -> Announcer:
    """What takes the place of a pipeline. It connects when it is started. Raises ConfigError."""
    config, emit = context.engine.config, context.engine.emit
    events = ConnectionEvents(config.source.servers, emit, context.engine.clock)

    def changed(fault: BrokerFault | None) -> None:
        events(fault, broker.version)

    broker = Broker(config.source, f"rmbgd announce {socket.gethostname()}", changed)
    publisher = RootPublisher(roots := open_roots(config), quarantine, emit)
    return Announcer(replace(context, publisher=publisher), broker, roots)


def open_roots(config: Config) -> dict[str, Root]:
    """By name, of folders and buckets."""
    spools = [config.spool_of(bucket) for bucket in config.bucket]
    folders = [folder for folder in config.folder if folder not in spools]
    roots: dict[str, Root] = {}
    for folder in folders:
        root = SharedRoot(folder, config.recipe_of(folder))
        roots[folder.name] = SequenceRoot(root) if folder.kind == "frames" else root
    if config.bucket:
        from rmbgd.fleet.bucket import BucketRoot  # its library is an extra, and nobody else needs it
        from rmbgd.fleet.objects import ObjectStore

        store, most = ObjectStore(config.s3), config.limits.file_bytes
        for bucket, spool in zip(config.bucket, spools, strict=True):
            roots[bucket.name] = BucketRoot(bucket, spool, config.recipe_of(bucket), store, most)
    return roots


def fleet_config(path: Path) -> Config:
    """The configuration of a machine of a fleet. Raises ConfigError."""
    config = load(path)
    if config.source.kind != "jetstream":
        raise ConfigError(f'{path}: source.kind: is "{config.source.kind}"; a fleet has kind = "jetstream"')
    return config


def root_of(roots: Mapping[str, Root], name: str) -> Root:
    """Raises RmbgdError where none has that name."""
    if name not in roots:
        hint = did_you_mean(name, roots) or f"there is {', '.join(sorted(roots))}"
        raise RmbgdError(f"no root '{name}' in the configuration; {hint}")
    return roots[name]


def make_spools(config: Config) -> None:
    """Empty ones: what a run left that died is fetched again, or was not published. Raises ConfigError."""
    for bucket in config.bucket:
        spool = config.spool_of(bucket)
        for folder in filter(None, (spool.input, spool.output, spool.failed, spool.review)):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise ConfigError(f"bucket '{bucket.name}': {explain(error)}") from error
