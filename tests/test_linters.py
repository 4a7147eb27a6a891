"""The linters and the type checker are tests. Skipped only where the tool is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("ruff", ["check", "."]), ("ruff", ["format", "--check", "."]), ("mypy", [])],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_tool_has_nothing_to_say(tool: str, arguments: list[str]) -> None:
    """As pyproject.toml configures it, on the whole tree."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: pip install -e '.[test]'")
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, done.stdout[-8000:] + done.stderr[-2000:]
