"""SIGKILL, thousands of times, at random moments and steps, while images come in: nothing lost, twice, or half.

The real service process with an engine that costs nothing. After each kill the folders are counted and what is new is
decoded; after the last the service ends its work and everything is audited: folders, cutouts, ledger, and an event for
every outcome. Power cuts are tools/power_cut.py's.

    python -m tools.kill [--kills 2302] [--each 100] [--seed 1] [--out FILE]

2,302 kills without a loss show a chance below 0.1 % per kill with 90 % confidence: ln(0.1) / ln(0.999).
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rmbgd.errors import Reason
from tests.support import audit
from tests.support.images import sample_image
from tests.support.service import ENDINGS, ServiceUnderTest
from tools.campaign import main
from tools.tables import steps

BAD_SHARE = 50  # one in so many is no image
WAYS = ("start", "step", "work", "work")  # how the moment is chosen, in turn
LIFE = {"start": (0.0, 0.5), "work": (0.0, 1.0)}  # s until a kill; of work, from ready on
STEPS = 60  # file operations and transactions until a kill; where there are fewer, it comes when all is done
FRESH = 16  # one start in so many is of a fresh interpreter, the others by fork: a kill during imports shows nothing
FINISH = 600.0  # s for the rest after the last kill


class Campaign:
    """A service that is fed and killed."""

    def __init__(self, base: Path, seed: int) -> None:
        self._dice = random.Random(seed)
        # A kill that an image has nothing to do with must not set it aside: the most attempts that can be set.
        options = {"engine": {"delay": 0.01}, "fuse": str(base / "fuse")}
        self._service = ServiceUnderTest(base, settings={"intake": {"attempts": 10}}, options=options)
        self._dropped: dict[str, bytes] = {}
        self._lives: list[float] = []
        self._ready = 0  # so many lives got ready
        self._burnt = 0  # so many were killed right before a step

    def run(self, kills: int, images: int) -> dict[str, Any]:
        service, dropped = self._service, self._dropped
        conservation = audit.Conservation(service.roots, dropped)
        found: Counter[str] = Counter()
        broken: list[str] = []  # by readers of the harness: a line of the log that is no JSON
        threading.excepthook = lambda happened: broken.append(repr(happened.exc_value))
        with contextlib.ExitStack() as stack:
            stack.push(service)  # whatever happens, an interrupt included: no service outlives its campaign
            for kill in steps(kills, "kills"):
                for number in range(images * kill // kills, images * (kill + 1) // kills):
                    self._drop(number)
                self._life(kill)
                found.update(conservation.check())
        with service.start():
            service.wait(service.is_idle, "the rest after the last kill", timeout=FINISH)
        bad = {name: Reason.UNIDENTIFIED for name in dropped if name.startswith("bad/")}
        audit.assert_complete(service.roots, dropped, bad=bad)
        done = len(audit.files(service.done))
        audit.assert_ledger_settled(service.state, done=len(dropped) - len(bad), failed=len(bad))
        assert not broken, broken
        told = audit.assert_each_told([event for name in ENDINGS for event in service.recorded(name)])
        assert len(told) == len(dropped), f"{len(dropped)} images ended, {len(told)} jobs were told"
        return {
            "kills": kills,
            "at_a_step": self._burnt,
            "lives_ready": self._ready,
            "images": done,
            "refused": len(bad),
            "lost": len(dropped) - done - len(bad),
            "told_again": sum(count > 1 for count in told.values()),
            "computed": service.computed(),
            "found_claimed": found["claimed"],
            "found_waiting": found["input"],
            "life_median_s": round(statistics.median(self._lives), 2),
        }

    def _life(self, kill: int) -> None:
        service, way = self._service, WAYS[kill % len(WAYS)]
        if way == "step":
            service.fuse.write_text(str(self._dice.randint(1, STEPS)))
        service.fresh_interpreter = kill % FRESH == 0
        service.start(ready=False)
        began = time.monotonic()
        if way == "step":
            service.wait(lambda: service.ended or self._is_over(), "the fuse, or the end of the work", alive=False)
        else:
            if way == "work":
                service.wait_for("service.ready", count=1 + self._ready)
            time.sleep(self._dice.uniform(*LIFE[way]))
        if service.ended:
            assert way == "step", service.tail()
            assert service.reap() == -9, service.tail()  # only the fuse ends it
            self._burnt += 1
        else:
            service.kill()
        self._ready = len(service.named("service.ready"))
        self._lives.append(time.monotonic() - began)
        service.fuse.unlink(missing_ok=True)

    def _is_over(self) -> bool:
        return len(self._service.named("service.ready")) > self._ready and self._service.is_idle()

    def _drop(self, number: int) -> None:
        if number % BAD_SHARE == BAD_SHARE - 1:
            name, data = f"bad/{number}.png", b"no image %06d " % number * 20
        else:
            name, data = f"{number % 9}/{number}.png", sample_image(number)
        self._dropped |= self._service.drop_all({name: data})


def campaign(base: Path, kills: int, seed: int, images: int = 0) -> dict[str, Any]:
    """Below the folder `base`, which it makes; two images per kill, or `images`. Raises AssertionError."""
    return Campaign(base, seed).run(kills, images or 2 * kills)


if __name__ == "__main__":
    sys.exit(main("kill", campaign, about=__doc__, unit="kills", count=2_302, each=100))
