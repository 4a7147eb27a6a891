"""The machine on which the service is installed as README.md says, and the service in a known state for each test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import machine as container
from tests.system.service import InstalledService

REPOSITORY = Path(__file__).parents[2]
SHARED_LIBRARIES = "/opt/libraries"  # this environment's, so that nothing is downloaded
WHEELS = container.CACHE / "wheels"


@pytest.fixture(scope="session")
def machine() -> Iterator[container.Machine]:
    with booted_machine() as booted:
        yield booted


@contextlib.contextmanager
def booted_machine(bind: dict[Path, str] | None = None, *, network: bool = True) -> Iterator[container.Machine]:
    """Skips the test where there can be none. `bind`: instead of the libraries of this environment."""
    try:
        container.require()
        libraries = {Path(sysconfig.get_path("purelib")): SHARED_LIBRARIES}
        with (
            tempfile.TemporaryDirectory(prefix="rmbgd-system-", dir="/var/tmp") as scratch,
            container.Machine(
                Path(scratch), bind_read_only=libraries if bind is None else bind, network=network
            ) as booted,
        ):
            booted.sh("systemctl is-system-running --wait || { systemctl --failed; journalctl -n 50; exit 1; }")
            yield booted
    except container.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def installed(machine: container.Machine) -> container.Machine:
    """README's commands, carried out one by one, from the enabled unit to READY."""
    prepare(machine)
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Install as a service\n.*?```sh\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no commands under 'Install as a service'"
    carry_out(machine, block[1])
    return machine


def prepare(machine: container.Machine) -> None:
    """Bring the checkout to where `carry_out` works.

    Three things differ from a user's machine, so that this needs no network: Debian's packages are there already, pip
    finds the dependencies in the libraries of the environment that runs the tests, and its build tool as a wheel.
    """
    copy_checkout(machine.path("/root/rmbgd"))
    for name, script in (("sudo", 'exec "$@"'), ("apt-get", "exit 0")):
        shim = machine.path(f"/usr/local/bin/{name}")
        shim.write_text(f"#!/bin/sh\n{script}\n")
        shim.chmod(0o755)
    shutil.copytree(_build_tool(), machine.path("/root/wheels"))


def copy_checkout(target: Path) -> None:
    """As a fresh clone would be, once what lies here is committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if name.startswith(("tests/", ".")) or not os.path.lexists(REPOSITORY / name):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target / name, follow_symlinks=False)


def carry_out(machine: container.Machine, commands: str) -> str:
    """What a shell prints that is given these lines in the checkout; Failed at the first that fails."""
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/root/wheels",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    said = ""
    for command in filter(None, map(str.strip, commands.splitlines())):
        said += machine.sh(f"cd /root/rmbgd\n{command}", **offline)
        if "-m venv /opt/rmbgd" in command:
            packages = "/opt/rmbgd/lib/python3.11/site-packages"
            machine.path(f"{packages}/libraries.pth").write_text(f"{SHARED_LIBRARIES}\n")
    return said


def _build_tool() -> Path:
    if not list(WHEELS.glob("setuptools-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", WHEELS, "setuptools>=77"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot fetch setuptools: {done.stderr.decode(errors='replace')[-300:]}")
    return WHEELS


@pytest.fixture
def service(installed: container.Machine) -> Iterator[InstalledService]:
    """The service, running, with empty folders, an empty ledger and the unit as it is shipped."""
    under_test = InstalledService(installed)
    under_test.reset()
    under_test.start()
    yield under_test
    under_test.stop(check=False)
