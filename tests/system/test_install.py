"""Installed as README.md says, the service is up, shows itself, and does its work for other users under its sandbox."""

from __future__ import annotations

import json
import operator

import pytest

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

    `journalctl RMBGD_EVENT=image.done` finds the events: a sentence for people, the whole event beside it.
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
    own = {entry["RMBGD_PATH"]: entry for entry in entries if entry["_SYSTEMD_INVOCATION_ID"] == invocation}
    logged = {event["path"]: event for event in service.events("image.done")}  # two threads finish them, in any order
    assert logged == {path: json.loads(entry["RMBGD_JSON"]) for path, entry in own.items()}
    assert own["shoe.jpg"]["MESSAGE"].startswith("shoe.jpg -> shoe.png (320x240, u2netp on cpu, ")
    assert {"6"} == {entry["PRIORITY"] for entry in own.values()}


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


def test_what_only_the_operator_can_mend_is_told_and_not_started_again(service: InstalledService) -> None:
    """Exit 78 ends in the state failed, without a restart; the journal names the setting."""
    service.stop()
    service.machine.sh("printf '[intake]\\nquiet_close = 1.0\\n' > /etc/rmbgd/rmbgd.toml")
    service.machine.run("systemctl", "start", UNIT, check=False)
    state = {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert state == service.show(*state)
    assert "did you mean 'quiet_closed'?" in service.journal("-o", "cat", "-n", "20")


@pytest.mark.parametrize("form", ["auto", "json"])
def test_mtbf_reads_the_journal_as_the_log_file(service: InstalledService, form: str) -> None:
    """With sentences as messages and with JSON lines; an end by SIGKILL, which the exit recorder saw, too."""
    service.stop()
    run = f"/opt/rmbgd/bin/rmbgd run --log {form} --config /etc/rmbgd/rmbgd.toml"
    service.drop_in(f"[Service]\nRestartSec=100ms\nExecStart=\nExecStart={run}\n")
    cursor = service.journal("-n", "1", "--show-cursor").rpartition("-- cursor: ")[2].strip()
    service.machine.sh("truncate -s0 /var/log/rmbgd/events.jsonl")
    service.start()
    service.serve("Ümläut \u202egpj.jpg", image(7))
    service.signal("KILL")
    service.wait(lambda: len(service.events("service.ready")) == 2, "the next start")
    service.stop()
    service.machine.sh(
        f"journalctl --sync; journalctl -o json --all --after-cursor='{cursor}' -u {UNIT} > /var/tmp/journal.json"
    )
    exported = [json.loads(line) for line in service.machine.path("/var/tmp/journal.json").read_text().splitlines()]
    ours = [entry for entry in exported if "RMBGD_JSON" in entry]
    by_time = operator.itemgetter("monotonic", "event")
    written = [json.loads(entry["RMBGD_JSON"]) for entry in ours]
    assert sorted(service.events(), key=by_time) == sorted(written, key=by_time)
    sentences = [entry for entry in ours if not str(entry["MESSAGE"]).startswith("{")]
    assert {"service.exit"} == {entry["RMBGD_EVENT"] for entry in sentences} or form == "auto"
    reports = []
    for logs in ("/var/tmp/journal.json", "/var/log/rmbgd", "/var/tmp/journal.json /var/log/rmbgd"):
        report = json.loads(service.machine.sh(f"/opt/rmbgd/bin/rmbgd mtbf --json {logs}"))["total"]
        reports.append((report["operating_hours"], report["pictures"]["done"], len(report["failures"])))
    assert 1 == len(set(reports)), reports
    assert (1, 1) == reports[0][1:]


def test_hooks_are_run_outside_of_the_sandbox(service: InstalledService) -> None:
    """A command as the service's user, who may do there what the service may not; and a unit, by root."""
    machine = service.machine
    service.stop()
    machine.path("/usr/local/bin/tell").write_text(
        "#!/bin/sh\nset -e\ncat > /home/told/$RMBGD_HOOK.json\nid -un > /home/told/user\nid -Gn >> /home/told/user\n"
    )
    machine.path("/etc/systemd/system/idle.service").write_text(
        "[Service]\nType=oneshot\nExecStart=/bin/touch /root/idle-told\n"
    )
    machine.sh(
        "chmod 0755 /usr/local/bin/tell; install -d -o rmbgd /home/told; systemctl daemon-reload\n"
        'sed -i \'s|^on_failed = .*|on_failed = ["/usr/local/bin/tell"]|; s|^on_idle = .*|on_idle = "idle.service"|\' '
        "/etc/rmbgd/rmbgd.toml"
    )
    service.start()
    service.drop("doc.pdf", b"%PDF-1.7 " * 100)
    told = machine.path("/home/told/on_failed.json")
    service.wait(lambda: told.exists() and told.read_text().endswith("}"), "the command of on_failed")
    call = json.loads(told.read_text())
    assert ("image.failed", "doc.pdf", 1, 0) == (call["event"], call["path"], call["count"], call["lost"])
    service.wait(lambda: machine.path("/root/idle-told").exists(), "the unit of on_idle")
    service.wait(lambda: machine.path("/home/told/user").read_text().endswith("\n"), "the user")
    assert "rmbgd\nrmbgd\n" == machine.path("/home/told/user").read_text()
    service.wait(lambda: machine.run("ls", "/run/rmbgd/hooks") == "", "an empty spool")
    assert [] == service.events("hook.failed")
    machine.path("/usr/local/bin/tell").write_text("#!/bin/sh\nexit 3\n")
    as_service = ("runuser", "-u", "rmbgd", "--", "/opt/rmbgd/bin/rmbgd", "hooks", "test", "on_failed")
    assert b"ended with status 3" in machine.call(*as_service).stderr
    machine.sh("""echo '{"hook": "on_failed", "event": "image.failed"}' > /run/rmbgd/hooks/1.json""")
    service.wait(lambda: service.events("hook.failed"), "the failed command")
    assert "hook on_failed failed: /usr/local/bin/tell ended with status 3" in machine.run(
        "journalctl", "-o", "cat", "-n", "50"
    )


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


COMPILED = """
import os, shutil, sys, _json
from pathlib import Path
from rmbgd.cli.models import _become_service
from rmbgd.paths import triton_places
_become_service()
kernels = Path(triton_places(os.environ)["TRITON_CACHE_DIR"])
kernels.mkdir(parents=True)
shutil.copy(_json.__file__, kernels / "_json.so")
print(kernels)
"""
LOADED = """
import importlib.util, os
from rmbgd.paths import triton_places
kernels = triton_places(os.environ)["TRITON_CACHE_DIR"]
spec = importlib.util.spec_from_file_location("_json", kernels + "/_json.so")
importlib.util.module_from_spec(spec)
open(kernels + "/added", "w").close()
"""
BESIDE_WEIGHTS = """
import importlib.util, shutil, _json
shutil.copy(_json.__file__, "/var/lib/rmbgd/_json.so")
try:
    importlib.util.module_from_spec(importlib.util.spec_from_file_location("_json", "/var/lib/rmbgd/_json.so"))
except ImportError as error:
    assert "failed to map segment" in str(error)
else:
    raise SystemExit("it can be loaded, too")
"""


@pytest.mark.parametrize("started", [True, False], ids=["with its cache", "before its first start"])
def test_what_root_compiles_ahead_is_loaded_and_added_to_by_the_service(
    service: InstalledService, *, started: bool
) -> None:
    """A library, where `rmbgd models optimize` puts Triton's, within the unit's sandbox."""
    machine = service.machine
    service.stop()
    machine.sh("rm -rf /var/cache/rmbgd/kernels" if started else "rm -rf /var/cache/rmbgd")
    assert machine.run("/opt/rmbgd/bin/python", "-c", COMPILED) == "/var/cache/rmbgd/kernels\n"
    machine.path("/opt/rmbgd/loaded.py").write_text(LOADED + BESIDE_WEIGHTS)
    service.drop_in("[Service]\nExecStartPre=/opt/rmbgd/bin/python /opt/rmbgd/loaded.py\n")
    service.start()
    assert machine.run("stat", "-c", "%U", "/var/cache/rmbgd/kernels/added") == "rmbgd\n"


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
    names = (UNIT, "rmbgd-gpu-prepare.service", "rmbgd-hooks.service", "rmbgd-hooks.path")
    units = [f"/etc/systemd/system/{name}" for name in names]
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
