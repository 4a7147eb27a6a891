"""What a run that died left in output folders: outputs that were complete, and temporaries that never will be.

Does not decide what becomes of a job: recovery in the intake does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from rmbgd.config import Folder
from rmbgd.errors import ImageError
from rmbgd.fsops import FsOps, storage_faults
from rmbgd.intake import names
from rmbgd.intake.ledger import Ledger, Published, Unfinished
from rmbgd.pipeline import sidecar
from rmbgd.pipeline.placing import GONE, hash_of
from rmbgd.pipeline.retire import Retirer, original_of_row

KINDS = ("", ".json", ".error", ".original")
"""Of temporaries that one job may leave: cutout, sidecar, reason file, archive copy."""


class Leftovers:
    """Used by the reconcile thread, and by the main thread before that one runs. Raises StorageFault."""

    def __init__(self, folders: Mapping[str, Folder], ledger: Ledger, retirer: Retirer, fs: FsOps) -> None:
        self._folders = folders
        self._ledger = ledger
        self._retirer = retirer
        self._fs = fs

    def complete(self, row: Unfinished) -> bool:
        """Did the rename of an announced output happen? Then the job is done, and is recorded so."""
        folder = self._folders[row.folder]
        if row.target is None or row.sha256_out is None:
            return False
        path = os.path.join(folder.output, row.target)
        with storage_faults(path):
            try:
                if hash_of(path) != (row.sha256_out, row.size_out):
                    return False
                status = os.lstat(path)
            except ImageError:  # a stranger's link or folder
                return False
            except OSError as error:
                if error.errno in GONE:
                    return False
                raise
            # The rename may not be on the disk yet: what is recorded as done must be.
            self._fs.sync_folder(os.path.dirname(path))
            beside = sidecar.settle(str(folder.output), row, self._fs)
        identity = (row.sha256_out, status.st_size, status.st_ino, status.st_mtime_ns)
        self._ledger.done(row.job_id, Published(str(folder.output), row.target, *identity, sidecar=beside))
        return True

    def retire(self, row: Unfinished, source: str) -> None:
        """The original of a finished job, as after publishing. Raises nothing."""
        self._retirer.retire(original_of_row(row, source))

    def remove(self, row: Unfinished) -> int:
        """Remove the temporaries of one job; answers how many."""
        folder = self._folders[row.folder]
        parents = {os.path.dirname(row.relative_path), os.path.dirname(row.target or ""), ""}
        found = 0
        for root in _roots(folder):
            for parent in parents:
                for kind in KINDS:
                    with storage_faults(root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        self._fs.unlink(os.path.join(root, parent, names.temporary_name(row.job_id, kind)))
                        found += 1
        return found

    def remove_all(self) -> int:
        """Remove every temporary of ours: for when the ledger is new, and nobody knows whose they were."""
        found = 0
        for root in {root for folder in self._folders.values() for root in _roots(folder)}:
            for here, _, files in os.walk(root):
                for name in files:
                    if names.is_temporary(name):
                        with contextlib.suppress(OSError):
                            self._fs.unlink(os.path.join(here, name))
                            found += 1
        return found


def _roots(folder: Folder) -> Iterator[str]:
    yield str(folder.output)
    yield str(folder.failed)
    if folder.done is not None:
        yield str(folder.done)
