"""A Ray cluster under test: raylets on loopback addresses in a process of their own, and drivers with fake engines.

Actors import this module, so that the product needs no switch for tests.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.errors import StorageFault
from rmbgd.fleet.backfill import Completeness
from rmbgd.fleet.share import SharedRoot
from rmbgd.fleet.worker import fleet_config, open_roots
from rmbgd.naming import is_temporary
from rmbgd.testing.worker import in_process
from tests.support import audit
from tests.support.launcher import ObservedEngine, die_of
from tests.support.service import LOOK_AGAIN, REPOSITORY, ServiceUnderTest

PATIENCE = 150.0  # s until a wait fails the test
MEMORY = 80 << 20  # bytes of a raylet's object store: only names pass through it


def fake_devices(options: dict[str, Any], context: EngineContext) -> Devices:
    """`options`: of the launcher: count, entered, hold, deadly; `pids`, a file with a line for each process that has an
    engine; `broken`, a number of processes that get none; `full`, a path: while a file is there, nothing can be stored.
    """
    attempts = Path(f"{options['pids']}.attempts")
    with attempts.open("a") as file:
        file.write(".")
    if attempts.stat().st_size <= options.get("broken", 0):
        raise RuntimeError("no engine here")
    if options.get("full"):
        refuse_while(options["full"])
    with open(options["pids"], "a") as file:
        file.write(f"{os.getpid()}\n")
    if options.get("deadly"):
        die_of(options["deadly"])
    seen = {name: options[name] for name in ("count", "entered", "hold")}
    return in_process(lambda _: ObservedEngine(context.arena.block, **seen))(context)


def refuse_while(path: str) -> None:
    publish = SharedRoot.publish

    def refusing(self: SharedRoot, *given: Any) -> Any:
        if os.path.exists(path):
            raise StorageFault("disk_full", "no space left")
        return publish(self, *given)

    SharedRoot.publish = refusing  # type: ignore[method-assign]


def serve() -> None:
    """Raylets of two processors at the addresses in the arguments, until standard input ends."""
    from ray.cluster_utils import Cluster

    folder, *addresses = sys.argv[1:]
    cluster, nodes = Cluster(), []
    try:
        for address in addresses:
            first = {} if nodes else {"include_dashboard": False, "temp_dir": folder}
            nodes.append(cluster.add_node(node_ip_address=address, num_cpus=2, object_store_memory=MEMORY, **first))
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


def drive() -> None:
    """A backfill, in a process of its own; its completeness goes to standard output."""
    from rmbgd.service import ray_backfill

    ray_backfill.PATIENCE = 4.0
    ray_backfill.REST = 1.0
    config, devices = Path(sys.argv[1]), functools.partial(fake_devices, json.loads(sys.argv[2]))
    root = open_roots(fleet_config(config))["shop"]
    entries = list(root.inputs())
    ended = Completeness(wanted=len(entries))
    ray_backfill.backfill(config, root, entries, ended, build_devices=devices, **json.loads(sys.argv[3]))
    print(json.dumps(asdict(ended) | {"missing": ended.missing}))


class RayCluster:
    """Its servers listen on all interfaces, so there is a token."""

    def __init__(self, *addresses: str) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)  # sockets want short paths
        self.environment = os.environ | {
            "HOME": self._home.name,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONWARNINGS": "ignore",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-c", "from tests.support import ray_cluster; ray_cluster.serve()"]
        self._log = open(Path(self._home.name) / "cluster.log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, self._home.name, *addresses],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            log = Path(self._log.name).read_text()
            self.close()
            raise AssertionError(f"Ray has not started: {log[-3000:]}")
        found = json.loads(told)
        self.raylets: list[int] = found["raylets"]
        self.environment["RAY_ADDRESS"] = found["address"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """With every process that has its folder in its command, or this process's token in its environment."""
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=20)
        token = self.environment["RAY_AUTH_TOKEN"].encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(process.name) != os.getpid() and token in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        self._process.wait()
        self._log.close()
        self._home.cleanup()

    def lose(self, number: int) -> None:
        """A host: its raylet is killed, and what it has started ends with it."""
        os.kill(self.raylets[number], signal.SIGKILL)


class RayUnderTest:
    """Folders and the configuration of a fleet below `base`, without a broker; `options` for `fake_devices`."""

    def __init__(self, cluster: RayCluster, base: Path, **options: Any) -> None:
        source = {"kind": "jetstream", "servers": ["nats://127.0.0.1:1"]}
        self.service = ServiceUnderTest(base, settings={"source": source}, folder={"originals": "keep"})
        self.config, self.hold, self._pids = self.service.config, self.service.hold, base / "pids"
        self._cluster, self._options = cluster, self.service.options | {"pids": str(self._pids)} | options

    def write(self, images: dict[str, bytes]) -> None:
        for name, data in images.items():
            target = self.service.input / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def begin(self, **given: Any) -> subprocess.Popen[str]:
        """With two actors."""
        arguments = [str(self.config), json.dumps(self._options), json.dumps({"actors": 2, "batch": 16} | given)]
        return subprocess.Popen(
            [sys.executable, "-c", "from tests.support import ray_cluster; ray_cluster.drive()", *arguments],
            env=self._cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self, run: subprocess.Popen[str]) -> dict[str, Any]:
        """Its completeness."""
        try:
            told, errors = run.communicate(timeout=PATIENCE)
        finally:
            run.kill()
        assert run.returncode == 0, errors
        found: dict[str, Any] = json.loads(told.splitlines()[-1])
        return found

    def backfill(self, **given: Any) -> dict[str, Any]:
        return self.end(self.begin(**given))

    @property
    def pids(self) -> list[int]:
        """Of processes that built an engine."""
        return [int(line) for line in self._pids.read_text().split()] if self._pids.exists() else []

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"nothing for {PATIENCE} s while waiting for {what}"
            time.sleep(LOOK_AGAIN)

    def results(self) -> dict[str, bytes]:
        """Cutouts by path; what a killed actor left under its own name is none."""
        output = self.service.output
        names = [path for path in audit.files(output) if not (path.endswith(".json") or is_temporary(path))]
        return {path: (output / path).read_bytes() for path in names}
