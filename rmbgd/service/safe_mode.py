"""Safe mode after a crash loop: run with the least that can fail, and leave it by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rmbgd.clock import Clock, backoff
from rmbgd.config.load import Config
from rmbgd.events import Emit
from rmbgd.service import start_record
from rmbgd.service.start_record import Start, StartRecord
from rmbgd.telemetry import jsonl

DEVICE, MODEL = "cpu", "u2netp"  # what every installation has and needs the least of


def reduced(config: Config) -> Config:
    """The same folders and recipes with the least that can fail: CPU, embedded model, one image at a time.

    A worker of a fleet keeps its models: what it publishes counts as the recipe's for all machines.
    """
    model = {"model": MODEL, "model_sha256": "", "patch_order": "auto"}
    recipes = config.recipe
    if config.source.kind == "folders":
        recipes = {folder.recipe: config.recipe_of(folder).model_copy(update=model) for folder in config.folder}
    one_by_one = {"batch_maximum": 1, "decode_threads": 1, "finish_threads": 1, "queue": 1, "batch_wait": 0.0}
    return config.model_copy(
        update={
            "engine": config.engine.model_copy(update={"device": DEVICE, "precision": "auto"}),
            "health": config.health.model_copy(update={"require_gpu": False}),
            "pipeline": config.pipeline.model_copy(update=one_by_one),
            "recipe": recipes,
        }
    )


class SafeMode:
    """Decides how one start of the service runs, and keeps the record of starts. The main thread's, but `describe`."""

    def __init__(self, config: Config, clock: Clock, environ: Mapping[str, str] = os.environ) -> None:
        service = config.service
        self._clock, self._directory, self._window = clock, service.state_directory, service.safe_window
        self._before = start_record.read(self._directory)
        now = start_record.moment(clock.monotonic(), clock.wall().timestamp())
        self._dead = [start for start in start_record.deaths(self._before.starts) if start.age(now) <= self._window]
        self.safe = 0 < service.safe_starts <= len(self._dead)
        # The operator prefers waiting over a lesser model, in safe mode too: nothing is claimed.
        self.waits = self.safe and config.health.require_gpu
        self.config = reduced(config) if self.safe else config
        process = (os.getpid(), jsonl.process_start(os.getpid()) or 0)
        self._start = Start(*now, environ.get("INVOCATION_ID", ""), process, safe=self.safe)
        entered = self.safe and not any(start.safe for start in self._dead)  # dying in safe mode does not leave it
        self._safe_modes = self._before.safe_modes + entered
        # Doubled each time that it did not help.
        self._quiet = backoff(max(self._safe_modes, 1), service.safe_quiet, service.safe_quiet_maximum)
        self._settles_at: float | None = None  # monotonic
        # Safe mode has lasted long enough: the service is to start once more, with everything, when it has ended.
        self.over = False

    def begin(self, emit: Emit) -> None:
        """Write this start down, before it can go wrong. The state directory must be locked by now."""
        self._write(*self._before.starts, self._start)
        if self.safe:
            emit(
                "service.safe_mode",
                causes=self.causes(),
                window=self._window,
                seconds=self._quiet,
                device=DEVICE,
                model=MODEL,
                waits=self.waits,
            )

    def causes(self) -> list[str]:
        """How those starts ended that made this one careful, the oldest first."""
        return [start.ended or start_record.NO_WORD for start in self._dead]

    def ready(self) -> None:
        """The time of healthy work counts from now."""
        self._settles_at = self._clock.monotonic() + (self._quiet if self.safe else self._window)

    def seconds_left(self) -> float | None:
        """Seconds until `settle` is to be called; None: not to be called."""
        return None if self._settles_at is None else max(0.0, self._settles_at - self._clock.monotonic())

    def settle(self) -> bool:
        """The service has worked for long: forget what was before. True when that ends safe mode."""
        self._settles_at = None
        self._start = replace(self._start, settled=True)
        self._safe_modes = self._safe_modes if self.safe else 0
        self._write(self._start)
        self.over = self.safe
        return self.over

    def ended(self, cause: str | None = None, *, of_operator: bool = False) -> None:
        """Record the end of this start. None: an orderly stop, which forgives everything before it.

        `of_operator`: an unusable configuration is no crash and no sign of health, so the record stays as it was.
        """
        if cause is None:
            self._safe_modes = self._safe_modes if self.over else 0
            self._write()
            return
        self.over = False
        if of_operator:
            self._write(*self._before.starts)
        elif not self._start.settled:
            self._write(*self._before.starts, replace(self._start, ended=cause))

    def describe(self) -> dict[str, Any] | None:
        """For the status file: None when this is not safe mode. Any thread."""
        if not self.safe:
            return None
        return {"causes": self.causes(), "left_in": self.seconds_left(), "waits": self.waits}

    def _write(self, *starts: Start) -> None:
        start_record.write(self._directory, StartRecord(starts, self._safe_modes))
