"""Power cuts on ext4 while the service publishes (F12). The full measure is tools/power_cut.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.power_cut import PICTURES, campaign

ROUNDS = 4  # some two seconds each


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_power_cuts_lose_and_truncate_nothing(tmp_path: Path) -> None:
    """After each cut every original is in one place and every cutout whole, the ledger opens, and the rest is done."""
    result = campaign(tmp_path, rounds=ROUNDS, seed=20_261_122)
    assert result["pictures"] == ROUNDS * PICTURES
    assert result["found_waiting"] + result["found_claimed"] > 0, "no cut came while there was work"
