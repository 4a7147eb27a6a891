"""A service process under test: its folders, its configuration, its life, and its events as they come.

Knows the folder contract and the log, as an operator does; nothing of the inside. What must be true of the folders is
audit.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support import audit
from tests.support.fork_server import ForkedProcess
from tests.support.images import sample_image
from tests.support.standstill import stand_still

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds until a wait fails the test; generous, as nothing depends on it when all is well
LOOK_AGAIN = 0.25  # seconds between two looks at what no event tells of
SHORTENED = {"quiet_closed": 0.1, "quiet_unknown": 0.3, "quiet_remote": 0.5, "reconcile": 2.0, "root_check": 0.2}
ENDINGS = ("image.done", "image.failed")

Event = dict[str, Any]
Settings = dict[str, dict[str, Any]]


class ServiceUnderTest:
    """Folders below `base`, a configuration, and the process that serves them, started as often as the test likes.

    settings  tables of the configuration, over the short times that scenarios use
    folder    settings of the drop folder "shop"
    recipe    settings of its recipe
    options   for the launcher
    prefix    a command in front of the service's own, such as setpriv

    Processes are forked from one that has imported everything, but for those with a prefix or an environment of their
    own, and where `fresh_interpreter` is set.
    """

    def __init__(
        self,
        base: Path,
        *,
        settings: Settings | None = None,
        folder: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        prefix: list[str] | None = None,
    ) -> None:
        self.base = base
        names = ("input", "output", "done", "failed", "state", "run", "desk")
        roots = {name: base / name for name in names}
        for path in roots.values():
            path.mkdir(parents=True, exist_ok=True)
        self.input, self.output, self.done, self.failed, self.state, self.runtime, self.desk = roots.values()
        self.roots = {name: roots[name] for name in names[:4]}
        self.count, self.entered = base / "computed", base / "entered"
        self.hold, self.fuse = base / "hold", base / "fuse"
        watched = {name: str(getattr(self, name)) for name in ("count", "entered", "hold")}
        self.options = watched | (options or {})
        self.prefix, self.fresh_interpreter, self.checks_events = prefix or [], False, True
        self.config, self.log_file = base / "rmbgd.toml", base / "events.jsonl"
        self.events: list[Event] = []  # appended by the reader thread under `_changed`, like `_named`
        self._named: defaultdict[str, list[tuple[int, Event]]] = defaultdict(list)
        self._changed = threading.Condition()
        self.ended = True
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self.stderr: list[bytes] = []
        self._readers: list[threading.Thread] = []
        self._turns = 0
        self.configure(settings or {}, folder or {}, recipe or {})

    def configure(self, settings: Settings, folder: dict[str, Any], recipe: dict[str, Any] | None = None) -> None:
        """Write the configuration anew; it counts from the next start."""
        service = {
            "state_directory": str(self.state),
            "runtime_directory": str(self.runtime),
            "models_directory": str(self.state / "models"),
            "log_file": str(self.log_file),
            "safe_starts": 0,  # who kills on purpose wants the next start to be like the one before
        }
        tables: Settings = {
            "service": service,
            "intake": SHORTENED,
            "limits": {"pixels": 4_000_000},
            "pipeline": {"arena_bytes": 64 << 20, "free_bytes_minimum": 0},
            "engine": {"device": "cpu"},
        }
        arrays: dict[str, list[dict[str, Any]]] = settings.get("arrays", {})  # name -> tables with two brackets
        settings = {name: values for name, values in settings.items() if name != "arrays"}
        tables = {name: tables.get(name, {}) | settings.get(name, {}) for name in tables | settings}
        folder = {"name": "shop"} | {role: str(path) for role, path in self.roots.items()} | folder
        lines = [line for name, values in tables.items() for line in (f"[{name}]", *_toml(values))]
        lines += [line for name, every in arrays.items() for each in every for line in (f"[[{name}]]", *_toml(each))]
        if recipe:
            lines += ["[recipe.default]", *_toml(recipe)]
        self.config.write_text("\n".join([*lines, "[[folder]]", *_toml(folder)]) + "\n")

    # ------------------------------------------------------------------------------------------------ the process

    def start(self, *, ready: bool = True, environment: dict[str, str] | None = None) -> Self:
        since, self.ended, self.stderr = len(self.events), False, []
        if self.prefix or environment or self.fresh_interpreter:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | (environment or {}),
            )
        else:
            self.process = ForkedProcess(self.command()[2:])
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout,)),
            threading.Thread(target=self.stderr.extend, args=(self.process.stderr,)),
        ]
        for reader in self._readers:
            reader.start()
        if ready:
            self.wait_for("service.ready", since=since)
        return self

    def command(self) -> list[str]:
        launcher = Path(__file__).with_name("launcher.py")
        return [sys.executable, str(launcher), str(self.config), json.dumps(self.options)]

    def _read(self, stdout: IO[bytes]) -> None:
        try:
            for line in stdout:
                event = json.loads(line)  # a line that is no JSON is a defect: pytest reports what this thread raises
                with self._changed:
                    self._named[event["event"]].append((len(self.events), event))
                    self.events.append(event)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGTERM)
        return self.reap()

    def restart(self) -> None:
        assert self.stop() == 0
        self.start()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.reap()

    def reap(self, timeout: float = PATIENCE) -> int:
        """Wait for the end of the process; its exit status."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for reader in self._readers:
                reader.join()
            for stream in filter(None, (self.process.stdout, self.process.stderr)):
                stream.close()

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        """Every scenario ends in an orderly stop."""
        if kind is not None and not self.is_down:
            self.kill()
        elif self.process is not None and (stream := self.process.stdout) is not None and not stream.closed:
            ended = " by itself" if self.is_down else ""  # and nobody asked for its status
            code = self.reap() if ended else self.stop()
            assert code == 0, f"exit status {code}{ended}: {self.tail()}"
        if kind is None and self.checks_events:
            from tests.support import schemas  # needs jsonschema

            assert [] == schemas.problems_of_events(self.events)

    # ------------------------------------------------------------------------------------------------ what it says

    def wait(self, condition: Callable[[], Any], what: str, *, timeout: float = PATIENCE, alive: bool = True) -> Any:
        """The first true value of `condition`, looked at again after every event and four times a second.

        `alive`: the end of the process fails the wait.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (value := condition()):
                left = deadline - time.monotonic()
                if left <= 0 or (alive and self.ended):
                    state = "the service ended" if self.ended else f"nothing for {timeout} s"
                    raise AssertionError(f"{state} while waiting for {what}; {self.tail()}")
                self._changed.wait(min(left, LOOK_AGAIN))
        return value

    def tail(self) -> str:
        lines = [json.dumps(event) for event in self.events[-25:]]
        lines += [line.decode(errors="backslashreplace") for line in self.stderr[-40:]]
        return "last words:\n" + "\n".join(lines)

    def wait_for(self, event: str, *, count: int = 1, since: int = 0, timeout: float = PATIENCE, **keys: Any) -> Event:
        """The `count`-th event of that name whose keys are as given, among those from index `since` on."""

        def found() -> Event | None:
            hits = self.named(event, since=since, **keys)
            return hits[count - 1] if len(hits) >= count else None

        result: Event = self.wait(found, f"{count} x {event} {keys}", timeout=timeout)
        return result

    def named(self, event: str, *, since: int = 0, **keys: Any) -> list[Event]:
        return [
            each
            for index, each in self._named[event]
            if index >= since and all(each.get(key) == value for key, value in keys.items())
        ]

    def ended_count(self) -> int:
        """Of all outcomes so far; as cheap after a million as after one."""
        return sum(len(self._named[event]) for event in ENDINGS)

    def endings(self, path: str | None = None) -> list[Event]:
        """Outcomes: of one input, or of all but the turns."""
        found = [each for name in ENDINGS for each in self.named(name)]
        return [each for each in found if each["path"] == path or (not path and not each["path"].startswith("turn-"))]

    def wait_for_endings(self, jobs: int, timeout: float = PATIENCE) -> None:
        """Until that many jobs have ended, well or badly, over all starts."""
        self.wait(lambda: sum(len(self._named[n]) for n in ENDINGS) >= jobs, f"{jobs} outcomes", timeout=timeout)

    def wait_for_new_status(self) -> None:
        status = self.runtime / "status.json"
        written = status.stat().st_mtime_ns
        self.wait(lambda: status.stat().st_mtime_ns > written, "a new status file")

    def recorded(self, event: str) -> list[Event]:
        """Events of that name in the log file, which holds what was said up to a SIGKILL; one may be torn by it."""
        # A kill in the middle of a write leaves the line's beginning; the next process begins a line of its own.
        lines = self.log_file.read_bytes().splitlines() if self.log_file.exists() else []
        return [each for each in (json.loads(line) for line in lines if line.endswith(b"}")) if each["event"] == event]

    def computed(self) -> int:
        """Images that went through the engine, over all starts, without the turns."""
        return len(self.count.read_text().splitlines()) - self._turns if self.count.exists() else 0

    def given(self) -> int:
        """Images that the engine was given, over all starts."""
        return len(self.entered.read_text().splitlines()) if self.entered.exists() else 0

    # ------------------------------------------------------------------------------------------------ its folders

    def drop(self, name: str, data: bytes) -> Path:
        """Written elsewhere on the same file system and renamed in, as is advised."""
        fresh = self.desk / "fresh"
        fresh.write_bytes(data)
        target = self.input / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(fresh, target)
        return target

    def serve(self, name: str, data: bytes) -> Event:
        """Drop an image and wait for its cutout: the event `image.done`, of the first of that name."""
        self.drop(name, data)
        return self.wait_for("image.done", path=name)

    def upload(self, name: str, data: bytes) -> Event:
        """Like `serve`, but written in place."""
        (self.input / name).write_bytes(data)
        return self.wait_for("image.done", path=name)

    def drop_all(self, data: dict[str, bytes]) -> dict[str, bytes]:
        """The same, for more to be added."""
        for name, content in data.items():
            self.drop(name, content)
        return data

    def serve_all(self, data: dict[str, bytes]) -> dict[str, bytes]:
        """The same, when as many more have ended, well or badly."""
        before = sum(len(self._named[name]) for name in ENDINGS)
        self.drop_all(data)
        self.wait_for_endings(before + len(data))
        return data

    def hold_in_engine(self, name: str, data: bytes) -> None:
        """Drop an image that the engine has, and does not answer until the file `hold` is gone."""
        self.hold.touch()
        self.drop(name, data)
        self.wait(self.given, "the image in the engine")

    def turn(self, times: int = 1) -> None:
        """Until the service has demonstrably gone round: an image that is dropped now has come out."""
        for _ in range(times):
            self._turns += 1
            name = f"turn-{self._turns}.png"
            self.serve(name, sample_image(1_000_000 + self._turns))
            (self.output / name).unlink()
            (self.done / name).unlink(missing_ok=True)

    def put_in_the_way_of(self, directory: Path) -> None:
        """A file in the place of one of its directories; it sees nothing in between."""
        stand_still(self.pid)
        shutil.rmtree(directory)
        directory.write_text("in the way")
        self.signal(signal.SIGCONT)

    def children(self) -> list[int]:
        """Processes of the running service, such as its engine's."""
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for each in lists for pid in each.read_text().split()]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_down(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def is_idle(self) -> bool:
        """Nothing waits and nothing is claimed."""
        return not audit.files(self.input) and not audit.claimed(self.input)


def _toml(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(_toml(value)) + "}"
    return "[" + ", ".join(map(_value, value)) + "]" if isinstance(value, list) else json.dumps(value)
