"""The service itself on a drop folder: sustained throughput with what bounds it, and eight droppers beside one.

Starts the real command on folders of its own. Files are renamed in, so that settling costs only its quiet time, which
is set to its least. Originals are deleted as they are done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from rmbgd.bench.samples import P95_NEEDS, Waits, bottleneck, busy, drawn, spread, versions
from rmbgd.service.exit_recorder import STATUS_FILE
from tools.gpubench.plan import Answer, Plan, answers

STATUS_SECONDS = 0.25  # between two status files, in which the channels' waits stand
QUIET = 0.05  # s; intake.quiet_closed
PATIENCE = 240.0  # s without a further event
BELOW_CAPACITY = 0.6  # share of the sustained rate that eight sources drop
SOURCES = 8


class Service:
    """The running service, its events as they come. Context manager; ready once entered."""

    def __init__(self, plan: Plan, base: Path) -> None:
        self.base = base
        cores = len(os.sched_getaffinity(0))
        self.decoders, self.finishers = max(2, cores // 4), max(2, cores // 2)
        for name in ("in", "out", "failed", "state", "run", "fresh"):
            (base / name).mkdir(parents=True)
        weights = plan.weights(plan.backbone)
        config = base / "rmbgd.toml"
        config.write_text(
            f'[service]\nstate_directory = "{base}/state"\nruntime_directory = "{base}/run"\n'
            f"status_interval = {STATUS_SECONDS}\n"
            f"[intake]\nquiet_closed = {QUIET}\n"
            f"[pipeline]\ndecode_threads = {self.decoders}\nfinish_threads = {self.finishers}\n"
            f"batch_maximum = {8 if plan.is_gpu else 2}\n"
            f'[engine]\ndevice = "{plan.device}"\nstart_timeout = {plan.start_timeout}\n'
            f"[health]\nrequire_gpu = {'true' if plan.is_gpu else 'false'}\n"
            f'[recipe.default]\nmodel = "{weights}"\npatch_order = "{plan.patch_order}"\n'
            f'[[folder]]\nname = "bench"\ninput = "{base}/in"\noutput = "{base}/out"\nfailed = "{base}/failed"\n'
            'originals = "delete"\n'
        )
        self._command = [sys.executable, "-m", "rmbgd", "run", "--config", str(config)]
        self._heard = threading.Condition()
        self.events: list[tuple[float, dict[str, Any]]] = []  # under the condition; (monotonic s, event)
        self._counts: Counter[str] = Counter()  # likewise; of the events, by name

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.wait("service.ready", 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._note(json.loads(line))
        self._note({"event": "end of the log"})

    def _note(self, event: dict[str, Any]) -> None:
        with self._heard:
            self.events.append((time.monotonic(), event))
            self._counts[event["event"]] += 1
            self._heard.notify_all()

    def named(self, name: str) -> list[tuple[float, dict[str, Any]]]:
        return [each for each in self.events if each[1]["event"] == name]

    def wait(self, name: str, count: int) -> None:
        """Until so many events of that name were heard. Raises RuntimeError when they do not come."""
        with self._heard:
            while self._counts[name] < count:
                if any(self._counts[bad] for bad in ("image.failed", "service.failed", "end of the log")):
                    raise RuntimeError(f"the service: {self._last()}")
                if not self._heard.wait(PATIENCE):
                    raise RuntimeError(f"the service said nothing for {PATIENCE:g} s: {self._last()}")

    def _last(self) -> str:
        return json.dumps([each for _, each in self.events[-3:]])[:1500]

    def waits(self) -> tuple[float, Waits]:
        """(moment, waits) of the newest status file."""
        record = json.loads((self.base / "run" / STATUS_FILE).read_bytes())
        channels = record["health"]["channels"]
        return float(record["monotonic"]), Waits(
            jobs_empty=channels["jobs"]["receive_waited"],
            frames_full=channels["frames"]["send_waited"],
            frames_empty=channels["frames"]["receive_waited"],
            arrivals_full=channels["arrivals"]["send_waited"],
            arrivals_empty=channels["arrivals"]["receive_waited"],
        )

    def drop(self, name: str, data: bytes) -> float:
        """Rename a whole file in; the moment of the rename."""
        fresh = self.base / "fresh" / name
        fresh.write_bytes(data)
        moment = time.monotonic()
        fresh.rename(self.base / "in" / name)
        return moment


def hot_folder(plan: Plan, answer: Answer) -> None:
    """All files at once: images a second from a tenth of them to the last, and the stage that the others wait for."""
    with Service(plan, Path(plan.work) / "hot") as service:
        first = max(1, plan.hot_files // 10)
        for name, data in islice(versions(drawn(8, plan.side)), plan.hot_files):
            service.drop(name, data)
        service.wait("image.done", first)
        began, before = service.waits()
        service.wait("image.done", plan.hot_files - first)
        ended, after = service.waits()
        service.wait("image.done", plan.hot_files)
        done = service.named("image.done")
    taken = [event["milliseconds"] for _, event in done[first:]]
    means = {stage: sum(each.get(stage, 0.0) for each in taken) / len(taken) for stage in taken[0]}
    answer.put("files", plan.hot_files)
    answer.put("per_second", (len(done) - first) / (done[-1][0] - done[first - 1][0]))
    answer.put("devices", sorted({str(event["device"]) for _, event in done}))
    answer.put("mean_batch", sum(event["batch"] for _, event in done) / len(done))
    answer.put("milliseconds", means)
    answer.put("threads", {"decode": service.decoders, "finish": service.finishers})
    if ended > began:
        shares = busy(before, after, ended - began, decoders=service.decoders, finishers=service.finishers)
        answer.put("busy", shares)
        answer.put("bound", bottleneck(shares, means))


def sources(plan: Plan, answer: Answer) -> None:
    """Rename to image.done, with one dropper and with eight, each at an eighth of 60 % of the sustained rate."""
    sustained = answers(plan.work).get("hot_folder", {}).get("per_second")
    rate = BELOW_CAPACITY * float(sustained or 10.0) / SOURCES
    answer.put("rate_of_each", rate)
    answer.put("rate_is", "60 % of the hot folder's" if sustained else "assumed: the hot folder was not measured")
    with Service(plan, Path(plan.work) / "sources") as service:
        for droppers in (1, SOURCES):
            answer.put(f"{droppers}", figures(dropping(plan, service, droppers, rate)))


def dropping(plan: Plan, service: Service, droppers: int, rate: float) -> list[float]:
    """How long every image took, in ms; each dropper keeps its pace, whatever becomes of its images."""
    count = max(P95_NEEDS if plan.is_gpu else 2, int(plan.source_seconds * rate))
    files = list(islice(versions(drawn(8, plan.side)), (droppers * count)))
    dropped: dict[str, float] = {}
    lock = threading.Lock()
    already = len(service.named("image.done"))
    began = time.monotonic() + 0.1

    def drop(number: int) -> None:
        for k in range(count):
            name, data = files[number * count + k]
            due = began + (k + number / droppers) / rate
            time.sleep(max(0.0, due - time.monotonic()))
            name = f"{droppers}-{name}"
            moment = service.drop(name, data + bytes([droppers]))
            with lock:
                dropped[name] = moment

    threads = [threading.Thread(target=drop, args=(number,)) for number in range(droppers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.wait("image.done", already + droppers * count)
    done = service.named("image.done")[already:]
    return [1000 * (moment - dropped[event["path"]]) for moment, event in done]


def figures(milliseconds: list[float]) -> Mapping[str, float | int | None]:
    found = spread(milliseconds)
    return {"count": found.count, "p50": found.p50, "p95": found.p95, "longest": found.longest}
