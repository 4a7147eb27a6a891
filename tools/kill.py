"""SIGKILL, thousands of times, at random moments and steps, while images come in: nothing lost, twice, or half.

The real service process with an engine that costs nothing. After each kill the folders are counted and what is new is
decoded; after the last the service ends its work and everything is audited: folders, cutouts, ledger, and an event for
every outcome. Power cuts are tools/power_cut.py's.

    python -m tools.kill [--kills 2302] [--each 100] [--seed 1] [--files one|three] [--out FILE]

2,302 kills without a loss show a chance below 0.1 % per kill with 90 % confidence: ln(0.1) / ln(0.999).
"""

from __future__ import annotations

import contextlib
import random
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
LIFE = {"start": 0.5, "work": 1.0}  # s until a kill, at most; of work, from ready on
STEPS = 60  # file operations and transactions until a kill; where there are fewer, it comes when all is done
FRESH = 16  # one start in so many is of a fresh interpreter, the others by fork: a kill during imports shows nothing
FINISH = 600.0  # s for the rest after the last kill


def campaign(base: Path, kills: int, seed: int, images: int = 0, *, files: str = "one") -> dict[str, Any]:
    """Below the folder `base`, which it makes; two images per kill, or `images`. Raises AssertionError.

    Each image gives so many `files`: one or three.
    """
    recipe = audit.RECIPES[files]
    dice, images = random.Random(seed), images or 2 * kills
    # A kill that an image has nothing to do with must not set it aside: the most attempts that can be set.
    options = {"engine": {"delay": 0.01}, "fuse": str(base / "fuse")}
    service = ServiceUnderTest(base, settings={"intake": {"attempts": 10}}, options=options, recipe=recipe)
    dropped: dict[str, bytes] = {}
    conservation = audit.Conservation(service.roots, dropped, recipe)
    found: Counter[str] = Counter()
    broken: list[str] = []  # by readers of the harness: a line of the log that is no JSON
    threading.excepthook = lambda happened: broken.append(repr(happened.exc_value))
    with contextlib.ExitStack() as stack:
        stack.push(service)  # whatever happens, an interrupt included: no service outlives its campaign
        for kill in steps(kills, "kills"):
            for number in range(images * kill // kills, images * (kill + 1) // kills):
                dropped |= service.drop_all(image(number))
            found["at_a_step"] += one_life(service, dice, kill)
            found.update(conservation.check())
    ready = len(service.named("service.ready"))
    with service.start():
        service.wait(service.is_idle, "the rest after the last kill", timeout=FINISH)
    bad = {name: Reason.UNIDENTIFIED for name in dropped if name.startswith("bad/")}
    audit.assert_settled(service, dropped, bad=bad, recipe=recipe)
    assert not broken, broken
    told = audit.assert_each_told([event for name in ENDINGS for event in service.recorded(name)])
    done = len(audit.files(service.done))
    return {
        "kills": kills,
        "at_a_step": found["at_a_step"],
        "lives_ready": ready,
        "images": done,
        "refused": len(bad),
        "lost": len(dropped) - done - len(bad),
        "told_again": sum(count > 1 for count in told.values()),
        "computed": service.computed(),
        "found_claimed": found["claimed"],
        "found_waiting": found["input"],
    }


def image(number: int) -> dict[str, bytes]:
    if number % BAD_SHARE == BAD_SHARE - 1:
        return {f"bad/{number}.png": b"no image %06d " % number * 20}
    return {f"{number % 9}/{number}.png": sample_image(number)}


def one_life(service: ServiceUnderTest, dice: random.Random, kill: int) -> bool:
    """Start and kill; whether it was killed right before a step."""
    way, ready = WAYS[kill % len(WAYS)], len(service.named("service.ready"))
    if way == "step":
        service.fuse.write_text(str(dice.randint(1, STEPS)))
    service.fresh_interpreter = kill % FRESH == 0
    service.start(ready=False)

    def over() -> bool:
        return service.ended or (len(service.named("service.ready")) > ready and service.is_idle())

    if way == "step":
        service.wait(over, "the fuse, or the end of the work", alive=False)
    else:
        if way == "work":
            service.wait_for("service.ready", count=1 + ready)
        time.sleep(dice.uniform(0.0, LIFE[way]))
    if burnt := service.ended:
        assert (way, service.reap()) == ("step", -9), service.tail()  # only the fuse ends it
    else:
        service.kill()
    service.fuse.unlink(missing_ok=True)
    return burnt


if __name__ == "__main__":
    sys.exit(main("kill", campaign, about=__doc__, unit="kills", count=2_302, each=100, files=[*audit.RECIPES]))
