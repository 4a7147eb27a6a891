"""GPU failures by the thousand, one after another and of every kind, while images come in: nothing lost, all right.

The real service process with the real failover and real child processes; the engine in them is a fake with a scripted
GPU (rmbgd/testing/engine.py), so what is tested is everything but CUDA itself. Each failure is waited for until the GPU
has proved itself and is back; then the next one comes. At the end folders, cutouts, ledger and events are audited.

    python -m tools.failover [--failures 2302] [--each 200] [--seed 1] [--out FILE]

2,302 failures without a loss show a chance below 0.1 % per failure with 90 % confidence: ln(0.1) / ln(0.999).
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from itertools import chain, count
from pathlib import Path
from typing import Any

from rmbgd.testing.engine import CUDA_ERRORS
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest, assert_proved_before_use
from tests.support.images import sample_image
from tools.campaign import main
from tools.tables import steps

OTHER_WORDS = {"memory", "memory_runtime"}  # errors that keep the process
OTHER_WORDS |= {"no_device", "driver_mismatch", "init"}  # looked for at intervals of minutes: not for a campaign
STICKY_WORDS = sorted(set(CUDA_ERRORS) - OTHER_WORDS)
KINDS = [*(f"cuda:{word}" for word in STICKY_WORDS), "kill", "exit:70", "nonsense", "wrong_count", "wrong_image"]
RARE = {"heat": 10, "memory": 15, "bad_blocks": 31}  # one failure in so many is of that kind
OUT_OF_MEMORY = 3  # times in ten minutes that are a trip
QUICK = dict.fromkeys(("interval", "dwell", "dwell_maximum"), 0.02)
QUICK |= {"good_checks": 1, "canary_blocks": 16, "canary_interval": 0.0, "trial_pictures": 2}
BACK = 120.0  # s until the GPU is back after a failure


def campaign(base: Path, failures: int, seed: int) -> dict[str, Any]:
    """Below the folder `base`, which it makes. Raises AssertionError for what the audit finds."""
    dice = random.Random(seed)
    # An engine that dies a thousand times is what this is about: the images that it dies with are not to blame.
    settings = {"engine": {"device": "cuda:0", "batch_timeout": 30.0, "tries": 10}}
    service = GpuUnderTest(base, health=QUICK, settings=settings)
    dropped: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    # Few failures show as many kinds as they can.
    common = chain.from_iterable(dice.sample(KINDS, len(KINDS)) for _ in count())
    with service:
        service.wait_for_gpu()
        for failure in steps(failures, "GPU failures"):
            since = len(service.events)
            kind = next((name for name, every in RARE.items() if failure % every == every - 1), None) or next(common)
            counts[kind] += 1
            match kind:
                case "heat":
                    service.temperature(90.0)
                case "bad_blocks":
                    service.order("canary", "1")
                case "memory":
                    service.steps(["cuda:memory"] * OUT_OF_MEMORY)
                case _:
                    service.steps(["ok"] * dice.randint(0, 2) + [kind])
            while not service.named("engine.failover", since=since):
                for number in range(len(dropped), len(dropped) + dice.randint(1, 5)):
                    dropped |= service.drop_all({f"{number % 7}/{number}.png": sample_image(number)})
                service.wait_for_endings(len(dropped))
            service.temperature(60.0)
            service.withdraw("canary")
            service.wait_for("engine.failback", since=since, timeout=BACK)
    audit.assert_settled(service, dropped)
    done, failovers = service.named("image.done"), service.named("engine.failover")
    assert len(failovers) == failures, f"{failures} failures, but {len(failovers)} failovers"
    assert len(done) == len(dropped), "an image was told twice, or not at all"
    assert_proved_before_use(service.events)
    return {
        "failures": failures,
        "kinds": dict(sorted(counts.items())),
        "reasons": dict(sorted(Counter(event["reason"] for event in failovers).items())),
        "failovers": len(failovers),
        "failbacks": len(service.named("engine.failback")),
        "images": len(dropped),
        "by_device": dict(sorted(Counter(event["device"] for event in done).items())),
        "lost": len(dropped) - len(audit.files(service.done)),
    }


if __name__ == "__main__":
    sys.exit(main("failover", campaign, about=__doc__, unit="failures", count=2_302, each=200))
