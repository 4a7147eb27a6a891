"""A service that keeps dying soon after its start is started in safe mode, and comes out of it by itself.

Keeps the record of starts (starts.py) by the policy of safety.py. Does not start or stop anything: the daemon does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rmbgd.clock import Clock
from rmbgd.config import Config
from rmbgd.events import Emit
from rmbgd.health import lines, safety, starts
from rmbgd.health.starts import Moment, Record, Run


class CrashLoop:
    """One life of the service, from its start to its end. The main thread's; `describe` is any thread's."""

    def __init__(self, config: Config, clock: Clock, environ: Mapping[str, str] | None = None) -> None:
        self._clock = clock
        self._directory = config.service.state_directory
        self._rules = safety.rules_of(config)
        self._before = starts.read(self._directory)
        now = self._now()
        self._dead = [run for run in starts.deaths(self._before.runs) if run.age(now) <= self._rules.window]
        self.safe = safety.is_needed(len(self._dead), self._rules)
        self.waits = self.safe and config.health.require_gpu
        """The operator prefers waiting over a lesser model, in safe mode too: nothing is claimed."""
        self.config = safety.reduced(config) if self.safe else config
        invocation = (os.environ if environ is None else environ).get("INVOCATION_ID", "")
        pid = os.getpid()
        self._run = Run(*now, invocation, (pid, lines.process_start(pid) or 0), safe=self.safe)
        entered = self.safe and not any(run.safe for run in self._dead)  # one that dies in safe mode is in it still
        self._safe_modes = self._before.safe_modes + entered
        self._quiet = safety.quiet_time(self._safe_modes, self._rules)
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
                device=safety.DEVICE,
                model=safety.MODEL,
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
