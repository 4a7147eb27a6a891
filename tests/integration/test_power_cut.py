"""Power cuts on ext4 while the service publishes (F12). The full measure is tools/power_cut.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.power_cut import IMAGES

ROUNDS = 4  # some two seconds each
CANNOT = 2  # the tool's exit status where there are no such disks


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_power_cuts_lose_and_truncate_nothing() -> None:
    """After each cut every original is in one place and every cutout whole, the ledger opens, and the rest is done."""
    command = [sys.executable, "-m", "tools.power_cut", "--rounds", str(ROUNDS), "--seed", "20261122"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["pictures"] == ROUNDS * IMAGES
    assert result["found_waiting"] + result["found_claimed"] > 0, "no cut came while there was work"
