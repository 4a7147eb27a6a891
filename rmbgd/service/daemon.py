"""Composition root and life cycle of the service: build, recover, start, watch, drain.

The main thread owns signals, deadlines and the notify socket, and touches no pixels.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rmbgd.clock import SystemClock
from rmbgd.config import load as configuration
from rmbgd.config.layout import check_layout
from rmbgd.config.problems import NOTATION
from rmbgd.engine.arena import Arena
from rmbgd.engine.devices import EngineContext, EngineFactory
from rmbgd.engine.types import EngineDescription
from rmbgd.engine.wiring import default_devices
from rmbgd.errors import ConfigError, Exit, LedgerFault
from rmbgd.events import LEDGER_DAMAGED, SAFE_MODE_OVER
from rmbgd.heartbeat import Heartbeats
from rmbgd.imaging.pillow import configure_opencv, configure_pillow
from rmbgd.intake.reconciler import Reconciler
from rmbgd.intake.source import Source
from rmbgd.intake.startup_recovery import Recovered
from rmbgd.intake.watcher import OverflowListener
from rmbgd.pipeline.items import JobConsumer, ResultPublisher
from rmbgd.pipeline.pipeline import Pipeline, PipelineContext
from rmbgd.pipeline.queue import QueueStatistics
from rmbgd.pipeline.storage_retry import StorageRetry
from rmbgd.publish.publisher import Publisher
from rmbgd.publish.quarantine import Quarantine
from rmbgd.publish.review import Reviewer
from rmbgd.sequence.sequences import announced_sequences, open_sequences
from rmbgd.service.control import ControlServer
from rmbgd.service.health import Counters, HealthMonitor
from rmbgd.service.hooks import Hooks
from rmbgd.service.ledger_monitor import LedgerMonitor, LedgerOutage
from rmbgd.service.messages import Message, Milestone, Signalled, Trouble, signals
from rmbgd.service.operator import Operator
from rmbgd.service.review_monitor import ReviewMonitor
from rmbgd.service.safe_mode import SafeMode
from rmbgd.service.stall import StallDetector, StallFacts, is_excused
from rmbgd.service.systemd import Notifier, open_notifier
from rmbgd.service.threads import ThreadFailure, ThreadGroup
from rmbgd.store.copies import CHECK_RATE
from rmbgd.store.ledger import Ledger
from rmbgd.store.ledger_lock import LEDGER
from rmbgd.telemetry.captured_output import StderrCapture
from rmbgd.telemetry.log import EventLog, open_log
from rmbgd.telemetry.metrics import Metrics, open_metrics

DAMAGED_STARTS = 3  # in a row that the ledger may spoil before they are systemd's to space out
BESIDE = ("health", "ledger", "control", "review")  # threads that are not the pipeline's
GRACE = 30.0  # s beside the configured patience before systemd is to lose its own
ABORT_TIMEOUT = 5.0  # s that threads get to end after the engine was taken from them


def run(
    config_path: Path,
    *,
    log_form: str = "auto",
    build_devices: EngineFactory = default_devices,
    announces: bool = False,
) -> int:
    """`rmbgd run`, and `rmbgd announce`: serve until told to stop. Returns an exit status; raises ConfigError."""
    config = configuration.load(config_path)
    if announces and config.bucket and not config.folder:
        text = "`rmbgd announce` watches folders; images of a [[bucket]] are announced by `rmbgd fleet sweep`"
        raise ConfigError(f"{config_path}: {text}")
    if not config.folder and not config.bucket:
        raise ConfigError(f"{config_path}: no [[folder]] is defined, so there is nothing to do; {NOTATION}")
    check_layout(config)
    if announces and config.source.kind != "jetstream":
        text = 'source.kind: is "folders", so there is no queue to announce images on; write kind = "jetstream"'
        raise ConfigError(f"{config_path}: {text}")
    if not announces:
        config = config.with_spools()
    notifier = open_notifier()
    messages: SimpleQueue[Message] = SimpleQueue()
    with (
        open_log(config.service, log_form) as log,
        StderrCapture(log.emit) as stderr,
        Hooks(config, log.emit) as hooks,
        signals(messages),
    ):
        outage, spoilt = LedgerOutage(SystemClock()), 0
        while True:
            life = SafeMode(config, SystemClock())
            metrics = open_metrics(life.config, hooks)
            counters = hooks.emit = Counters(metrics or hooks)
            counters(
                "service.start",
                config=str(config_path),
                folders=[folder.name for folder in life.config.folder],
                device=life.config.engine.device,
                python=platform.python_version(),
                host=platform.node(),
                heartbeat=life.config.service.health_interval,
            )
            with ExitStack() as stack:
                outage.emit = counters
                try:
                    service = Service(
                        life,
                        log,
                        stderr,
                        counters,
                        metrics,
                        hooks,
                        notifier,
                        build_devices,
                        stack,
                        messages,
                        outage,
                        config_path,
                        announces=announces,
                    )
                    recovered = service.recover()
                except (ConfigError, LedgerFault) as error:
                    spoilt += 1
                    if not (isinstance(error, LedgerFault) and error.damaged and spoilt < DAMAGED_STARTS):
                        counters("service.failed", stage="start", error=str(error), traceback="")
                        raise
                    outage.begin(error)
                    outage.damaged()
                    life.ended(LEDGER_DAMAGED, of_operator=True)  # neither a crash nor a sign of health
                    continue
                spoilt = 0
                code = service.serve(recovered)
            if not service.begins_anew:
                return code
            # Once more, with everything or a sound ledger. Of the messages left, only signals count.
            for message in [messages.get() for _ in range(messages.qsize())]:
                if isinstance(message, Signalled):
                    messages.put(message)
            notifier.watchdog()


def until_decided(config: configuration.Config) -> float:
    """Seconds until the first device has passed its self-test or failed: its start; of a GPU also what the CPU computes
    for comparison, and the tests themselves."""
    engine = config.engine
    compared = engine.start_timeout + engine.batch_timeout + config.health.probe_timeout
    return engine.start_timeout + (0.0 if engine.device == "cpu" else compared)


class Service:
    """The running service. Every method is the main thread's unless it says otherwise."""

    def __init__(
        self,
        life: SafeMode,
        log: EventLog,
        stderr: StderrCapture,
        emit: Counters,
        metrics: Metrics | None,
        hooks: Hooks,
        notifier: Notifier,
        build_devices: EngineFactory,
        stack: ExitStack,
        messages: SimpleQueue[Message],
        outage: LedgerOutage,
        config_path: Path,
        *,
        announces: bool = False,
    ) -> None:
        self._config_path, self._announces = config_path.absolute(), announces
        self.messages = messages  # put by any thread, taken by the main thread
        self._outage = outage
        self._trouble: Trouble | None = None  # that the next life mends, unless it is asked to stop
        config, clock = life.config, SystemClock()
        self._life, self._config, self._clock, self._build_devices = life, config, clock, build_devices
        self._emit, self._metrics, self._hooks, self._notifier = emit, metrics, hooks, notifier
        self._began = clock.monotonic()
        self._device = "starting"  # written by the thread "infer", read by the health thread; one reference
        self._cause: str | None = None  # why it ends
        self._failure: ThreadFailure | None = None
        configure_pillow(config.limits)
        configure_opencv()
        self._heartbeats = Heartbeats(clock)
        self._pipeline_heartbeat = self._heartbeats.new("line")  # the health thread's, which speaks for all
        self._stall_detector = StallDetector(config.service.stuck_after)  # likewise
        self._ledger = self._open_ledger()
        stack.callback(self._ledger.close)
        life.begin(emit)
        has_live = any(folder.latency == "realtime" for folder in config.folder)
        self._arena = Arena(config.pipeline.arena_bytes, config.pipeline.arena_bytes // 8 if has_live else 0)
        stack.callback(self._arena.close)
        self._threads = ThreadGroup(self.messages.put)
        self._engine = EngineContext(config, self._arena, emit, clock)
        publisher = Publisher(config, self._ledger, clock, emit)
        state = config.service.state_directory
        self._sequences = announced_sequences(config, clock) if announces else open_sequences(config, emit, state)
        results = self._open_source(publisher)
        stack.callback(self._intake.release)  # also where this life ends before it serves
        if life.safe:
            self._intake.hold_suspects()
        films = [folder.name for folder in config.folder if folder.kind == "films"]
        for name in config.root_names if life.waits else films if life.safe else ():
            self._intake.pause(f"safe_mode:{name}")
        reviewer = Reviewer(config.folder, publisher, self._ledger, clock, emit)
        self._reviews = ReviewMonitor(
            config.folder, reviewer, self._ledger, self._heartbeats.new("review"), config.intake.reconcile
        )
        operator = Operator(config, self._ledger, self._intake, reviewer, emit, clock)
        self._control = ControlServer(
            config.service.runtime_directory, operator.answer, emit, clock, self._heartbeats.new("control")
        )
        stack.enter_context(OverflowListener(self._intake.watches, emit))
        self._storage_retry = StorageRetry(self._intake, emit, clock)
        self._pipeline = self._open_pipeline(results, publisher.quarantine, stack)
        self._ledger_monitor = LedgerMonitor(
            self._ledger.database,
            outage,
            emit,
            clock,
            on_damage=lambda: self.messages.put(Trouble.LEDGER),
            on_writable=self._intake.wake,
        )
        self._monitor = HealthMonitor(
            config.service,
            heartbeats=self._heartbeats,
            counters=emit,
            describe=self._describe,
            notifier=notifier,
            clock=clock,
            unwritten=lambda: log.dropped,
            on_status=self._pass_on,
            on_stall=stderr.show_stacks,
        )

    def _open_source(self, publisher: Publisher) -> ResultPublisher:
        """Where images come from; answers where their results go. Raises ConfigError."""
        config, clock, emit = self._config, self._clock, self._emit
        heartbeat, compared = self._heartbeats.new("reconcile"), lambda: self.messages.put(Milestone.FOLDERS)
        self._intake: Source
        if config.source.kind == "folders" or self._announces:
            self._intake = Reconciler(
                config,
                ledger=self._ledger,
                publisher=publisher,
                clock=clock,
                emit=emit,
                heartbeat=heartbeat,
                on_compared=compared,
                sequences=self._sequences,
            )
            return publisher
        from rmbgd.fleet.worker import open_worker  # its libraries are an extra, and nobody else needs them

        worker = open_worker(
            config,
            publisher.quarantine,
            clock=clock,
            emit=emit,
            heartbeat=heartbeat,
            describe=self._of_a_worker,
            on_compared=compared,
            sequences=self._sequences,
        )
        self._intake = worker.source
        return worker.publisher

    def _open_pipeline(self, results: ResultPublisher, quarantine: Quarantine, stack: ExitStack) -> JobConsumer:
        """Or what takes its place where images are announced. Raises ConfigError."""
        context = PipelineContext(
            engine=self._engine,
            build_devices=self._build_devices,
            ledger=self._ledger,
            publisher=results,
            storage_retry=self._storage_retry,
            source=self._intake,
            new_heartbeat=self._heartbeats.new,
            start_thread=self._threads.start,
            on_ready=self._engine_ready,
            on_room=self._intake.wake,
            sequences=self._sequences,
        )
        if not self._announces:
            return Pipeline(context)
        from rmbgd.fleet.worker import open_announcer  # its libraries are an extra, and nobody else needs them

        announcer = open_announcer(context, quarantine)
        stack.callback(announcer.close)
        return announcer

    @property
    def begins_anew(self) -> bool:
        """Is the service to start once more in this process?"""
        return self._life.over or self._trouble is not None

    def _open_ledger(self) -> Ledger:
        """It is checked whole, which takes as long as reading it. Raises ConfigError, LedgerFault."""
        path = self._config.service.state_directory / LEDGER
        with suppress(OSError):
            self._notifier.extend_timeout(path.stat().st_size / CHECK_RATE + GRACE)
        ledger = Ledger(path, self._clock, self._outage.check(), self._alive)
        self._outage.opened(replaced=ledger.database.replacement is not None)
        return ledger

    def _alive(self) -> None:
        """What may take long before the threads run: systemd neither loses patience nor misses the watchdog."""
        self._notifier.watchdog()
        self._notifier.extend_timeout(GRACE)

    def recover(self) -> Recovered:
        """Before `serve`. Raises LedgerFault where damage was not seen at opening."""
        self._notifier.extend_timeout(self._config.engine.start_timeout + GRACE)
        recovered = self._intake.recover(self._alive)
        self._emit("intake.recovered", **recovered.event())
        if (replacement := self._ledger.database.replacement) is not None:
            self._emit("ledger.replaced", **replacement.event(sum(self._ledger.counts().values()), recovered.adoption))
        self._outage.end()
        return recovered

    def serve(self, recovered: Recovered) -> int:
        """Start everything, wait, and end it in the order of the flow."""
        self._notifier.extend_timeout(until_decided(self._config) + GRACE)
        self._threads.start("ledger", self._ledger_monitor.run)
        self._threads.start("health", self._monitor.run)
        self._threads.start("control", self._control.run)
        if self._reviews.needed:
            self._threads.start("review", self._reviews.run)
        self._pipeline.start()
        jobs, exit_stage = self._pipeline.jobs, self._pipeline.exit_stage()
        self._threads.start("reconcile", lambda: self._intake.run(jobs, exit_stage))
        self._wait_until_ready(recovered.jobs)
        return self._end(self._wait_for_an_end())

    # ------------------------------------------------------------------------------------------------ while it runs

    def _engine_ready(self, description: EngineDescription) -> None:
        """Called by the thread "infer"."""
        self._device = description.device
        self.messages.put(Milestone.ENGINE)

    def _wait_until_ready(self, recovered: int) -> None:
        missing: set[Message] = {*Milestone}
        while missing:
            if not self._handle(message := self.messages.get()):
                return
            missing.discard(message)
        device = self._engine.device or self._device
        seconds = round(self._clock.monotonic() - self._began, 3)
        self._emit("service.ready", seconds=seconds, device=device, recovered=recovered)
        self._life.ready()
        self._ledger_monitor.ready()
        self._monitor.phase = "ready"
        self._notifier.ready(f"ready on {device}")

    def _wait_for_an_end(self) -> str:
        while self._cause is None:
            try:
                self._handle(self.messages.get(timeout=self._life.seconds_left()))
            except Empty:
                if self._life.settle():
                    self._cause = SAFE_MODE_OVER
        return self._cause

    def _handle(self, message: Message) -> bool:
        """Act on one message. False when it means the end."""
        if isinstance(message, ThreadFailure):
            self._failure = self._failure or message
            self._cause = self._cause or message.stage
            error = f"{type(message.error).__name__}: {message.error}"
            self._emit("service.failed", stage=message.stage, error=error, traceback=message.traceback())
        elif isinstance(message, Signalled) and message.number == signal.SIGHUP:
            self._emit("service.reload")
            self._intake.rescan()
        elif isinstance(message, Signalled):
            self._cause = self._cause or signal.Signals(message.number).name
            self._life.over, self._trouble = False, None
        elif isinstance(message, Trouble) and self._cause is None:
            self._cause, self._trouble = message.value, message
        return self._cause is None

    def _describe(self) -> dict[str, object]:
        """What the health event and the status file say. Called by the health thread."""
        intake = self._intake.statistics()
        statistics = self._pipeline.statistics()
        engine = {"state": "none"} if self._announces else self._engine.describe()
        self._arena.trim(self._clock.monotonic())
        arena = self._arena.statistics()
        self._watch_the_pipeline(statistics, is_excused(paused=intake.paused, engine=engine))
        channels = {
            each.name: {
                "depth": each.depth,
                "send_waited": round(each.send_waited, 3),
                "receive_waited": round(each.receive_waited, 3),
            }
            for each in statistics
        }
        return {
            **asdict(intake),
            "reviews": self._reviews.waiting,
            "device": self._engine.device or self._device,
            "arena_bytes": arena.leased_bytes,
            "arena_resident": arena.resident_bytes,
            "arena_kept": arena.kept_bytes,
            "channels": channels,
            "engine": engine,
            "cpu_models": self._engine.cpu_models(),
            "film": self._pipeline.film(),
            "safe_mode": self._life.describe(),
            "config": str(self._config_path),
        }

    def _of_a_worker(self) -> dict[str, object]:
        """For the status of a fleet. Called by the broker's thread."""
        return {"device": self._engine.device or self._device, "engine": self._engine.describe()["state"]}

    def _pass_on(self, health: Mapping[str, Any]) -> None:
        """Called by the health thread, with each status file."""
        self._hooks.health(health)
        if self._metrics is not None and (path := self._config.health.metrics_file) is not None:
            self._metrics.health(health)
            self._metrics.write(path)

    def _watch_the_pipeline(self, statistics: Sequence[QueueStatistics], excused: bool) -> None:
        """A deadlocked pipeline counts as a hung thread, although its threads only wait. The health thread's."""
        progress = [(each.total, each.finished) for each in statistics]
        facts = StallFacts(progress, computing=self._engine.busy, excused=excused or self._cause is not None)
        if not self._stall_detector.is_stalled(facts, self._clock.monotonic()):
            self._pipeline_heartbeat.waiting()
        elif self._pipeline_heartbeat.last.waiting:
            self._pipeline_heartbeat.working()

    # ------------------------------------------------------------------------------------------------ the end

    def _end(self, cause: str) -> int:
        """Stop with the flow: claim nothing, put back what is only a path, finish what is decoded."""
        began, failed = self._clock.monotonic(), self._failure is not None
        self._monitor.phase = "stopping"
        if self.begins_anew:  # systemd would take the word for the end of the process, and kill it after a while
            self._notifier.status(cause)
        else:
            self._notifier.stopping(f"stopping ({cause})")
        self._notifier.extend_timeout(self._config.service.stop_timeout + ABORT_TIMEOUT + GRACE)
        self._control.close()
        self._reviews.close()
        self._emit("service.stopping", cause=cause, in_flight=self._intake.statistics().in_flight)
        self._intake.close()
        self._storage_retry.release()
        self._engine.stop_waiting()
        self._threads.start("drain", self._pipeline.take_back)
        # A broken stage may hold up the others for ever; what they have is taken up again at the next start.
        left = self._wait_for_the_pipeline(ABORT_TIMEOUT if failed else self._config.service.stop_timeout)
        if left:
            self._engine.abort()
            self._arena.close()
            left = self._wait_for_the_pipeline(ABORT_TIMEOUT)
        returned = self._intake.finish_returns()
        self._monitor.close()
        self._ledger_monitor.close()
        self._threads.join(1.0)
        self._monitor.finished()
        of_operator = self._failure is not None and isinstance(self._failure.error, ConfigError)
        code = Exit.CONFIGURATION if of_operator else Exit.INTERNAL if failed else Exit.OK
        seconds = round(self._clock.monotonic() - began, 3)
        self._emit("service.stop", exit_code=int(code), seconds=seconds, returned=returned)
        broken = f"{self._failure.stage}: {self._failure.error}" if self._failure is not None else None
        if self._failure is not None:
            self._trouble = None
        # A life that the ledger cut short proves nothing, neither good nor bad: the record stays as it was.
        cut_short = self._trouble.value if self._trouble is not None else None
        self._life.ended(broken or cut_short, of_operator=of_operator or cut_short is not None)
        if left:  # threads stuck in a disk or a driver: leaving them is all that can be done
            os._exit(code)
        return code

    def _wait_for_the_pipeline(self, seconds: float) -> list[str]:
        """Threads of the pipeline that have not ended after `seconds`, or after a second order to stop."""
        deadline = self._clock.monotonic() + seconds
        while left := [name for name in self._threads.join(0.05) if name not in BESIDE]:
            if self._clock.monotonic() >= deadline:
                break
            with suppress(Empty):
                self._handle(message := self.messages.get_nowait())
                if isinstance(message, Signalled) and message.number != signal.SIGHUP:
                    break
        return left
