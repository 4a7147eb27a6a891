"""The units of a fleet under a real systemd: a broker that syncs stays up, and workers have places of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.fleet.keys import write_keys
from rmbgd.service import unit_files
from tests.support.broker import program
from tests.system.conftest import REPOSITORY, booted_machine
from tests.system.machine import Machine

CONFIGURATION = "/etc/rmbgd/nats/nats-server.conf"
# Instead of the program, which needs more than this machine has: the check of the broker is the real one.
PROGRAM = """#!/usr/bin/python3
import os, socket, sys, time
sys.path.insert(0, "/opt/rmbgd/source")
if "check-broker" in sys.argv:
    from rmbgd.fleet.broker_check import check_broker
    found = check_broker("http://127.0.0.1:8222", 30)
    print(*found, sep="\\n")
    sys.exit(any(each.fatal for each in found))
socket.create_connection(("127.0.0.1", 4222), 5)
with open(os.environ["STATE_DIRECTORY"] + "/seen", "w") as seen:
    seen.write(" ".join(map(os.environ.get, ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CUDA_VISIBLE_DEVICES"))))
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1")
time.sleep(20)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Machine]:
    server = program()
    with booted_machine({}, network=False) as machine:
        for name, place in unit_files.SYSTEM.items():
            machine.path(place).parent.mkdir(parents=True, exist_ok=True)
            machine.path(place).write_text(unit_files.text(name))
        source = machine.path("/opt/rmbgd/source/rmbgd/fleet")
        for directory in (source, machine.path("/opt/rmbgd/bin"), machine.path("/srv/rmbgd")):
            directory.mkdir(parents=True)
        (source / "__init__.py").touch()
        shutil.copy(REPOSITORY / "rmbgd" / "fleet" / "broker_check.py", source)
        machine.path("/opt/rmbgd/bin/rmbgd").write_text(PROGRAM)
        machine.path("/opt/rmbgd/bin/rmbgd").chmod(0o755)
        shutil.copy(server, machine.path("/usr/local/bin/nats-server"))
        machine.path(CONFIGURATION).parent.mkdir(parents=True)
        shutil.copy(REPOSITORY / "config" / "nats-server.conf", machine.path(CONFIGURATION))
        with tempfile.TemporaryDirectory() as made:
            write_keys(Path(made) / "keys")
            shutil.copy(Path(made) / "keys" / "users.conf", machine.path(CONFIGURATION).parent)
        machine.sh("systemd-sysusers; systemctl daemon-reload")
        yield machine


def test_systemd_understands_every_line(host: Machine) -> None:
    names = ["rmbgd@0.service", "rmbgd-announce.service", "rmbgd-sweep.timer", "rmbgd-nats.service", "rmbgd.slice"]
    said = host.call("systemd-analyze", "verify", *(f"/etc/systemd/system/{name}" for name in names))
    assert (0, b"", b"") == (said.returncode, said.stdout, said.stderr)


def test_workers_reach_the_broker_from_places_of_their_own(host: Machine) -> None:
    host.sh("systemctl start rmbgd-nats; systemctl start rmbgd@0 rmbgd@7")
    for number in (0, 7):
        seen = host.path(f"/var/lib/rmbgd/{number}/seen").read_text()
        assert seen == f"/var/lib/rmbgd/{number} /run/rmbgd/{number} {number}"
    host.sh("systemctl stop rmbgd@0 rmbgd@7")


def test_a_broker_that_does_not_sync_does_not_stay_up(host: Machine) -> None:
    configuration = host.path(CONFIGURATION)
    shipped = configuration.read_text()
    configuration.write_text(shipped.replace("sync_interval: always", 'sync_interval: "2m"'))
    try:
        assert host.call("systemctl", "restart", "rmbgd-nats").returncode != 0
        assert "sync_interval is not `always`" in host.sh("journalctl -u rmbgd-nats --no-pager -o cat")
    finally:
        configuration.write_text(shipped)
        host.sh("systemctl stop rmbgd-nats")
