"""What must not be in the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[1]
LARGEST = 6 << 20  # bytes; the embedded model has 4.6 MB

# Paths of the machines on which it was made; put together here, so that this file does not hold them.
STRANGE_PATHS = ["/" + "work/", "/root/" + ".pyenv", "/home/" + "user"]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = (REPOSITORY / name for name in done.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_no_path_of_a_machine_is_in_the_tree() -> None:
    """It must work wherever it is checked out."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        found += [f"{path.relative_to(REPOSITORY)}: {strange}" for strange in STRANGE_PATHS if strange.encode() in data]

    assert [] == found


def test_no_file_is_large() -> None:
    """Weights and photographs are fetched, not committed."""
    assert [] == [str(path) for path in tracked() if path.stat().st_size > LARGEST]
