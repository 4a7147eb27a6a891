"""File systems that stop at a chosen step, or whose operations fail as scripted."""

from __future__ import annotations

import os
from typing import Any

from rmbgd.fs import SystemFileSystem


class WorldStopped(BaseException):
    """Nothing runs after this: what a kill -9 looks like to the code that is killed."""


def _scripted(name: str) -> Any:
    """The system's operation of that name, after FailingFs.before has let it through."""
    operation = getattr(SystemFileSystem, name)

    def method(self: FailingFs, subject: str | int, *others: Any, **folders: int | None) -> Any:
        self.before(name, subject)
        return operation(self, subject, *others, **folders)

    return method


class FailingFs(SystemFileSystem):
    """The system's operations, some of which fail: `script` maps their names to errors, one per call, 0 for none.

    `calls` records every operation with its first argument.
    """

    def __init__(self, script: dict[str, list[int]]) -> None:
        super().__init__()
        self._script = {name: list(codes) for name, codes in script.items()}
        self.calls: list[tuple[str, str | int]] = []

    def before(self, name: str, subject: str | int) -> None:
        """Called before each operation; what it raises, the operation raises."""
        self.calls.append((name, subject))
        codes = self._script.get(name)
        if codes and (code := codes.pop(0)):
            raise OSError(code, os.strerror(code))

    rename = _scripted("rename")
    rename_noreplace = _scripted("rename_noreplace")
    unlink = _scripted("unlink")
    create = _scripted("create")
    make_folder = _scripted("make_folder")
    sync_file = _scripted("sync_file")
    sync_folder = _scripted("sync_folder")


class CrashingFs(FailingFs):
    """The system's operations, and a world that stops before step `after`; from then on every step stops it again.

    Other parts that have steps of their own (the ledger) call `step` too, so that all of them count in one order.
    """

    def __init__(self, after: int) -> None:
        super().__init__({})
        self._after, self.taken = after, 0

    def step(self) -> None:
        if self.taken >= self._after:
            raise WorldStopped
        self.taken += 1

    def before(self, name: str, subject: str | int) -> None:  # noqa: ARG002 - whatever the operation
        self.step()

    def sync_file(self, _: str | int) -> None:
        """Without a sync: nothing here survives a power cut anyway."""
        self.step()

    sync_folder = sync_file
