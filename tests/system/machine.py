"""A Debian machine with a real systemd, in a container: built once, booted on a throw-away layer, entered with nsenter.

Knows how to boot and how to run commands; nothing of rmbgd.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

SUITE = "bookworm"
MIRROR = os.environ.get("RMBGD_TEST_MIRROR", "http://deb.debian.org/debian")
CACHE = Path(os.environ.get("RMBGD_TEST_ROOTFS", "/var/cache/rmbgd-tests"))
PACKAGES = ("systemd", "systemd-sysv", "libpam-systemd", "dbus", "acl", "python3", "python3-venv")
PYTHON = (3, 11)  # Debian 12's
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "mount")
HIERARCHIES = {  # the name in /proc/self/cgroup: where it may be mounted
    "": (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")),
    "name=systemd": (Path("/sys/fs/cgroup/systemd"),),
}
ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"'
BOOT_PATIENCE = 120.0  # s
COMMAND_PATIENCE = 240.0  # s


class Unavailable(Exception):
    """This machine cannot hold a container; says what is missing."""


def require() -> None:
    """Raises Unavailable unless a container can be built and booted here."""
    if os.geteuid() != 0:
        raise Unavailable("needs root, to boot a systemd in a container")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise Unavailable(f"needs {', '.join(missing)} (apt-get install debootstrap systemd-container)")
    if sys.version_info[:2] != PYTHON:
        raise Unavailable(
            f"the container's Python is {PYTHON[0]}.{PYTHON[1]} and shares the libraries of this environment, which is "
            f"for {sys.version_info[0]}.{sys.version_info[1]}"
        )


def base() -> Path:
    """The root of a fresh Debian, built with debootstrap when it is not there yet."""
    recipe = hashlib.sha256(repr((SUITE, PACKAGES)).encode()).hexdigest()[:12]
    root = CACHE / f"{SUITE}-{recipe}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            building = CACHE / f"building-{recipe}"
            shutil.rmtree(building, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, building, MIRROR]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode != 0:
                raise Unavailable(f"debootstrap failed: {done.stdout.decode(errors='replace')[-500:]}")
            building.rename(root)
    return root


class Failed(AssertionError):
    """A command inside the machine failed; carries what it said."""


class Machine:
    """One booted container. `root` is its file system as seen from outside."""

    def __init__(self, scratch: Path, *, bind_read_only: dict[Path, str] | None = None, network: bool = True) -> None:
        """With `network` that of this machine, else none."""
        self._scratch = scratch
        self._network = [] if network else ["--private-network"]
        self._bind = bind_read_only or {}
        self.root = scratch / "root"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._groups: list[Path] = []

    def __enter__(self) -> Self:
        for name in ("upper", "work", "root"):
            (self._scratch / name).mkdir()
        layers = f"lowerdir={base()},upperdir={self._scratch / 'upper'},workdir={self._scratch / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        try:
            self._boot()
        except BaseException:  # whatever it is, an interrupt included: no container, no mount stays
            self.__exit__()
            raise
        return self

    def _boot(self) -> None:
        notify = self._scratch / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(os.fspath(notify))
            listener.settimeout(BOOT_PATIENCE)
            command: list[Any] = [
                "/bin/sh", "-ec", ENTER, *self._control_groups(), "--",
                "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes",
                "--console=read-only", "--boot", f"--machine=rmbgd-test-{os.getpid()}", f"--directory={self.root}",
                *(f"--bind-ro={source}:{target}" for source, target in self._bind.items()), *self._network,
            ]  # fmt: skip
            with (self._scratch / "console").open("wb") as console:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"NOTIFY_SOCKET": os.fspath(notify)},
                )
            told: dict[str, str] = {}
            deadline = time.monotonic() + BOOT_PATIENCE
            while told.get("READY") != "1" or "X_NSPAWN_LEADER_PID" not in told:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._scratch / "console").read_text(errors="replace")
                    raise Unavailable(f"the container did not boot: {said[-800:]}")
                listener.settimeout(1.0)
                with contextlib.suppress(TimeoutError):
                    message = listener.recv(65536).decode(errors="replace")
                    told |= dict(line.split("=", 1) for line in message.splitlines() if "=" in line)
        self._leader = int(told["X_NSPAWN_LEADER_PID"])

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)  # nspawn asks the system inside to power off
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        subprocess.run(["umount", self.root], check=False)
        for group in self._groups:
            for path in (*sorted(group.rglob("*/"), reverse=True), group):
                with contextlib.suppress(OSError):  # one that a dying process still holds; it is empty soon
                    path.rmdir()

    def _control_groups(self) -> list[Path]:
        """New control groups of this container alone, one for each hierarchy that systemd uses.

        Two containers that start in the same group share what lies below it, and the systemd of one removes groups that
        the other has just made ("Failed at step CGROUP").
        """
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, hierarchy, path = line.split(":", 2)
            for mount in HIERARCHIES.get(hierarchy, ()):
                if (mount / "cgroup.procs").exists():
                    parent = mount / path.lstrip("/")
                    group = parent / f"rmbgd-test-{os.getpid()}-{self._scratch.name}"
                    group.mkdir()
                    self._groups.append(group)
                    break
        return self._groups

    def run(self, *command: str | Path, check: bool = True, patience: float = COMMAND_PATIENCE, **env: str) -> str:
        """What `command` prints inside. Raises Failed with all it said when its status is not 0."""
        done = self.call(*command, patience=patience, **env)
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise Failed(f"{' '.join(map(str, command))}: status {done.returncode}\n{said}")
        return done.stdout.decode(errors="replace")

    def call(
        self, *command: str | Path, patience: float = COMMAND_PATIENCE, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        enter = ["nsenter", f"--target={self._leader}", "--all", "--"]
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [*enter, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience,
            env=clean | env,
            check=False,
        )

    def sh(self, script: str, *, check: bool = True, patience: float = COMMAND_PATIENCE, **env: str) -> str:
        return self.run("/bin/sh", "-ec", script, check=check, patience=patience, **env)

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")
