"""docs/operations.md, followed command by command on a fresh machine: install, backup, restore, upgrade."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.system.conftest import REPOSITORY, booted_machine, carry_out, prepare
from tests.system.machine import Machine
from tests.system.service import USER, InstalledService, image

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

LEDGER = "/var/lib/rmbgd/ledger.sqlite"
COPY = "/var/backups/rmbgd/ledger.sqlite"
QUESTION = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
    "print(db.execute('PRAGMA integrity_check').fetchone()[0], "
    "*sorted(row[0].decode() for row in db.execute(\"SELECT path FROM job WHERE state='done'\")))"
)


def blocks(heading: str) -> list[str]:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/operations.md has no section '{heading}'"
    found = re.findall(r"^ *```sh\n(.*?)^ *```", section[1], re.MULTILINE | re.DOTALL)
    assert found, f"no commands under '{heading}'"
    return ["\n".join(line.strip() for line in block.splitlines()) for block in found]


def done_in(machine: Machine, ledger: str) -> str:
    return machine.run("/opt/rmbgd/bin/python", "-c", QUESTION, ledger).strip()


@pytest.fixture(scope="module")
def followed() -> Iterator[InstalledService]:
    with booted_machine() as machine:
        prepare(machine)
        for block in blocks("Install on a fresh edge machine"):
            carry_out(machine, block)
        machine.sh(f"id {USER} >/dev/null 2>&1 || useradd --no-create-home --groups rmbgd-in {USER}")
        yield InstalledService(machine)


def test_installed_by_the_page_it_serves(followed: InstalledService) -> None:
    assert {"ActiveState": "active", "UnitFileState": "enabled"} == followed.show("ActiveState", "UnitFileState")
    followed.machine.path("/var/tmp/shoe.jpg").write_bytes(image(1))
    followed.machine.sh("chmod 0644 /var/tmp/shoe.jpg")
    as_shop = ("runuser", "-u", "shop", "--")
    followed.machine.run(*as_shop, "cp", "/var/tmp/shoe.jpg", "/srv/rmbgd/in/shoe.jpg")
    followed.wait(lambda: "shoe.png" in followed.files("out"), "the cutout")
    assert "PNG" in followed.machine.run(*as_shop, "head", "-c", "4", "/srv/rmbgd/out/shoe.png")


def test_log_and_its_rotation_are_where_the_page_says(followed: InstalledService) -> None:
    log = "/var/log/rmbgd/events.jsonl"
    assert log in followed.machine.path("/etc/logrotate.d/rmbgd").read_text()
    assert followed.events("service.ready")
    followed.machine.run("mv", log, f"{log}-20260101")
    followed.drop("rotated.jpg", image(2))
    followed.wait(lambda: followed.events("image.done"), "the event in the new file")
    report = json.loads(followed.machine.run("/opt/rmbgd/bin/rmbgd", "mtbf", "--json", "/var/log/rmbgd"))
    assert report["total"]["pictures"]["done"] == len(followed.files("out"))


def test_backup_restore_and_upgrade_by_the_page(followed: InstalledService) -> None:
    machine = followed.machine
    followed.serve("before.jpg", image(3))
    save, restore = blocks("The ledger")
    carry_out(machine, save)
    assert done_in(machine, COPY).startswith("ok before.jpg")
    followed.serve("later.jpg", image(4))
    assert "later.jpg" in done_in(machine, LEDGER)
    carry_out(machine, restore)
    assert "later.jpg" not in done_in(machine, LEDGER)
    for block in blocks("Upgrade"):
        carry_out(machine, block)
    assert {"ActiveState": "active"} == followed.show("ActiveState")
    assert "before.jpg" in done_in(machine, LEDGER)
    followed.serve("upgraded.jpg", image(5))
