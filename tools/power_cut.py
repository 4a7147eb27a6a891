"""Power cuts on a real ext4 while the service publishes: nothing truncated, nothing lost, the ledger opens.

All folders of the service lie on an ext4 behind a loop device. At a random moment the file system is shut down without
its journal being flushed (FS_IOC_SHUTDOWN, as xfstests do), the process is killed, the disk mounted again, and what is
there is audited before the next start. Needs root and loop devices. Does not test what a drive does with its own cache.

    python -m tools.power_cut [--rounds 200] [--each 50] [--seed 1] [--files one|three] [--out FILE]

Exit status 2 where it cannot run.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import audit
from tests.support.images import sample_image
from tests.support.mounts import cut_power, disk, mount, mounted, own_mounts, run
from tests.support.service import ServiceUnderTest
from tools.campaign import main
from tools.tables import steps

IMAGES = 12  # new ones per round
LIFE = (0.0, 1.2)  # s from ready until the cut
FINISH = 300.0  # s for the rest after the last cut
SIZE = (160, 120)  # pixels; some 60 kB of cutout, so that there is something to truncate


def campaign(base: Path, rounds: int, seed: int, *, files: str = "one") -> dict[str, Any]:
    """Below the folder `base`, which it makes, in a process that makes its mounts its own; each image gives so many
    `files`: one or three.

    Raises AssertionError for what the audit finds, and pytest's Skipped where there are no such disks.
    """
    own_mounts()
    where = base / "disk"
    where.mkdir(parents=True)
    with disk(base / "image", 64 + rounds) as device, mounted(where, "ext4", "rw", device):
        return cut_again_and_again(where, device, rounds, random.Random(seed), audit.RECIPES[files])


def cut_again_and_again(
    base: Path, device: str, rounds: int, dice: random.Random, recipe: dict[str, Any]
) -> dict[str, Any]:
    """A service in `base`, where the disk of the device is mounted, before and afterwards."""
    settings = {"intake": {"attempts": 10}}  # cuts that an image has nothing to do with
    service = ServiceUnderTest(base, settings=settings, options={"count": "", "entered": ""}, recipe=recipe)
    dropped: dict[str, bytes] = {}
    conservation = audit.Conservation(service.roots, dropped, recipe)
    found: Counter[str] = Counter()
    for number in steps(rounds, "power cuts"):
        images = range(number * IMAGES, (number + 1) * IMAGES)
        dropped |= service.drop_all({f"{each % 3}/{each}.png": sample_image(each, size=SIZE) for each in images})
        run("sync", "-f", base)  # what the cut takes must be the service's to lose
        try:
            service.start()
            time.sleep(dice.uniform(*LIFE))
            cut_power(base)
        finally:
            service.kill()
        run("umount", base)  # not lazily: the next mount must find the disk, not the dead file system
        mount(base, "ext4", "rw", device)
        found["temporaries"] += sum(".rmbgd" in name for name in audit.files(service.output))
        found.update(conservation.check())
        with contextlib.closing(sqlite3.connect(service.state / "ledger.sqlite")) as db:
            answer = db.execute("PRAGMA integrity_check").fetchall()
        assert answer == [("ok",)], f"the ledger is damaged: {answer}"
    with service.start():
        service.wait(service.is_idle, "the rest after the last cut", timeout=FINISH)
    audit.assert_complete(service.roots, dropped, recipe=recipe)
    audit.assert_ledger_settled(service.state, done=len(dropped))
    return {
        "rounds": rounds,
        "images": len(dropped),
        "lost": len(dropped) - len(audit.files(service.done)),
        "temporaries": found["temporaries"],
        "found_claimed": found["claimed"],
        "found_waiting": found["input"],
    }


if __name__ == "__main__":
    try:
        sys.exit(main("power_cut", campaign, about=__doc__, unit="rounds", count=200, each=50, files=[*audit.RECIPES]))
    except pytest.skip.Exception as reason:
        print(f"cannot cut power here: {reason}", file=sys.stderr)
        sys.exit(2)
