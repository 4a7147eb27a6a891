"""The service itself on a drop folder: sustained throughput with what bounds it, and eight droppers beside one.

Starts the real command on folders of its own. Files are renamed in, so that settling costs only its quiet time, which
is set to its least. Originals are deleted as they are done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from rmbgd.bench.samples import P95_NEEDS, bottleneck, busy, drawn, means, spread, versions, waited
from rmbgd.config.load import IntakeSettings, LimitSettings, PipelineSettings
from rmbgd.service.exit_recorder import STATUS_FILE
from tests.support.service import SHORTENED, ServiceUnderTest, Settings
from tools.gpubench.plan import Answer, Plan, answers

STATUS_SECONDS = 0.25  # between two status files, in which the channels' waits stand
QUIET = 0.05  # s; intake.quiet_closed
PATIENCE = 240.0  # s without a further event
BELOW_CAPACITY = 0.6  # share of the sustained rate that eight sources drop
SOURCES = 8


class Service(ServiceUnderTest):
    """The real command with the plan's network, on folders of its own."""

    def __init__(self, plan: Plan, base: Path) -> None:
        cores = len(os.sched_getaffinity(0))
        self.threads = {"decode": max(2, cores // 4), "finish": max(2, cores // 2)}
        pipeline = PipelineSettings().model_dump(include={"arena_bytes", "free_bytes_minimum"})
        pipeline |= {f"{stage}_threads": count for stage, count in self.threads.items()}
        settings: Settings = {
            "service": {"status_interval": STATUS_SECONDS},
            "intake": IntakeSettings().model_dump(include=set(SHORTENED)) | {"quiet_closed": QUIET},
            "limits": LimitSettings().model_dump(include={"pixels"}),
            "pipeline": pipeline | {"batch_maximum": 8 if plan.is_gpu else 2},
            "engine": {"device": plan.device, "start_timeout": plan.start_timeout},
            "health": {"require_gpu": plan.is_gpu},
        }
        recipe = {"model": str(plan.weights), "patch_order": plan.patch_order}
        super().__init__(base, settings=settings, folder={"originals": "delete", "done": None}, recipe=recipe)
        self.fresh_interpreter = True
        self.checks_events = importlib.util.find_spec("jsonschema") is not None  # a machine that is lent may lack it

    def command(self) -> list[str]:
        return [sys.executable, "-m", "rmbgd", "run", "--config", str(self.config)]

    def wait_for_done(self, count: int) -> None:
        """Raises AssertionError when an image is refused, or no further one comes."""
        while (done := len(self.named("image.done"))) < count:
            self.wait_for("image.done", count=done + 1, timeout=PATIENCE)
            assert not self.named("image.failed"), self.tail()

    def waits(self) -> tuple[float, dict[str, float]]:
        """(moment, seconds that each stage waited) of the newest status file."""
        record = json.loads((self.runtime / STATUS_FILE).read_bytes())
        channels = record["health"]["channels"].items()
        received, sent = ({name: each[f"{side}_waited"] for name, each in channels} for side in ("receive", "send"))
        return float(record["monotonic"]), waited(received, sent)


def hot_folder(plan: Plan, answer: Answer) -> None:
    """All files at once: images a second from a tenth of them to the last, and the stage that the others wait for."""
    with Service(plan, Path(plan.work) / "hot") as service:
        first = max(1, plan.hot_files // 10)
        for name, data in islice(versions(drawn(8, plan.side)), plan.hot_files):
            service.drop(name, data)
        service.wait_for_done(first)
        began, before = service.waits()
        service.wait_for_done(plan.hot_files - first)
        ended, after = service.waits()
        service.wait_for_done(plan.hot_files)
        done = service.named("image.done")
    milliseconds = means([event["milliseconds"] for event in done[first:]])
    shares = busy(before, after, ended - began, service.threads) if ended > began else {}
    answer.put(
        files=plan.hot_files,
        per_second=(len(done) - first) / (done[-1]["monotonic"] - done[first - 1]["monotonic"]),
        devices=sorted({str(event["device"]) for event in done}),
        milliseconds=milliseconds,
        busy=shares,
        bound=bottleneck(shares, milliseconds) if shares else "unknown",
    )


def sources(plan: Plan, answer: Answer) -> None:
    """Rename to image.done, with one dropper and with eight, each at an eighth of 60 % of the sustained rate."""
    sustained = answers(plan.work).get("hot_folder", {}).get("per_second")
    rate = BELOW_CAPACITY * float(sustained or 10.0) / SOURCES
    origin = "60 % of the hot folder's" if sustained else "assumed: the hot folder was not measured"
    answer.put(rate_of_each=rate, rate_is=origin)
    with Service(plan, Path(plan.work) / "sources") as service:
        for droppers in (1, SOURCES):
            answer.put(**{f"{droppers}": asdict(spread(dropping(plan, service, droppers, rate)))})


def dropping(plan: Plan, service: Service, droppers: int, rate: float) -> list[float]:
    """How long every image took, in ms; droppers take turns and keep their pace, whatever becomes of the images."""
    count = max(P95_NEEDS if plan.is_gpu else 2, int(plan.source_seconds * rate))
    dropped: dict[str, float] = {}
    already = len(service.named("image.done"))
    began = time.monotonic() + 0.1
    for number, (name, data) in enumerate(islice(versions(drawn(8, plan.side)), droppers * count)):
        time.sleep(max(0.0, began + number / droppers / rate - time.monotonic()))  # each a share of the interval later
        dropped[name := f"{droppers}-{name}"] = time.monotonic()
        service.drop(name, data + bytes([droppers]))
    service.wait_for_done(already + droppers * count)
    done = service.named("image.done")[already:]
    return [1000 * (event["monotonic"] - dropped[event["path"]]) for event in done]
