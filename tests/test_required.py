"""A test of a real systemd that skips is a failure where systemd is required, and a skip elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest

TESTS = """
import pytest

@pytest.fixture
def machine(): pytest.skip("no systemd-nspawn")

@pytest.mark.system
def test_of_systemd(machine): pass
@pytest.mark.system
def test_that_skips_itself(): pytest.skip("not here")
@pytest.mark.system
def test_that_runs(): pass

def test_of_something_else(machine): pass
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("required", "expected"),
    [("", {"passed": 1, "skipped": 3}), ("1", {"passed": 1, "skipped": 1, "failed": 1, "error": 1})],
)
def test_skipping_is_forbidden_where_systemd_is_required(
    required: str, expected: dict[str, int], tmp_path: Path
) -> None:
    """Other tests may still skip."""
    (tmp_path / "conftest.py").write_text(Path(str(conftest.__file__)).read_text())
    (tmp_path / "test_inner.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = system: needs systemd\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    environment = os.environ | {conftest.REQUIRE_SYSTEM: required}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout
    counted = re.findall(r"(\d+) (passed|failed|skipped|error)", told.splitlines()[-1])
    assert expected == {word: int(count) for count, word in counted}, told
    assert ("no systemd-nspawn" in told) or not required
