"""`rmbgd service install`: folders below /home behind the sandbox, and a service of an ordinary user."""

from __future__ import annotations

import json

import pytest

from tests.system.machine import Machine
from tests.system.service import DROP_INS, UNIT, InstalledService, image

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

HOME = "/home/shop/my images"
RMBGD = "/opt/rmbgd/bin/rmbgd"


def findings(machine: Machine) -> dict[str, list[str]]:
    """What the doctor says as the service's user, by state."""
    done = machine.run("runuser", "-u", "rmbgd", "--", RMBGD, "doctor", "--json", check=False)
    found: dict[str, list[str]] = {}
    for each in json.loads(done)["findings"]:
        found.setdefault(each["state"], []).append(f"{each['need']}: {each['text']}; {each['hint']}")
    return found


def test_folder_below_home_is_told_and_then_served(service: InstalledService) -> None:
    """The sandbox hides /home: doctor names setting and cure, `service install` writes it, originals move by rename."""
    machine = service.machine
    machine.sh(
        f"mkdir -p '{HOME}'; cd '{HOME}'; mkdir -p in out done failed; chmod 0711 /home/shop; chown -R rmbgd: .\n"
        f"sed -i 's|/srv/rmbgd/|{HOME}/|' /etc/rmbgd/rmbgd.toml; systemctl restart {UNIT}"
    )
    service.wait(lambda: service.events("folder.waiting"), "the folder that is not seen")
    told = findings(machine)["fail"]
    assert f"folder main, input: {HOME}/in: rmbgd.service may not see it (ProtectHome=yes)" in "\n".join(told)
    assert "`rmbgd service install --system` writes the drop-in that lifts it" in "\n".join(told)
    assert f"{HOME}/in: the running service waits for it: the service may not read it" in "\n".join(told)

    said = machine.run(RMBGD, "service", "install")
    assert f"wrote {DROP_INS}/50-folders.conf" in said
    assert f"unchanged /etc/systemd/system/{UNIT}" in said
    machine.run("systemctl", "restart", UNIT)
    assert [] == findings(machine).get("fail", [])
    machine.path(f"{HOME}/in/shoe.jpg").write_bytes(image(1))
    machine.run("chown", "rmbgd:", f"{HOME}/in/shoe.jpg")
    inode = machine.path(f"{HOME}/in/shoe.jpg").stat().st_ino
    service.wait(machine.path(f"{HOME}/done/shoe.jpg").exists, "the archived original")
    assert machine.path(f"{HOME}/out/shoe.png").exists()
    assert machine.path(f"{HOME}/done/shoe.jpg").stat().st_ino == inode
    hidden = machine.run("nsenter", "-m", "-t", service.show("MainPID")["MainPID"], "ls", "/home")
    assert "shop" in hidden

    machine.run("cp", "/root/rmbgd/config/rmbgd.toml", "/etc/rmbgd/rmbgd.toml")
    assert f"removed {DROP_INS}/50-folders.conf" in machine.run(RMBGD, "service", "install")


def test_an_ordinary_user_has_a_service_of_his_own(installed: Machine) -> None:
    """init, service install, enable: the user's systemd starts it, and every command finds its configuration."""
    installed.sh("id ida >/dev/null 2>&1 || useradd --create-home ida; loginctl enable-linger ida")
    uid = installed.run("id", "-u", "ida").strip()
    environ = f"XDG_RUNTIME_DIR=/run/user/{uid} HOME=/home/ida PATH=/opt/rmbgd/bin:$PATH"

    def ida(command: str) -> str:
        return installed.sh(f"runuser -u ida -- env {environ} sh -ec 'cd; {command}'")

    installed.sh(f"for i in $(seq 240); do [ -S /run/user/{uid}/systemd/private ] && exit; sleep 0.25; done; exit 1")
    ida("rmbgd init shop")
    said = ida("rmbgd service install --now")
    assert "wrote /home/ida/.config/systemd/user/rmbgd.service" in said
    try:
        ida("systemd-analyze --user verify ~/.config/systemd/user/rmbgd.service")
        assert "active" in ida("systemctl --user is-active rmbgd")
        installed.path("/home/ida/shop/in/shoe.jpg").write_bytes(image(2))
        installed.sh("for i in $(seq 240); do [ -e /home/ida/shop/out/shoe.png ] && exit; sleep 0.25; done; exit 1")
        assert json.loads(ida("rmbgd status --json"))["verdict"] == "running"
        assert "removed /home/ida/.config/systemd/user/rmbgd.service" in ida("rmbgd service uninstall")
        assert "inactive" in ida("systemctl --user is-active rmbgd || true")
    finally:
        installed.sh("loginctl disable-linger ida")
