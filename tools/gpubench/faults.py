"""What befalls a GPU in its life, on the card itself: other programs' memory, a killed process, a stopped one.

The real service; every image that was dropped must come out, whoever computes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from rmbgd.bench.samples import drawn, versions
from tools.gpubench.plan import Answer, Plan
from tools.gpubench.service import Service

IMAGES = 12  # with each fault, one after the other: batches of one have the shortest deadlines
TOLD = ("engine.lost", "engine.failover", "engine.failback", "engine.degraded", "engine.limited", "engine.fault")
HOG = """
import sys, time, torch
held = []
for size in (1 << 30, 1 << 28, 1 << 25):
    try:
        while True:
            held.append(torch.empty(size, dtype=torch.uint8, device=sys.argv[1]))
    except torch.OutOfMemoryError:
        pass
print("full", flush=True)
time.sleep(3600)
"""


def faults(plan: Plan, answer: Answer) -> None:
    kinds: dict[str, Callable[[Plan, Service], Callable[[], None]]] = {"kill -9": killed}
    if plan.is_gpu:
        kinds |= {"stopped (SIGSTOP)": stopped, "memory taken by another program": hogged}
    with Service(plan, Path(plan.work) / "faults") as service:
        files = versions(drawn(8, plan.side))
        for kind, strike in kinds.items():
            since, before = len(service.events), len(service.named("image.done"))
            began = time.monotonic()
            undo = strike(plan, service)
            try:
                for name, data in islice(files, IMAGES if plan.is_gpu else 2):
                    service.drop(name, data)
                    service.wait_for_done(len(service.named("image.done")) + 1)
            finally:
                undo()
            done = service.named("image.done")[before:]
            found = {event: count for event in TOLD if (count := len(service.named(event, since=since)))}
            answer.row(
                {
                    "step": kind,
                    "images": len(done),
                    "seconds_to_first": done[0]["monotonic"] - began,
                    "devices": [event["device"] for event in done],
                    "events": found,
                }
            )


def killed(_plan: Plan, service: Service) -> Callable[[], None]:
    for child in service.children():
        os.kill(child, signal.SIGKILL)
    return lambda: None


def stopped(_plan: Plan, service: Service) -> Callable[[], None]:
    """The service has to end it itself: a stopped process answers nothing."""
    for child in service.children():
        os.kill(child, signal.SIGSTOP)
    return lambda: None


def hogged(plan: Plan, _service: Service) -> Callable[[], None]:
    hog = subprocess.Popen([sys.executable, "-c", HOG, plan.device], stdout=subprocess.PIPE)
    assert hog.stdout is not None
    hog.stdout.readline()

    def free() -> None:
        hog.kill()
        hog.wait()

    return free
