"""GPU failures by the thousand, one after another and of every kind, while images come in: nothing lost, all right.

The real service process with the real failover and real child processes; the engine in them is a fake with a scripted
GPU (rmbgd/testing/engine.py), so what is tested is everything but CUDA itself. Each failure is waited for until the GPU
has proved itself and is back; then the next one comes. At the end folders, cutouts, ledger and events are audited.

    python -m tools.failover [--failures 2302] [--each 200] [--seed 1] [--out FILE]

To be run in the checkout: it uses the harness of the tests.

2,302 failures without a loss show a chance below 0.1 % per failure with 90 % confidence: ln(0.1) / ln(0.999).

Prints a table, then one JSON line; exit status 1 when the audit finds something.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rmbgd.testing.engine import CUDA_ERRORS
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest, assert_proved_before_use
from tests.support.images import sample_image
from tools.campaign import main, steps

OTHER_WORDS = {"memory", "memory_runtime"}  # errors that keep the process
OTHER_WORDS |= {"no_device", "driver_mismatch", "init"}  # looked for at intervals of minutes: not for a campaign
STICKY_WORDS = sorted(set(CUDA_ERRORS) - OTHER_WORDS)
KINDS = [*(f"cuda:{word}" for word in STICKY_WORDS), "kill", "exit:70", "nonsense", "wrong_count", "wrong_image"]
HEAT_EVERY, MEMORY_EVERY, BLOCKS_EVERY = 10, 15, 31  # one failure in so many is heat, three times no memory, bad blocks
OUT_OF_MEMORY = 3  # times in ten minutes that are a trip
QUICK = {
    "interval": 0.02,
    "dwell": 0.02,
    "dwell_maximum": 0.02,
    "good_checks": 1,
    "canary_blocks": 16,
    "canary_interval": 0.0,
    "trial_pictures": 2,
}
BACK = 120.0  # s until the GPU is back after a failure


class Campaign:
    """One life of the service, and as many failures. `base` is an empty folder."""

    def __init__(self, base: Path, *, failures: int, seed: int) -> None:
        self._dice = random.Random(seed)
        self._failures = failures
        # An engine that dies a thousand times is what this is about: the images that it dies with are not to blame.
        settings = {"engine": {"device": "cuda:0", "batch_timeout": 30.0, "tries": 10}}
        self._service = GpuUnderTest(base, health=QUICK, settings=settings)
        self._dropped: dict[str, bytes] = {}
        self._kinds: Counter[str] = Counter()
        self._away: list[float] = []
        self._deck: list[str] = []  # kinds to come, shuffled: few failures show as many kinds as they can

    def run(self) -> dict[str, Any]:
        """Raises AssertionError for what the audit finds."""
        service = self._service
        with service:
            service.wait_for_gpu()
            before = self._resources()
            for failure in steps(self._failures, "GPU failures"):
                self._fail(failure)
            after = self._resources()
        self._audit()
        reasons = Counter(event["reason"] for event in service.named("engine.failover"))
        devices = Counter(event["device"] for event in service.named("image.done"))
        return {
            "failures": self._failures,
            "kinds": dict(sorted(self._kinds.items())),
            "reasons": dict(sorted(reasons.items())),
            "failovers": len(service.named("engine.failover")),
            "failbacks": len(service.named("engine.failback")),
            "images": len(self._dropped),
            "by_device": dict(sorted(devices.items())),
            "lost": len(self._dropped) - len(audit.files(service.done)),
            "away_median_s": round(statistics.median(self._away), 2),
            "descriptors_threads_before": before,
            "descriptors_threads_after": after,
        }

    def _fail(self, failure: int) -> None:
        service, since = self._service, len(self._service.events)
        kind = self._kind(failure)
        self._kinds[kind] += 1
        if kind == "heat":
            service.temperature(90.0)
        elif kind == "bad_blocks":
            service.order("canary", "1")
        elif kind == "memory":
            service.steps(["cuda:memory"] * OUT_OF_MEMORY)
        else:
            service.steps(["ok"] * self._dice.randint(0, 2) + [kind])
        while not service.named("engine.failover", since=since):
            self._drop(self._dice.randint(1, 5))
            service.wait_for_endings(len(self._dropped))
        service.temperature(60.0)
        service.withdraw("canary")
        back = service.wait_for("engine.failback", since=since, timeout=BACK)
        self._away.append(back["seconds"])

    def _kind(self, failure: int) -> str:
        for name, every in (("heat", HEAT_EVERY), ("memory", MEMORY_EVERY), ("bad_blocks", BLOCKS_EVERY)):
            if failure % every == every - 1:
                return name
        if not self._deck:
            self._deck = self._dice.sample(KINDS, len(KINDS))
        return self._deck.pop()

    def _drop(self, count: int) -> None:
        for number in range(len(self._dropped), len(self._dropped) + count):
            name, data = f"{number % 7}/{number}.png", sample_image(number)
            self._dropped[name] = data
            self._service.drop(name, data)

    def _resources(self) -> list[int]:
        """Open descriptors and threads of the service's process."""
        assert self._service.process is not None
        proc = Path(f"/proc/{self._service.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return [len(os.listdir(proc / "fd")), int(status["Threads"])]

    def _audit(self) -> None:
        service = self._service
        audit.assert_complete(service.roots, self._dropped)
        audit.assert_ledger_settled(service.state, done=len(self._dropped))
        away = len(service.named("engine.failover"))
        assert away == self._failures, f"{self._failures} failures, but {away} failovers"
        told = [event["path"] for event in service.named("image.done")]
        assert len(told) == len(set(told)) == len(self._dropped), "an image was told twice, or not at all"
        assert_proved_before_use(service.events)


def campaign(base: Path, failures: int, seed: int) -> dict[str, Any]:
    """Below the folder `base`, which it makes. Raises AssertionError."""
    return Campaign(base, failures=failures, seed=seed).run()


if __name__ == "__main__":
    sys.exit(main("failover", campaign, about=__doc__, unit="failures", count=2_302, each=200))
