"""File systems that stop at a chosen step, or whose operations fail as scripted."""

from __future__ import annotations

import os

from rmbgd.fs import SystemFileSystem


class WorldStopped(BaseException):
    """Nothing runs after this: what a kill -9 looks like to the code that is killed."""


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
        code = codes.pop(0) if codes else 0
        if code:
            raise OSError(code, os.strerror(code))

    def rename(self, source: str, target: str) -> None:
        self.before("rename", source)
        super().rename(source, target)

    def rename_noreplace(
        self, source: str, target: str, *, source_folder: int | None = None, target_folder: int | None = None
    ) -> None:
        self.before("rename_noreplace", source)
        super().rename_noreplace(source, target, source_folder=source_folder, target_folder=target_folder)

    def unlink(self, path: str, *, folder: int | None = None) -> None:
        self.before("unlink", path)
        super().unlink(path, folder=folder)

    def create(self, path: str, mode: int) -> int:
        self.before("create", path)
        return super().create(path, mode)

    def make_folder(self, path: str) -> None:
        self.before("make_folder", path)
        super().make_folder(path)

    def sync_file(self, descriptor: int) -> None:
        self.before("sync_file", descriptor)
        super().sync_file(descriptor)

    def sync_folder(self, path: str) -> None:
        self.before("sync_folder", path)
        super().sync_folder(path)


class CrashingFs(FailingFs):
    """The system's operations, and a world that stops before step `after`; from then on every step stops it again.

    Other parts that have steps of their own (the ledger) call `step` too, so that all of them count in one order.
    """

    def __init__(self, after: int) -> None:
        super().__init__({})
        self._left = after
        self.taken = 0

    def step(self) -> None:
        if self._left <= 0:
            raise WorldStopped
        self._left -= 1
        self.taken += 1

    def before(self, name: str, subject: str | int) -> None:  # noqa: ARG002 - whatever the operation
        self.step()

    def sync_file(self, descriptor: int) -> None:  # noqa: ARG002 - nothing here survives a power cut anyway
        self.step()

    def sync_folder(self, path: str) -> None:  # noqa: ARG002
        self.step()
