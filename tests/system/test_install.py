"""Installed as README.md says, the service is up, shows itself, and does its work for other users under its sandbox."""

from __future__ import annotations

import json

import pytest

from rmbgd.service.systemd import MISSING
from tests.system.conftest import REPOSITORY
from tests.system.machine import Machine
from tests.system.service import UNIT, USER, InstalledService, image

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DROP_INS = REPOSITORY / "systemd" / "drop-ins"


def test_service_is_ready_after_the_commands_of_the_readme(service: InstalledService) -> None:
    service.wait(lambda: "ready on cpu" in service.show("StatusText")["StatusText"], "the status line")
    state = {"ActiveState": "active", "SubState": "running", "NRestarts": "0"}
    assert state == service.show(*state)
    assert "running" == json.loads(service.machine.run("/opt/rmbgd/bin/rmbgd", "status", "--json"))["verdict"]
    doctor = ("runuser", "-u", "rmbgd", "--", "/opt/rmbgd/bin/rmbgd", "doctor", "--json")
    found = json.loads(service.machine.run(*doctor, check=False))
    assert [] == [entry for entry in found["findings"] if entry["state"] == "fail"]
    assert found["healthy"]
    # Of the unit that runs, not of a file; and the work is done under it (see the other tests).
    rated = service.machine.call("systemd-analyze", "security", "--threshold=5", UNIT)
    assert 0 == rated.returncode, rated.stdout.decode()[-200:]


def test_image_of_another_user_becomes_a_cutout(service: InstalledService) -> None:
    """Dropped by a member of rmbgd-in, into a new folder too, published for the group rmbgd, the original archived.

    `journalctl RMBGD_EVENT=image.done` finds the events, and each message is the whole event.
    """
    service.drop_all({"shoe.jpg": image(1), "spring/shoe.jpg": image(2)})
    service.wait(lambda: len(service.events("image.done")) == 2, "both cutouts")
    assert {"shoe.png", "spring/shoe.png"} == service.files("out")
    service.wait(lambda: {"shoe.jpg"} == service.files("done"), "the archived original")
    assert {"spring/shoe.jpg"} == service.files("in")  # from a folder of another user nothing can be moved
    published = service.machine.run("stat", "-c", "%a %U:%G", "/srv/rmbgd/out/shoe.png").strip()
    assert "640 rmbgd:rmbgd" == published
    service.machine.run("usermod", "-aG", "rmbgd", USER)
    read = service.machine.run("runuser", "-u", USER, "--", "head", "-c", "4", "/srv/rmbgd/out/spring/shoe.png")
    assert "PNG" in read
    entries = [json.loads(line) for line in service.journal("-o", "json", "RMBGD_EVENT=image.done").splitlines()]
    invocation = service.show("InvocationID")["InvocationID"]
    own = [entry for entry in entries if entry["_SYSTEMD_INVOCATION_ID"] == invocation]
    assert service.events("image.done") == [json.loads(entry["MESSAGE"]) for entry in own]
    assert {"6"} == {entry["PRIORITY"] for entry in own}


def test_archived_original_is_for_those_who_may_fetch_results(service: InstalledService) -> None:
    """It still belongs to who dropped it, who cannot reach it any more; members of rmbgd can read it."""
    service.machine.sh("id bob >/dev/null 2>&1 || useradd --no-create-home --groups rmbgd bob")
    service.drop("shoe.jpg", image(5), umask="027")
    service.wait(lambda: "shoe.jpg" in service.files("done"), "the archived original")

    def can(user: str, *command: str) -> bool:
        return service.machine.call("runuser", "-u", user, "--", *command, "/srv/rmbgd/done/shoe.jpg").returncode == 0

    assert "640 ada:rmbgd-in" == service.machine.run("stat", "-c", "%a %U:%G", "/srv/rmbgd/done/shoe.jpg").strip()
    assert can("bob", "cat")
    assert not can("bob", "truncate", "-s0")
    service.machine.sh("id eve >/dev/null 2>&1 || useradd --no-create-home --groups rmbgd-in eve")
    assert not can("eve", "cat")


@pytest.mark.parametrize("missing", ["setting", "library"])
def test_what_only_the_operator_can_mend_is_told_and_not_started_again(service: InstalledService, missing: str) -> None:
    """Exit 78 ends in the state failed, without a restart; the journal names the setting, or systemd-python."""
    service.stop()
    if missing == "setting":
        service.machine.sh("printf '[intake]\\nquiet_close = 1.0\\n' > /etc/rmbgd/rmbgd.toml")
    else:
        service.drop_in("[Service]\nTemporaryFileSystem=/opt/libraries/systemd:ro\n")
    service.machine.run("systemctl", "start", UNIT, check=False)
    state = {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert state == service.show(*state)
    words = "did you mean 'quiet_closed'?" if missing == "setting" else MISSING
    assert words in service.journal("-o", "cat", "-n", "20")


@pytest.mark.parametrize(("denied", "status"), [("no", 0), ("yes", 1)])
def test_memory_deny_write_execute_stays_off(installed: Machine, denied: str, status: int) -> None:
    """Why: torch compiles convolutions for the CPU at run time. When it no longer has to, turn the setting on."""
    convolution = "import torch; torch.nn.functional.conv2d(torch.ones(1, 8, 64, 64), torch.ones(8, 8, 3, 3)).sum()"
    tried = installed.call(
        "systemd-run", "--wait", "--pipe", "--quiet", f"--property=MemoryDenyWriteExecute={denied}",
        "/opt/rmbgd/bin/python", "-c", convolution,
    )  # fmt: skip
    assert status == tried.returncode
    assert (b"could not create a primitive" in tried.stderr) == bool(status)


@pytest.mark.parametrize(
    ("properties", "granted"),
    [
        ([], False),
        (["AmbientCapabilities=CAP_LEASE", "PrivateUsers=yes"], False),
        (["AmbientCapabilities=CAP_LEASE", "PrivateUsers=no"], True),
    ],
)
def test_lease_on_files_of_others_costs_the_user_namespace(
    service: InstalledService, properties: list[str], granted: bool
) -> None:
    """Why 35-lease.conf is a drop-in: for files of others the kernel wants CAP_LEASE in the first user namespace."""
    service.stop()
    service.drop("others.bmp", image(4))
    lease = "import fcntl, os; fcntl.fcntl(os.open('/srv/rmbgd/in/others.bmp', 0), fcntl.F_SETLEASE, fcntl.F_RDLCK)"
    tried = service.machine.call(
        "systemd-run", "--wait", "--pipe", "--quiet", "--property=User=rmbgd",
        *(f"--property={text}" for text in properties), "/opt/rmbgd/bin/python", "-c", lease,
    )  # fmt: skip
    assert granted == (tried.returncode == 0)
    assert (b"Permission denied" in tried.stderr) != granted


@pytest.mark.parametrize("name", ["30-cpu-only.conf", "35-lease.conf"])
def test_service_runs_with_the_drop_in(service: InstalledService, name: str) -> None:
    """Without any device, and outside of a user namespace with one capability, it still does its work."""
    service.stop()
    service.drop_in((DROP_INS / name).read_text())
    service.start()
    service.serve("shoe.jpg", image(6))


def test_systemd_understands_every_line_of_the_unit(installed: Machine) -> None:
    units = [f"/etc/systemd/system/{name}" for name in (UNIT, "rmbgd-gpu-prepare.service")]
    said = installed.call("systemd-analyze", "verify", *units)
    assert (0, b"", b"") == (said.returncode, said.stdout, said.stderr)


@pytest.mark.parametrize(("drop_in", "threshold"), [("30-cpu-only.conf", 3), ("40-jetson.conf", 5)])
def test_exposure_is_bounded(installed: Machine, drop_in: str, threshold: int) -> None:
    """systemd's own rating of the sandbox, in tenths, with the drop-ins; without any, of the unit that runs."""
    units = installed.path("/var/tmp/rated/etc/systemd/system")
    extra = units / f"{UNIT}.d"
    installed.sh(f"rm -rf /var/tmp/rated; mkdir -p /var/tmp/rated/etc/systemd/system/{UNIT}.d")
    (units / UNIT).write_text((REPOSITORY / "systemd" / UNIT).read_text())
    (extra / drop_in).write_text((DROP_INS / drop_in).read_text())
    rated = installed.call(
        "systemd-analyze", "security", "--offline=yes", "--root=/var/tmp/rated", f"--threshold={threshold}", UNIT
    )
    assert 0 == rated.returncode, rated.stdout.decode()[-200:]
