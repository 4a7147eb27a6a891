"""Hooks: commands and units that the operator has run when images fail, work ends, or a device is left.

The service puts a small file for each run into a spool folder. What runs it is outside of the service's sandbox,
`rmbgd hooks run` (rmbgd-hooks.path), or where there is none, a thread of the service. The command comes from the
configuration alone; a spool file carries data.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rmbgd.config.load import Config, HookSettings
from rmbgd.events import EVENTS, Emit
from rmbgd.fs import atomic_write
from rmbgd.telemetry import journal, jsonl
from rmbgd.telemetry.messages import message

HOOKS = {"on_failed": "image.failed", "on_idle": "health", "on_failover": "engine.failover"}  # the event each one gets
CONCLUDED = ("image.done", "image.failed")
SPOOL = "hooks"  # below the runtime directory
SPOOL_ENVIRONMENT = "RMBGD_HOOKS"  # "spool": somebody else empties it; the shipped unit says so
SPOOL_MAXIMUM = 50  # files; nobody reads more mails, and the folder may lie in memory
FILE_MAXIMUM = 256 << 10  # bytes of a spool file; an event with its longest texts takes less
QUEUE_MAXIMUM = 1000  # events that wait for the thread; what comes beyond is counted
CLOSE_TIMEOUT = 2.0  # s that the end of the service waits for a hook
OF_THE_SERVICE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID")
Failed = Callable[[str, str], object]  # the hook's name, what exactly


@dataclass(slots=True)
class PendingCalls:
    """POLICY: when a hook that happens again and again is run. Times are monotonic seconds."""

    interval: float
    count: int = 0  # of events since the last run
    keys: dict[str, Any] = field(default_factory=dict)  # of the latest
    next: float = 0.0  # not before

    def add(self, keys: Mapping[str, Any], count: int = 1) -> None:
        self.count += count
        self.keys = dict(keys)

    def take(self, now: float) -> int:
        """How many events a run at `now` stands for; 0: not yet."""
        if not self.count or now < self.next:
            return 0
        count, self.count, self.next = self.count, 0, now + self.interval
        return count


class Hooks(AbstractContextManager["Hooks"]):
    """An Emit that hands what hooks wait for to a thread of its own, and every event on. Never blocks, never raises."""

    def __init__(self, config: Config, emit: Emit, environ: Mapping[str, str] = os.environ) -> None:
        self._settings, self._next = config.hooks, emit
        self.emit: Emit = emit  # for hook.failed: the whole chain, set by the main thread
        self._spool = Spool(config.service.runtime_directory / SPOOL)
        self._alone = environ.get(SPOOL_ENVIRONMENT) != "spool"
        wanted = [name for name in HOOKS if getattr(config.hooks, name)]
        self._wanted = {HOOKS[name]: name for name in wanted if name != "on_idle"}
        self._calls = {name: PendingCalls(config.hooks.interval) for name in wanted}  # the thread's, as is the spool
        self._worked = False  # set by any thread that emits, cleared by the health thread; a race costs one call
        self._queue: SimpleQueue[tuple[str, dict[str, Any]] | None] = SimpleQueue()
        self._lost = 0  # events that found the queue full; an estimate
        self._thread = threading.Thread(target=self._run, name="hooks", daemon=True) if wanted else None
        if self._thread is not None:
            self._thread.start()

    def __call__(self, event: str, /, **keys: Any) -> None:
        self._next(event, **keys)
        if event in CONCLUDED:
            self._worked = True
        if (name := self._wanted.get(event)) is not None:
            self._put(name, keys)

    def health(self, keys: Mapping[str, Any]) -> None:
        """Called by the health thread with what each status file says."""
        if keys.get("waiting") or keys.get("in_flight"):
            self._worked = True
        elif self._worked:
            self._worked = False
            if "on_idle" in self._calls:
                self._put("on_idle", {key: value for key, value in keys.items() if key in EVENTS["health"].keys})

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_TIMEOUT)

    def _put(self, name: str, keys: Mapping[str, Any]) -> None:
        if self._queue.qsize() >= QUEUE_MAXIMUM:
            self._lost += 1
        else:
            self._queue.put((name, dict(keys)))

    def _run(self) -> None:
        closing = False
        while not closing:
            due = [calls.next for calls in self._calls.values() if calls.count]
            with contextlib.suppress(Empty):
                entry = self._queue.get(timeout=max(min(due) - time.monotonic(), 0.0) if due else None)
                closing = entry is None
                if entry is not None:
                    self._calls[entry[0]].add(entry[1])
            for name, calls in self._calls.items():
                if count := calls.take(float("inf") if closing else time.monotonic()):
                    self._spool_call(name, calls.keys, count)
            if self._alone:
                run_spool(self._spool.path, self._settings, self._failed)

    def _spool_call(self, name: str, keys: Mapping[str, Any], count: int) -> None:
        kind = HOOKS[name]
        lost, self._lost = self._lost, 0
        record = jsonl.envelope(kind, EVENTS[kind].level) | dict(keys)
        record |= {"hook": name, "count": count + lost, "message": message(kind, keys)}
        if problem := self._spool.add(name, record):
            self._failed(name, problem)

    def _failed(self, name: str, detail: str) -> None:
        self.emit("hook.failed", hook=name, detail=detail)


class Spool:
    """The writing side of the spool folder. One thread only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lost = 0  # calls that found no place; the next one says how many
        self._full = False  # reported once, until it is emptied again

    def add(self, name: str, record: Mapping[str, Any]) -> str:
        """Write one call, in the place of the oldest where there are too many. Returns what went wrong, once."""
        try:
            self.path.mkdir(mode=0o750, parents=True, exist_ok=True)
            waiting = sorted(each.name for each in os.scandir(self.path) if each.name.endswith(".json"))
            for oldest in waiting[: max(len(waiting) - SPOOL_MAXIMUM + 1, 0)]:
                os.unlink(self.path / oldest)
                self._lost += 1
            line = jsonl.to_json({**record, "lost": self._lost})
            atomic_write(self.path / f"{time.time_ns():020}-{name}.json", line.encode(), mode=0o640)
        except OSError as error:
            self._lost += 1
            return f"{error.filename or self.path}: {error.strerror or error}"
        full, before = self._lost > 0, self._full
        self._lost, self._full = 0, full
        if full and not before:
            return f"{self.path} is full, the oldest call was dropped: does rmbgd-hooks.path run?"
        return ""


def run_spool(
    path: Path,
    settings: HookSettings,
    failed: Failed,
    *,
    owner: tuple[int, int] | None = None,
    as_root: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Run every call in the spool folder, oldest first, and remove it. Never raises for what is in there.

    owner    (user, group) that commands run as; None: as this process
    as_root  a context in which a unit may be started and a command be given to `owner`
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # nothing was ever put there
    seen: set[str] = set()
    try:
        while names := sorted(name for name in {*os.listdir(folder)} - seen if name.endswith(".json")):
            for name in names:
                seen.add(name)
                try:
                    call = _take(folder, name)
                except OSError as error:  # it was not removed, so it is not run; the others are
                    failed("unknown", f"{path}/{name}: {error.strerror or error}")
                    continue
                hook = str(call.get("hook"))
                if hook not in HOOKS:
                    failed("unknown", f"{path}/{name} is no call of rmbgd; it was removed")
                elif problem := run_hook(getattr(settings, hook), call, settings.timeout, owner, as_root):
                    failed(hook, problem)
    except OSError as error:
        failed("unknown", f"{path}: {error.strerror or error}")
    finally:
        os.close(folder)


def _take(folder: int, name: str) -> dict[str, Any]:
    """What a spool file says; it is removed, so that no call is run for ever. Empty when it is none. Raises OSError."""
    found: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                found = json.loads(os.read(descriptor, FILE_MAXIMUM))
        finally:
            os.close(descriptor)
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=folder)
    return found if isinstance(found, dict) else {}


def run_hook(
    hook: list[str] | str,
    call: Mapping[str, Any],
    timeout: float,
    owner: tuple[int, int] | None = None,
    as_root: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> str:
    """Run a command with the event as JSON on its standard input, or start a unit. Returns what went wrong.

    Its output goes where this process writes its errors. It may take `timeout` seconds, and is killed then.
    """
    if not hook:
        return ""
    if isinstance(hook, str):
        words = ["systemctl", *([] if owner or os.geteuid() == 0 else ["--user"]), "start", "--", hook]
        user: dict[str, Any] = {}
    else:
        words = hook
        user = {"user": owner[0], "group": owner[1], "extra_groups": os.getgroups()} if owner else {}
    environ = {name: value for name, value in os.environ.items() if name not in OF_THE_SERVICE}
    for key in (*journal.KEYS, "hook", "message", "count"):
        if (value := call.get(key)) is not None:
            environ[f"RMBGD_{key.upper()}"] = str(value).replace("\0", "")
    try:
        with as_root():
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=2, env=environ, start_new_session=True, **user
            )
        with process:
            try:
                process.communicate(jsonl.to_json(call).encode(), timeout)
            except subprocess.TimeoutExpired:
                with as_root(), contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return f"{words[0]} took longer than {timeout:g} s and was killed"
    except (OSError, subprocess.SubprocessError, UnicodeEncodeError) as error:
        return f"{words[0]}: {error}"
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        return f"{' '.join(words)} ended with {how}"
    return ""
