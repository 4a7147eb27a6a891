"""Installed as README.md says, the service is up, shows itself, and does its work for other users under its sandbox."""

from __future__ import annotations

import json

import pytest

from rmbgd.service.systemd import MISSING
from tests.system.conftest import REPOSITORY
from tests.system.machine import Machine
from tests.system.service import UNIT, InstalledService, image

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DROP_INS = REPOSITORY / "systemd" / "drop-ins"


def test_service_is_ready_after_the_commands_of_the_readme(service: InstalledService) -> None:
    """systemd calls it active and knows what it does; `rmbgd status` says that it runs."""
    service.wait(lambda: "ready on cpu" in service.show("StatusText")["StatusText"], "the status line")

    assert {"ActiveState": "active", "SubState": "running", "NRestarts": "0"} == service.show(
        "ActiveState", "SubState", "NRestarts"
    )
    said = json.loads(service.machine.run("/opt/rmbgd/bin/rmbgd", "status", "--json"))
    assert "running" == said["verdict"]


def test_doctor_finds_nothing_wrong_as_the_service_user(service: InstalledService) -> None:
    """Everything that the service needs is there after the commands of the README."""
    said = service.machine.run("runuser", "-u", "rmbgd", "--", "/opt/rmbgd/bin/rmbgd", "doctor", "--json", check=False)

    found = json.loads(said)
    assert [] == [entry for entry in found["findings"] if entry["state"] == "fail"]
    assert found["healthy"]


def test_image_of_another_user_becomes_a_cutout(service: InstalledService) -> None:
    """Dropped by a member of rmbgd-in, published for the group rmbgd, the original archived."""
    service.drop("shoe.jpg", image(1))

    service.wait(lambda: "shoe.png" in service.files("out") and "shoe.jpg" in service.files("done"), "the cutout")
    published = service.machine.run("stat", "-c", "%a %U:%G", "/srv/rmbgd/out/shoe.png").strip()
    assert "640 rmbgd:rmbgd" == published
    assert set() == service.files("in")


def test_archived_original_is_for_those_who_may_fetch_results(service: InstalledService) -> None:
    """It still belongs to who dropped it, who cannot reach it any more; members of rmbgd can read it."""
    service.machine.sh("id bob >/dev/null 2>&1 || useradd --no-create-home --groups rmbgd bob")
    drop = "umask 027; cp /var/tmp/staged.jpg /srv/rmbgd/in/shoe.jpg"
    service.machine.path("/var/tmp/staged.jpg").write_bytes(image(5))
    service.machine.sh("chmod 644 /var/tmp/staged.jpg")
    service.machine.run("runuser", "-u", "ada", "--", "/bin/sh", "-ec", drop)
    service.wait(lambda: "shoe.jpg" in service.files("done"), "the archived original")

    def can(user: str, *command: str) -> bool:
        return service.machine.call("runuser", "-u", user, "--", *command, "/srv/rmbgd/done/shoe.jpg").returncode == 0

    assert "640 ada:rmbgd-in" == service.machine.run("stat", "-c", "%a %U:%G", "/srv/rmbgd/done/shoe.jpg").strip()
    assert can("bob", "cat")
    assert not can("bob", "truncate", "-s0")
    service.machine.sh("id eve >/dev/null 2>&1 || useradd --no-create-home --groups rmbgd-in eve")
    assert not can("eve", "cat")


def test_sub_folder_of_another_user_is_mirrored_and_readable(service: InstalledService) -> None:
    """What was dropped into a sub-folder that somebody else made comes out below the same name, for the group too."""
    service.drop("spring/shoe.jpg", image(2))

    service.wait(lambda: "spring/shoe.png" in service.files("out"), "the cutout")
    service.machine.run("usermod", "-aG", "rmbgd", "ada")
    read = service.machine.run("runuser", "-u", "ada", "--", "head", "-c", "4", "/srv/rmbgd/out/spring/shoe.png")
    assert "PNG" in read


def test_journal_holds_json_lines_with_fields_to_filter_by(service: InstalledService) -> None:
    """`journalctl RMBGD_EVENT=image.done` finds the one event of the image, and its message is the whole event."""
    service.drop("shoe.jpg", image(3))
    service.wait(lambda: service.events("image.done"), "the event")

    entries = [json.loads(line) for line in service.journal("-o", "json", "RMBGD_EVENT=image.done").splitlines()]
    invocation = service.show("InvocationID")["InvocationID"]
    own = [entry for entry in entries if entry["_SYSTEMD_INVOCATION_ID"] == invocation]
    assert service.events("image.done") == [json.loads(entry["MESSAGE"]) for entry in own]
    assert ["6"] == [entry["PRIORITY"] for entry in own]


def test_wrong_configuration_is_told_and_not_started_again(service: InstalledService) -> None:
    """Exit 78 ends in the state failed, without a restart, and the journal names the setting."""
    service.stop()
    service.machine.sh("printf '[intake]\\nquiet_close = 1.0\\n' > /etc/rmbgd/rmbgd.toml")

    service.machine.run("systemctl", "start", UNIT, check=False)

    state = service.show("ActiveState", "ExecMainStatus", "NRestarts")
    assert {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"} == state
    assert "did you mean 'quiet_closed'?" in service.journal("-o", "cat", "-n", "20")


def test_missing_notify_library_is_named(service: InstalledService) -> None:
    """Without systemd-python the service refuses to start under systemd, and says what to install."""
    service.stop()
    service.drop_in("[Service]\nTemporaryFileSystem=/opt/libraries/systemd:ro\n")

    service.machine.run("systemctl", "start", UNIT, check=False)

    assert {"ExecMainStatus": "78", "NRestarts": "0"} == service.show("ExecMainStatus", "NRestarts")
    assert MISSING in service.journal("-o", "cat", "-n", "20")


def test_running_service_is_as_confined_as_rated(service: InstalledService) -> None:
    """The rating of the unit that runs, not of a file; and the work is done under it (see the other tests)."""
    rated = service.machine.call("systemd-analyze", "security", "--threshold=5", UNIT)

    assert 0 == rated.returncode, rated.stdout.decode()[-200:]


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


def test_service_runs_with_the_lease_drop_in(service: InstalledService) -> None:
    """Outside of a user namespace, with one capability, and still doing its work."""
    service.stop()
    service.drop_in((DROP_INS / "35-lease.conf").read_text())
    service.start()
    service.drop("shoe.jpg", image(6))

    service.wait(lambda: "shoe.png" in service.files("out"), "the cutout")


def test_service_runs_with_the_cpu_only_drop_in(service: InstalledService) -> None:
    """Without any device, the network still computes."""
    service.stop()
    service.drop_in((DROP_INS / "30-cpu-only.conf").read_text())
    service.start()
    service.drop("shoe.jpg", image(7))

    service.wait(lambda: "shoe.png" in service.files("out"), "the cutout")


def test_systemd_understands_every_line_of_the_unit(installed: Machine) -> None:
    """`systemd-analyze verify` has nothing to say about the units."""
    units = [f"/etc/systemd/system/{name}" for name in (UNIT, "rmbgd-gpu-prepare.service")]
    said = installed.call("systemd-analyze", "verify", *units)

    assert (0, b"", b"") == (said.returncode, said.stdout, said.stderr)


@pytest.mark.parametrize(("drop_in", "threshold"), [(None, 5), ("30-cpu-only.conf", 3), ("40-jetson.conf", 5)])
def test_exposure_is_bounded(installed: Machine, drop_in: str | None, threshold: int) -> None:
    """systemd's own rating of the sandbox, in tenths, as shipped and with the drop-ins."""
    units = installed.path("/var/tmp/rated/etc/systemd/system")
    extra = units / f"{UNIT}.d"
    installed.sh(f"rm -rf /var/tmp/rated; mkdir -p /var/tmp/rated/etc/systemd/system/{UNIT}.d")
    (units / UNIT).write_text((REPOSITORY / "systemd" / UNIT).read_text())
    if drop_in is not None:
        (extra / drop_in).write_text((DROP_INS / drop_in).read_text())

    rated = installed.call(
        "systemd-analyze", "security", "--offline=yes", "--root=/var/tmp/rated", f"--threshold={threshold}", UNIT
    )

    assert 0 == rated.returncode, rated.stdout.decode()[-200:]
