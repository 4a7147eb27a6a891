"""The cheap audit between two lives of a service: every original in one place, every archived one with its cutout.

For archive mode on one file system, and while the service is down. What is whole at the end is audit.py's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rmbgd import naming as names
from tests.support import audit
from tests.support.images import assert_cutout_of


class Conservation:
    """Looks at each cutout once, so that thousands of audits cost what one does."""

    def __init__(self, roots: Mapping[str, Path], dropped: Mapping[str, bytes]) -> None:
        self._roots = roots
        self._dropped = dropped  # grows while the service is fed
        self._whole: set[str] = set()

    def check(self) -> dict[str, int]:
        """How many originals are where. Raises AssertionError."""
        done = _originals(self._roots["done"])
        failed = [name for name in _originals(self._roots["failed"]) if not name.endswith(".error.json")]
        where = {
            "input": len(audit.files(self._roots["input"])),
            "claimed": len(audit.claimed(self._roots["input"])),
            "done": len(done),
            "failed": len(failed),
        }
        assert sum(where.values()) == len(self._dropped), (
            f"{len(self._dropped)} were dropped, but there are {where}; failed: {failed}"
        )
        for name in set(done) - self._whole:
            cutout = self._roots["output"] / (os.path.splitext(name)[0] + ".png")
            assert cutout.exists(), f"{name} is archived without a cutout"
            self._check_cutout(name, cutout)
            self._whole.add(name)
        for name in audit.files(self._roots["output"]):
            if not _is_temporary(name) and name not in self._whole:  # published, and its original not yet archived
                self._check_cutout(name, self._roots["output"] / name)
        return where

    def _check_cutout(self, name: str, cutout: Path) -> None:
        try:
            assert_cutout_of(self._dropped[name], cutout)
        except OSError as error:  # what Pillow says of a file that is cut off
            raise AssertionError(f"{cutout}, {cutout.stat().st_size} bytes, is no image: {error}") from error


def _originals(root: Path) -> list[str]:
    """Without the temporaries that a killed service leaves beside them: a reason file half written, a copy."""
    return [name for name in audit.files(root) if not _is_temporary(name)]


def _is_temporary(name: str) -> bool:
    return names.is_temporary(os.path.basename(name))
