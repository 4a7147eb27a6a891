"""The three ways in, with the real apt-get, pip and dpkg on a fresh Debian: each ends with a cutout."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rmbgd.service import unit_files
from tests.system.conftest import REPOSITORY, booted_machine, copy_checkout
from tests.system.machine import Machine
from tests.system.package_index import PackageIndex, package_index
from tests.system.service import DROP_INS, USER, InstalledService, image

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1800)]

PATIENCE = 900.0  # s for one command: pip fetches and unpacks a gigabyte
FORMER = "a61ffa2"  # before there was a package: its ledger and its modules are older
HOME = "/home/shop"


def commands(page: str, heading: str) -> list[str]:
    """The lines of the shell blocks in a section of a page; none when it has no such section."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", section[1], re.MULTILINE | re.DOTALL) if section else []
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def wait(machine: Machine, condition: Callable[[], bool], what: str, unit: str) -> None:
    deadline, ticks = time.monotonic() + 240.0, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited for {what}\n{machine.run('journalctl', '-u', unit, '-n', '60', '-o', 'cat')}")
        ticks.wait(0.2)


def follow(machine: Machine, index: PackageIndex, lines: list[str]) -> None:
    for line in lines:
        machine.sh(f"cd /root/rmbgd\n{index.adapt(line)}", patience=PATIENCE, **index.environment)


def test_ordinary_user_below_home_gets_a_cutout_by_the_page() -> None:
    """venv, pip, init, run: no root but for Debian's package of venv."""
    index = package_index()
    lines = commands("README.md", "Without root") or commands("docs/install.md", "Without root")
    with booted_machine(index.folders) as machine:
        index.prepare(machine)
        machine.sh("apt-get update; apt-get install -y python3-venv; useradd --create-home shop", **index.environment)
        copy_checkout(machine.path(f"{HOME}/rmbgd"))
        machine.sh(f"chown -R shop {HOME}")
        *install, run = [line for line in lines if not line.startswith(("pipx ", "uv "))]
        environment = index.environment | {"HOME": HOME}
        for line in install:
            command = f"cd {HOME}/rmbgd; {index.adapt(line)}"
            machine.run("runuser", "-u", "shop", "--", "/bin/sh", "-ec", command, patience=PATIENCE, **environment)
        start = ["systemd-run", "--uid=shop", f"--setenv=HOME={HOME}", "--unit=try", f"--working-directory={HOME}"]
        machine.run(*start, "/bin/sh", "-ec", run)
        inbox = next(word for line in install if " init " in line for word in shlex.split(line)[-1:]).replace("~", HOME)
        machine.path("/var/tmp/shoe.jpg").write_bytes(image(1))
        machine.sh(f"chmod 0644 /var/tmp/shoe.jpg; runuser -u shop -- cp /var/tmp/shoe.jpg {inbox}/in/")
        cutout = machine.path(f"{inbox}/out/shoe.png")
        wait(machine, cutout.exists, "the cutout", "try")
        assert cutout.read_bytes().startswith(b"\x89PNG")
        assert "shop" == machine.run("stat", "-c", "%U", f"{inbox}/out/shoe.png").strip()


@pytest.mark.full
def test_system_service_by_the_page_of_operations() -> None:
    """Nothing stands in for apt-get and pip."""
    index = package_index()
    with booted_machine(index.folders) as machine:
        index.prepare(machine)
        machine.sh("apt-get update; apt-get install -y -o Dpkg::Options::=--force-confold sudo", **index.environment)
        copy_checkout(machine.path("/root/rmbgd"))
        follow(machine, index, commands("docs/operations.md", "Install on a fresh edge machine"))
        service = InstalledService(machine)
        machine.path("/var/tmp/shoe.jpg").write_bytes(image(1))
        machine.sh("chmod 0644 /var/tmp/shoe.jpg; runuser -u shop -- cp /var/tmp/shoe.jpg /srv/rmbgd/in/")
        service.wait(lambda: "shoe.png" in service.files("out"), "the cutout")
        assert {"ActiveState": "active", "NRestarts": "0"} == service.show("ActiveState", "NRestarts")
        machine.sh("runuser -u rmbgd -- /opt/rmbgd/bin/rmbgd doctor")


def package(out: Path, source: Path, version: str) -> Path:
    command = [sys.executable, "-m", "tools.deb", "--out", out, "--source", source, "--version", version]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return next(out.glob(f"rmbgd_{version}_*.deb"))


@pytest.mark.full
def test_debian_package_is_installed_upgraded_removed_and_purged(tmp_path: Path) -> None:
    """Without a network. Images, ledger and what the operator wrote outlive the upgrade; images outlive everything."""
    former = tmp_path / "former"
    archive = subprocess.run(["git", "archive", FORMER], cwd=REPOSITORY, capture_output=True, check=True).stdout
    former.mkdir()
    subprocess.run(["tar", "-x", "-C", former], input=archive, check=True)
    out = tmp_path / "packages"
    package(out, former, "0.0.1")
    package(out, REPOSITORY, "9.0.0")
    with booted_machine({out: "/mnt/packages"}, network=False) as machine:
        service = InstalledService(machine)

        def dpkg(*words: str) -> None:
            # Without the many fsync, which take a minute each time: this machine's disk is thrown away.
            machine.sh(f"dpkg --force-unsafe-io {' '.join(words)}", patience=PATIENCE, DEBIAN_FRONTEND="noninteractive")

        def serves(name: str) -> None:
            service.wait(lambda: "ready on cpu" in service.show("StatusText")["StatusText"], "the service")
            assert {"ActiveState": "active", "UnitFileState": "enabled"} == service.show("ActiveState", "UnitFileState")
            service.serve(name, image(sum(name.encode())))

        dpkg("-i", "/mnt/packages/rmbgd_0.0.1_*.deb")
        machine.sh(f"useradd --no-create-home --groups rmbgd-in {USER}")
        assert "" == machine.sh("grep -rlaF rmbgd-deb- /opt/rmbgd || true")  # the folder of the build
        serves("before.jpg")
        machine.sh("echo '# the operator was here' >> /etc/rmbgd/rmbgd.toml")

        dpkg("--force-confdef", "--force-confold", "-i", "/mnt/packages/rmbgd_9.0.0_*.deb")
        serves("after.jpg")
        assert {"NRestarts": "0"} == service.show("NRestarts")
        assert "the operator was here" in machine.path("/etc/rmbgd/rmbgd.toml").read_text()
        question = "SELECT count(*) FROM job WHERE path IN (CAST('before.jpg' AS BLOB), CAST('after.jpg' AS BLOB))"
        ask = (
            f'import sqlite3; print(*sqlite3.connect("/var/lib/rmbgd/ledger.sqlite").execute("{question}").fetchone())'
        )
        assert "2" == machine.run("/opt/rmbgd/bin/python", "-c", ask).strip()
        machine.sh("runuser -u rmbgd -- rmbgd doctor")

        machine.sh(
            "rmbgd completion bash; cd /usr/share/man; ls man1/rmbgd.1.gz man1/rmbgd-once.1.gz man5/rmbgd.toml.5.gz"
        )
        assert "unchanged /lib/systemd/system/rmbgd.service" in machine.run("rmbgd", "service", "install")
        machine.sh(f"mkdir -p {DROP_INS}; touch {DROP_INS}/50-folders.conf")  # as it writes for folders elsewhere
        units = [name for name in unit_files.SYSTEM if name.endswith((".service", ".path", ".timer", ".slice"))]
        assert set(units) == {path.name for path in machine.path("/lib/systemd/system").glob("rmbgd*")}
        verified = machine.call(
            "systemd-analyze", "verify", *(f"/lib/systemd/system/{unit}" for unit in units if "nats" not in unit)
        )
        assert (0, b"") == (verified.returncode, verified.stderr)

        machine.sh("systemctl disable rmbgd")
        dpkg("--force-confold", "-i", "/mnt/packages/rmbgd_9.0.0_*.deb")
        shown = service.show("ActiveState", "UnitFileState")
        assert {"ActiveState": "inactive", "UnitFileState": "disabled"} == shown

        dpkg("-r", "rmbgd")
        left = ("/etc/rmbgd/rmbgd.toml", "/var/lib/rmbgd/ledger.sqlite", "/var/log/rmbgd/events.jsonl")
        gone = ("/opt/rmbgd", "/usr/bin/rmbgd", "/lib/systemd/system/rmbgd.service")
        assert [True] * 3 == [machine.path(path).exists() for path in left]
        assert [False] * 3 == [machine.path(path).exists() for path in gone]
        assert "inactive" == machine.run("systemctl", "is-active", "rmbgd-hooks.path", check=False).strip()
        dpkg("--force-confold", "-i", "/mnt/packages/rmbgd_9.0.0_*.deb")
        machine.sh("systemctl start rmbgd; systemctl is-active rmbgd-hooks.path")
        dpkg("-r", "rmbgd")
        dpkg("-P", "rmbgd")
        assert [False] * 6 == [machine.path(path).exists() for path in (*left, "/etc/rmbgd", "/srv/rmbgd/in", DROP_INS)]
        assert {"before.png", "after.png"} == service.files("out")
