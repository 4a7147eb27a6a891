"""Hosts on one machine: network namespaces on a bridge, with processes in them, and links that go down and come up."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # sched.h
PATIENCE = 10.0  # s until killed processes have gone
LOOK_AGAIN = 0.02  # s
LINK = "eth0"  # of each host but the first


def _ip(*arguments: str) -> str:
    """Raises RuntimeError with what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _remove(namespace: str) -> None:
    """With all that runs there; its links, and a bridge, go with it."""
    with contextlib.suppress(RuntimeError):
        for pid in _ip("netns", "pids", namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(RuntimeError):
        _ip("netns", "del", namespace)


@functools.cache
def _cannot() -> str:
    """Why there can be no namespaces here, or nothing."""
    if os.geteuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip (apt-get install iproute2)"
    probe = f"rmbgd-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "exec", probe, "true")
        _ip("-n", probe, "link", "add", "bridge", "type", "bridge")
        _ip("-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "other")
    except RuntimeError as error:
        return f"this machine permits no network namespaces: {error}"
    finally:
        _remove(probe)
    return ""


def need_namespaces() -> None:
    if reason := _cannot():
        pytest.skip(reason)


class Network:
    """Hosts 10.0.0.1, 10.0.0.2 ..., each a namespace that reaches the others and nothing else. As a context manager.

    The bridge is the first one's, so that everything goes with the namespaces. Those of a test run that was killed are
    removed by the next one.
    """

    def __init__(self, *hosts: str) -> None:
        self._names = {host: f"rmbgd-{os.getpid()}-{host}" for host in hosts}
        self.addresses = {host: f"10.0.0.{number}" for number, host in enumerate(hosts, 1)}

    def __enter__(self) -> Self:
        need_namespaces()
        for path in NAMESPACES.glob("rmbgd-*-*"):
            found = re.fullmatch(r"rmbgd-(\d+)-\w+", path.name)
            if found and not Path(f"/proc/{found[1]}").exists():
                _remove(path.name)
        try:
            self._make()
        except BaseException:  # whatever ends it, no namespace stays
            self._remove_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self._remove_all()

    def _remove_all(self) -> None:
        for name in self._names.values():
            _remove(name)

    def _make(self) -> None:
        for name in self._names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        (first, switch), *others = self._names.items()
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{self.addresses[first]}/24", "dev", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host, name in others:
            _ip("-n", switch, "link", "add", "name", f"to-{host}", "type", "veth", "peer", "name", LINK, "netns", name)
            _ip("-n", switch, "link", "set", f"to-{host}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{self.addresses[host]}/24", "dev", LINK)
            self.link(host, up=True)

    def prefix(self, host: str) -> list[str]:
        """A command in front of another, which then runs on that host, under the same process id."""
        return ["ip", "netns", "exec", self._names[host]]

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is on that host, and so are the processes and threads that it starts."""
        with open("/proc/thread-self/ns/net") as before, open(NAMESPACES / self._names[host]) as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def link(self, host: str, *, up: bool) -> None:
        """Of any host but the first: no packet comes or goes while it is down, and connections do not hear of it."""
        _ip("-n", self._names[host], "link", "set", LINK, "up" if up else "down")

    def pids(self, host: str) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self._names[host]).split()]

    def kill_all(self, host: str) -> int:
        """SIGKILL for each process there, again until there is none: how many there were."""
        killed: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while found := self.pids(host):
            assert time.monotonic() < deadline, f"{found} outlive SIGKILL"
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(found)
            time.sleep(LOOK_AGAIN)
        return len(killed)


def _enter(namespace: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(namespace, CLONE_NEWNET):  # os.setns comes with Python 3.12
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
