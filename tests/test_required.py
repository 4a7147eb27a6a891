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
def machine():
    pytest.skip("no systemd-nspawn")

@pytest.mark.system
def test_of_systemd(machine): pass

@pytest.mark.system
def test_that_skips_itself(): pytest.skip("not here")

def test_of_something_else(machine): pass

@pytest.mark.system
def test_that_runs(): pass
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("required", "expected"),
    [("", {"passed": 1, "skipped": 3}), ("1", {"passed": 1, "skipped": 1, "failed": 1, "error": 1})],
)
def test_skipping_is_forbidden_where_systemd_is_required(
    required: str, expected: dict[str, int], tmp_path: Path
) -> None:
    """RMBGD_REQUIRE_SYSTEM=1 says that this machine has it all; other tests may still skip."""
    (tmp_path / "conftest.py").write_text(Path(str(conftest.__file__)).read_text())
    (tmp_path / "test_inner.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = system: needs systemd\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {conftest.REQUIRE_SYSTEM: required},
        check=False,
    )

    summary = done.stdout.splitlines()[-1]
    counted = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", summary)}
    assert expected == counted, done.stdout
    assert ("no systemd-nspawn" in done.stdout) or not required
