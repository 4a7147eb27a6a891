"""The lock of a state directory: one service, whoever looks meanwhile, and where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from unittest import mock

import pytest

from rmbgd.errors import ConfigError
from rmbgd.store.ledger_lock import is_locked, lock_out_others


def test_one_service_has_it_and_who_looks_keeps_nobody_out(tmp_path: Path) -> None:
    ledger, over = str(tmp_path / "ledger.sqlite"), threading.Event()
    lock = f"{ledger}.lock"
    os.close(lock_out_others(lock))

    def look() -> None:
        while not over.is_set():
            is_locked(ledger)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for each in lookers:
        each.start()
    try:
        for _ in range(300):
            held = lock_out_others(lock)
            assert is_locked(ledger)
            with pytest.raises(ConfigError, match="another rmbgd uses this state directory"):
                lock_out_others(lock)
            os.close(held)
    finally:
        over.set()
        for each in lookers:
            each.join()
    assert not is_locked(ledger)


def test_a_file_system_without_locks_is_told_as_that(tmp_path: Path) -> None:
    refusal = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    before = len(os.listdir("/proc/self/fd"))
    with mock.patch.object(fcntl, "flock", side_effect=refusal), pytest.raises(ConfigError, match="on a local disk"):
        lock_out_others(str(tmp_path / "ledger.sqlite.lock"))
    assert len(os.listdir("/proc/self/fd")) == before
