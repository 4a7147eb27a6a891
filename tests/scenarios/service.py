"""A service process under test: its folders, its events as they come, and the audit that nothing was lost.

Knows the folder contract and the log, as an operator does; nothing of the inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

PATIENCE = 60.0  # seconds until a wait fails the test; generous, as nothing depends on it when all is well

Event = dict[str, Any]


class Gone(AssertionError):
    """The service ended, or said nothing of what was waited for."""


class ServiceUnderTest:
    """Folders below `base`, a configuration, and the process that serves them, started as often as the test likes."""

    def __init__(
        self,
        base: Path,
        *,
        settings: dict[str, dict[str, Any]] | None = None,
        folder: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        more_folders: Iterable[dict[str, Any]] = (),
        options: dict[str, Any] | None = None,
        prefix: list[str] | None = None,
    ) -> None:
        self.base = base
        self.input, self.output, self.done, self.failed = (base / n for n in ("input", "output", "done", "failed"))
        self.state, self.runtime = base / "state", base / "run"
        for path in (self.input, self.output, self.done, self.failed, self.state, self.runtime):
            path.mkdir(parents=True, exist_ok=True)
        self.count = base / "computed"
        self.options = {"count": str(self.count)} | (options or {})
        self.prefix = prefix or []
        self.config = base / "rmbgd.toml"
        self.log_file = base / "events.jsonl"
        self.events: list[Event] = []  # appended by the reader thread under `_changed`
        self._changed = threading.Condition()
        self._ended = True
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(settings or {}, folder or {}, recipe or {}, more_folders)

    def configure(
        self,
        settings: dict[str, dict[str, Any]],
        folder: dict[str, Any],
        recipe: dict[str, Any],
        more_folders: Iterable[dict[str, Any]] = (),
    ) -> None:
        service = {
            "state_directory": str(self.state),
            "runtime_directory": str(self.runtime),
            "models_directory": str(self.state / "models"),
            "log_file": str(self.log_file),
        }
        intake = {"quiet_closed": 0.1, "quiet_unknown": 0.3, "quiet_remote": 0.5, "reconcile": 2.0, "root_check": 0.2}
        pipeline = {"arena_bytes": 64 << 20, "free_bytes_minimum": 0}
        tables = {
            "service": service | settings.get("service", {}),
            "intake": intake | settings.get("intake", {}),
            "limits": {"pixels": 4_000_000} | settings.get("limits", {}),
            "pipeline": pipeline | settings.get("pipeline", {}),
            "engine": {"device": "cpu"} | settings.get("engine", {}),
        }
        first = {
            "name": "shop",
            "input": str(self.input),
            "output": str(self.output),
            "done": str(self.done),
            "failed": str(self.failed),
        } | folder
        lines = [table for name, values in tables.items() for table in (f"[{name}]", *_toml(values))]
        if recipe:
            lines += ["[recipe.default]", *_toml(recipe)]
        for each in (first, *more_folders):
            lines += ["[[folder]]", *_toml(each)]
        self.config.write_text("\n".join(lines) + "\n")

    # --- the process

    def start(self, *, ready: bool = True, environment: dict[str, str] | None = None) -> ServiceUnderTest:
        launcher = Path(__file__).with_name("launcher.py")
        command = [*self.prefix, sys.executable, str(launcher), str(self.config), json.dumps(self.options)]
        self._ended = False
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | (environment or {})
        )
        self._readers = [
            threading.Thread(target=self._read, args=(self.process,)),
            threading.Thread(target=self._read_stderr, args=(self.process,)),
        ]
        self.stderr: list[bytes] = []
        for reader in self._readers:
            reader.start()
        if ready:
            self.wait_for("service.ready", since=len(self.events))
        return self

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)  # a line that is no JSON is a defect, and ends the test by silence
            with self._changed:
                self.events.append(event)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read_stderr(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self.stderr.extend(process.stderr)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGTERM)
        return self.reap()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.reap()

    def reap(self, timeout: float = PATIENCE) -> int:
        assert self.process is not None
        try:
            code = self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for reader in self._readers:
                reader.join()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        return code

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    # --- what it says

    def wait(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """The first true value of `condition`, looked at again after every event and four times a second."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (value := condition()):
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    tail = "\n".join(json.dumps(event) for event in self.events[-25:])
                    state = "the service ended" if self._ended else f"nothing for {timeout} s"
                    raise Gone(
                        f"{state} while waiting for {what}; last events:\n{tail}\n{b''.join(self.stderr[-40:])!r}"
                    )
                self._changed.wait(min(left, 0.25))
        return value

    def wait_for(self, event: str, *, count: int = 1, since: int = 0, timeout: float = PATIENCE, **keys: Any) -> Event:
        """The `count`-th event of that name whose keys are as given, among those from index `since` on."""

        def found() -> Event | None:
            hits = self.named(event, since=since, **keys)
            return hits[count - 1] if len(hits) >= count else None

        result: Event = self.wait(found, f"{count} x {event} {keys}", timeout)
        return result

    def named(self, event: str, *, since: int = 0, **keys: Any) -> list[Event]:
        return [
            each
            for each in self.events[since:]
            if each["event"] == event and all(each.get(key) == value for key, value in keys.items())
        ]

    def settled(self, jobs: int, timeout: float = PATIENCE) -> None:
        """Wait until that many jobs have ended, well or badly."""
        self.wait(
            lambda: len(self.named("image.done")) + len(self.named("image.failed")) >= jobs,
            f"{jobs} outcomes",
            timeout,
        )

    def computed(self) -> int:
        """Pictures that went through the engine, over all starts."""
        return len(self.count.read_text().splitlines()) if self.count.exists() else 0

    # --- the folders

    def files(self, root: Path) -> list[str]:
        """Regular files below `root`, as relative paths, without the service's own."""
        found = []
        for directory, names, files in os.walk(root):
            if ".rmbgd" in names:
                names.remove(".rmbgd")
            found += [os.path.relpath(os.path.join(directory, name), root) for name in files]
        return sorted(found)

    def claimed(self) -> list[str]:
        own = self.input / ".rmbgd"
        return [path for path in (self.files(own) if own.exists() else []) if not path.endswith(".lock")]

    def audit(self, inputs: Iterable[str]) -> dict[str, str]:
        """Where each input ended: "done", "failed" or "waiting"; fails when one is nowhere, or in two places.

        For archive mode. Also: no temporary stands in the outputs, and every output decodes.
        """
        from PIL import Image

        places = {"done": self.files(self.done), "failed": self.files(self.failed), "waiting": self.files(self.input)}
        ended = {}
        for name in inputs:
            where = [place for place, files in places.items() if name in files]
            assert len(where) == 1, f"{name!r} is in {where or 'no place'}: {places}; claimed: {self.claimed()}"
            ended[name] = where[0]
        temporaries = [name for name in self.files(self.output) if ".rmbgd" in name]
        assert not temporaries, f"left behind in the output: {temporaries}"
        for name in self.files(self.output):
            if not name.endswith(".json"):
                with Image.open(self.output / name) as picture:
                    picture.load()
        return ended


def _toml(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
