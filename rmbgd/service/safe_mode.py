"""A service that keeps dying soon after its start is started in safe mode, and comes out of it by itself.

Keeps the record of starts (starts.py) by the policy of safety.py. Does not start or stop anything: the daemon does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rmbgd.clock import Clock
from rmbgd.config.load import Config
from rmbgd.events import Emit
from rmbgd.service import start_record as starts
from rmbgd.service.start_record import Moment, Record, Run
from rmbgd.telemetry import jsonl as lines

# --- POLICY: when the service starts in safe mode, for how long, and what it does without then.


DEVICE, MODEL = "cpu", "u2netp"  # what every installation has and needs the least of


@dataclass(frozen=True, slots=True)
class Rules:
    """starts   that died, from which on the next one is careful; 0: never
    window   s in which they must have begun
    quiet    s without a death after which safe mode is left, doubled each time that it did not help, up to `longest`
    """

    starts: int
    window: float
    quiet: float
    longest: float


def rules_of(config: Config) -> Rules:
    service = config.service
    return Rules(service.safe_starts, service.safe_window, service.safe_quiet, service.safe_quiet_maximum)


def is_needed(dead: int, rules: Rules) -> bool:
    """`dead`: starts that died, of those within the window."""
    return 0 < rules.starts <= dead


def quiet_time(times: int, rules: Rules) -> float:
    """Seconds in safe mode, when it was entered for the `times`-th time without a run between that worked for long."""
    return float(min(rules.quiet * 2.0 ** min(max(times - 1, 0), 64), rules.longest))


def reduced(config: Config) -> Config:
    """The same folders and recipes with the least that can fail: CPU, embedded model, one image at a time."""
    model = {"model": MODEL, "model_sha256": "", "patch_order": "auto"}
    recipes = {folder.recipe: config.recipe_of(folder).model_copy(update=model) for folder in config.folder}
    return config.model_copy(
        update={
            "engine": config.engine.model_copy(update={"device": DEVICE, "precision": "auto"}),
            "health": config.health.model_copy(update={"require_gpu": False}),
            "pipeline": config.pipeline.model_copy(
                update={"batch_maximum": 1, "decode_threads": 1, "finish_threads": 1, "queue": 1, "batch_wait": 0.0}
            ),
            "recipe": recipes,
        }
    )


# --- A service that keeps dying soon after its start is started in safe mode, and comes out of it by itself.


class SafeMode:
    """One life of the service, from its start to its end. The main thread's; `describe` is any thread's."""

    def __init__(self, config: Config, clock: Clock, environ: Mapping[str, str] | None = None) -> None:
        self._clock = clock
        self._directory = config.service.state_directory
        self._rules = rules_of(config)
        self._before = starts.read(self._directory)
        now = self._now()
        self._dead = [run for run in starts.deaths(self._before.runs) if run.age(now) <= self._rules.window]
        self.safe = is_needed(len(self._dead), self._rules)
        self.waits = self.safe and config.health.require_gpu
        """The operator prefers waiting over a lesser model, in safe mode too: nothing is claimed."""
        self.config = reduced(config) if self.safe else config
        invocation = (os.environ if environ is None else environ).get("INVOCATION_ID", "")
        pid = os.getpid()
        self._run = Run(*now, invocation, (pid, lines.process_start(pid) or 0), safe=self.safe)
        entered = self.safe and not any(run.safe for run in self._dead)  # one that dies in safe mode is in it still
        self._safe_modes = self._before.safe_modes + entered
        self._quiet = quiet_time(self._safe_modes, self._rules)
        self._settles_at: float | None = None  # monotonic
        self.over = False
        """Safe mode has lasted long enough: the life that ends is to be followed by one with everything."""

    def _now(self) -> Moment:
        return starts.moment(self._clock.monotonic(), self._clock.wall().timestamp())

    def begin(self, emit: Emit) -> None:
        """Write this start down, before it can go wrong. The state directory must be ours alone by now."""
        self._write(*self._before.runs, self._run)
        if self.safe:
            emit(
                "service.safe_mode",
                causes=self.causes(),
                window=self._rules.window,
                seconds=self._quiet,
                device=DEVICE,
                model=MODEL,
                waits=self.waits,
            )

    def causes(self) -> list[str]:
        """How those starts ended that made this one careful, the oldest first."""
        return [run.ended or starts.NO_WORD for run in self._dead]

    def ready(self) -> None:
        """From now on its time counts."""
        self._settles_at = self._clock.monotonic() + (self._quiet if self.safe else self._rules.window)

    def patience(self) -> float | None:
        """Seconds until `settle` is to be called; None: not to be called."""
        return None if self._settles_at is None else max(0.0, self._settles_at - self._clock.monotonic())

    def settle(self) -> bool:
        """It has worked for long: what was before is forgotten. True when that ends safe mode."""
        self._settles_at = None
        self._run = replace(self._run, settled=True)
        self._safe_modes = self._safe_modes if self.safe else 0
        self._write(self._run)
        self.over = self.safe
        return self.over

    def ended(self, cause: str | None = None, *, of_operator: bool = False) -> None:
        """The last word of this life: None for an orderly stop, which forgives everything before it."""
        if cause is None:
            self._safe_modes = self._safe_modes if self.over else 0
            self._write()
            return
        self.over = False
        if of_operator:  # no crash, and no sign of health: the others stand as they stood
            self._write(*self._before.runs)
        elif not self._run.settled:
            self._write(*self._before.runs, replace(self._run, ended=cause))

    def describe(self) -> dict[str, Any] | None:
        """For the status file: None when this is not safe mode."""
        if not self.safe:
            return None
        return {"causes": self.causes(), "left_in": self.patience(), "waits": self.waits}

    def _write(self, *runs: Run) -> None:
        starts.write(self._directory, Record(runs, self._safe_modes))
