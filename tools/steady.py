"""An hour at the highest rate that the machine takes, without a fault: memory of the service per 1,000 images.

The real service with an engine that costs nothing and two heap arenas, as under the unit. Images of every kind and of
many sizes, a tenth of them broken; results are taken away as a consumer would. After a warm-up the slope of anonymous
memory is taken, with its 95 % bounds; the upper one must stay below 1 MiB per 1,000 images.

    python -m tools.steady [--seconds 3600] [--each 3600] [--seed 1] [--out FILE]

Exit status 1 when an image has no outcome, or the bound is missed. Runs of less than ten minutes bound nothing.
"""

from __future__ import annotations

import os
import random
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from tests.support import audit
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest
from tools.campaign import main
from tools.soak import GROWTH, JUDGED_FROM, Reading, hostile, judged, read, slopes_of

AHEAD = 200  # images that wait for the service: it never wants for work, and its backlog is even
WARM_UP = 0.25  # share of the run
SAMPLE = 2.0  # s between two readings
TAKE_AWAY = 5.0  # s between two looks of the consumer
LARGE_SHARE = 0.02  # of a megapixel, so that buffers of every size come and go
KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
FINISH = 300.0  # s for what waits at the end


def image(dice: random.Random, number: int) -> tuple[str, bytes]:
    if number % 10 == 9:
        return f"{number % 7}/{number}.png", hostile(dice, number)
    kind = KINDS[number % len(KINDS)]
    size = (1200, 900) if dice.random() < LARGE_SHARE else (dice.randint(16, 400), dice.randint(16, 300))
    return f"{number % 7}/{number}.{kind.lower()}", sample_image(number, size=size, kind=kind)


def steady(base: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Below the folder `base`, which it makes. Raises AssertionError when an image has no outcome."""
    dice, numbers, readings = random.Random(seed), count(), list[Reading]()
    memory = base / "memory"
    settings: dict[str, dict[str, Any]] = {"intake": {"incomplete_timeout": 2.0}}
    service = ServiceUnderTest(base, settings=settings, options={"memory": str(memory)})
    with service:
        service.wait(memory.exists, "the first reading")
        before = list(read(service.pid, service.state, memory, life=0, now=0.0))
        began, dropped, next_reading, next_look = time.monotonic(), 0, 0.0, 0.0
        while (now := time.monotonic() - began) < seconds:
            assert not service.ended, service.tail()
            if dropped - service.ended_count() < AHEAD:
                service.drop(*image(dice, next(numbers)))
                dropped += 1
            else:
                time.sleep(0.02)
            if now >= next_reading:
                next_reading = now + SAMPLE
                readings += read(service.pid, service.state, memory, life=0, now=now)
            if now >= next_look:
                next_look = now + TAKE_AWAY
                take_away(service)
        service.wait(lambda: service.ended_count() == dropped, "the rest", timeout=FINISH)
    warm = [each for each in readings if each.seconds >= WARM_UP * seconds]
    slopes = slopes_of(warm, 0.0, per_second=dropped / seconds)
    upper = slopes["rss"][2]
    judged = seconds >= JUDGED_FROM
    return {
        "images": dropped,
        "per_second": round(dropped / seconds, 1),
        "before_the_first_image": before[0].rss if before else None,
        "anonymous_at_the_end": readings[-1].rss,
        "anonymous_highest": max(each.rss for each in readings),
        "per_1000_images": slopes,
        "judged": judged,
        "grows": ["rss"] if judged and (upper is None or upper > GROWTH) else [],
    }


def take_away(service: ServiceUnderTest) -> None:
    for root in (service.output, service.done, service.failed):
        for name in audit.files(root):
            if ".rmbgd" not in name:
                (root / name).unlink(missing_ok=True)
    for path in (service.count, service.log_file):
        if path.exists():
            os.truncate(path, 0)


if __name__ == "__main__":
    sys.exit(main("steady", judged(steady), about=__doc__, unit="seconds", count=3600, each=3600))
