"""Campaigns of the tools in their small form: kills, power cuts, uploads, a soak. In full: `make campaign`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CampaignPart
from tests.support import audit
from tools import clients, kill, wholeness
from tools.power_cut import IMAGES
from tools.soak import report, soak

SEED = 20_261_122
KILLS, IMAGES_PER_KILL = 40, 8
ROUNDS = 40  # power cuts, some two seconds each
FILES = 160  # half and whole ones
CANNOT = 2  # the exit status of tools/power_cut.py where there are no such disks
UPLOADS = 220
SOAK, FAULT_EVERY = 120, 4.0  # s

pytestmark = pytest.mark.campaign


@pytest.mark.timeout(900)
@pytest.mark.parametrize("files", audit.RECIPES)
def test_killed_at_random_moments(tmp_path: Path, campaign_part: CampaignPart, files: str) -> None:
    kills = campaign_part.count(KILLS, least=5)
    result = kill.campaign(tmp_path / "leg", kills, campaign_part.seed(SEED), IMAGES_PER_KILL * kills, files=files)
    assert result["lost"] == 0
    assert result["images"] + result["refused"] == IMAGES_PER_KILL * kills
    assert result["found_waiting"] + result["found_claimed"] > 0, "no kill came while there was work"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("files", audit.RECIPES)
def test_power_cuts_lose_and_truncate_nothing(tmp_path: Path, campaign_part: CampaignPart, files: str) -> None:
    rounds, out = campaign_part.count(ROUNDS), tmp_path / "counts.json"
    command = [sys.executable, "-m", "tools.power_cut", "--rounds", str(rounds), "--out", str(out)]
    command += ["--seed", str(campaign_part.seed(SEED)), "--files", files]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())["total"]
    assert (result["images"], result["lost"]) == (rounds * IMAGES, 0)
    assert result["found_waiting"] + result["found_claimed"] > 0, "no cut came while there was work"


@pytest.mark.timeout(900)
def test_uploads_by_real_clients_are_published_once_and_whole(tmp_path: Path, campaign_part: CampaignPart) -> None:
    """By those that are installed; what is left half is not waited for in a part."""
    uploads, in_full = campaign_part.count(UPLOADS), campaign_part.parts == 1
    result = clients.campaign(tmp_path / "leg", uploads, campaign_part.seed(SEED), outlast=in_full)
    assert result["findings"] == 0, result["wrong"]
    sums = {column: sum(row[column] for row in result["clients"].values()) for column in clients.COLUMNS}
    assert sums["done"] + sums["left"] + sums["own"] == sums["sent"] == uploads
    assert sums["done"] > uploads / 2, result["own"]


@pytest.mark.timeout(600)
def test_no_half_file_is_published_and_no_whole_one_refused(tmp_path: Path, campaign_part: CampaignPart) -> None:
    result = wholeness.campaign(tmp_path / "leg", campaign_part.count(FILES), campaign_part.seed(SEED))
    assert min(result["halves"], result["wholes"]) > 0
    assert (result["halves_published"], result["wholes_refused"], result["unnoted"]) == (0, 0, 0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("files", audit.RECIPES)
def test_soak_loses_nothing(tmp_path: Path, campaign_part: CampaignPart, files: str) -> None:
    seconds = campaign_part.count(SOAK)
    result = soak(tmp_path / "leg", seconds, campaign_part.seed(SEED), fault_every=FAULT_EVERY, files=files)
    assert sum(result["faults"].values()) >= seconds / FAULT_EVERY / 3
    assert result["lost"] == 0
    assert min(result["done"], result["refused"]) > 0
    if campaign_part.parts == 1:  # of less than a minute nothing is old enough to be forgotten
        assert result["remembered"] < result["done"] + result["refused"]
    assert "too short to be judged" in str(report(result).title)
