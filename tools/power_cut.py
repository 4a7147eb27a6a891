"""Power cuts on a real ext4 while the service publishes: nothing truncated, nothing lost, the ledger opens.

All folders of the service lie on an ext4 behind a loop device. At a random moment the file system is shut down without
its journal being flushed (FS_IOC_SHUTDOWN, as xfstests do), the process is killed, the disk mounted again, and what is
there is audited before the next start. Needs root and loop devices. Does not test what a drive does with its own cache.

    python -m tools.power_cut [--rounds 200] [--each 50] [--seed 1] [--out FILE]

To be run in the checkout: it uses the harness of the tests.

Prints a table, then one JSON line; exit status 1 when the audit finds something, 2 where it cannot run.
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
from tests.support.mounts import cut_power, disk, memory_folder, mount, own_mounts, run
from tests.support.service import ServiceUnderTest
from tools.campaign import main, steps

IMAGES = 12  # new ones per round
LIFE = (0.0, 1.2)  # s from ready until the cut
FINISH = 300.0  # s for the rest after the last cut
SIZE = (160, 120)  # pixels; some 60 kB of cutout, so that there is something to truncate


class Campaign:
    """A service on a disk of its own whose power is cut again and again. `base` is an empty folder."""

    def __init__(self, base: Path, device: str, *, rounds: int, seed: int) -> None:
        self._dice = random.Random(seed)
        self._rounds, self._device, self._base = rounds, device, base
        self._dropped: dict[str, bytes] = {}
        self._found: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        """Raises AssertionError for what the audit finds."""
        self._mount()
        try:
            settings = {"intake": {"attempts": 10}}  # cuts that an image has nothing to do with
            self._service = ServiceUnderTest(self._base, settings=settings, options={"count": "", "entered": ""})
            conservation = audit.Conservation(self._service.roots, self._dropped)
            for number in steps(self._rounds, "power cuts"):
                self._round(number)
                self._found.update(conservation.check())
                with contextlib.closing(sqlite3.connect(self._service.state / "ledger.sqlite")) as db:
                    answer = db.execute("PRAGMA integrity_check").fetchall()
                assert answer == [("ok",)], f"the ledger is damaged: {answer}"
            with self._service.start() as service:
                service.wait(service.is_idle, "the rest after the last cut", timeout=FINISH)
            audit.assert_complete(self._service.roots, self._dropped)
            audit.assert_ledger_settled(self._service.state, done=len(self._dropped))
            done = len(audit.files(self._service.done))
        finally:
            self._unmount()
        return {
            "rounds": self._rounds,
            "images": len(self._dropped),
            "lost": len(self._dropped) - done,
            "temporaries": self._found["temporaries"],
            "found_claimed": self._found["claimed"],
            "found_waiting": self._found["input"],
        }

    def _round(self, number: int) -> None:
        service = self._service
        for each in range(number * IMAGES, (number + 1) * IMAGES):
            name, data = f"{each % 3}/{each}.png", sample_image(each, size=SIZE)
            self._dropped[name] = data
            service.drop(name, data)
        run("sync", "-f", self._base)  # what the cut takes must be the service's to lose
        try:
            service.start()
            time.sleep(self._dice.uniform(*LIFE))
            cut_power(self._base)
        finally:
            service.kill()
        self._unmount()
        self._mount()
        self._found["temporaries"] += sum(".rmbgd" in name for name in audit.files(service.output))

    def _mount(self) -> None:
        mount(self._base, "ext4", "rw", self._device)

    def _unmount(self) -> None:
        run("umount", self._base)  # not lazily: the next mount must find the disk, not the dead file system


def campaign(base: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Below the folder `base`, which it makes, in a process that makes its mounts its own.

    Raises AssertionError, and pytest's Skipped where there are no such disks.
    """
    own_mounts()
    # The image lies in memory: whether a cut loses anything is decided by ext4, and syncs cost nothing.
    base.mkdir(parents=True)
    where = base / "disk"
    where.mkdir()
    with memory_folder(base) as memory, disk(memory / "image", 64 + rounds) as device:
        return Campaign(where, device, rounds=rounds, seed=seed).run()


if __name__ == "__main__":
    try:
        sys.exit(main("power_cut", campaign, about=__doc__, unit="rounds", count=200, each=50, in_memory=False))
    except pytest.skip.Exception as reason:
        print(f"cannot cut power here: {reason}", file=sys.stderr)
        sys.exit(2)
