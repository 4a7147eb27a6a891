"""The throughput benchmark runs, verifies what it writes, and ends with one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_ends_with_one_json_line() -> None:
    """One image per thread: every way has a row, and ours say how they compare."""
    command = [sys.executable, "tools/bench_pipeline.py", "--quick", "--rounds", "1", "--sizes", "1024"]

    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110)

    assert result.returncode == 0, result.stderr[-2000:]
    rows = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 7
    assert all(row["images_per_second"] > 0 and row["output_bytes"] > 0 for row in rows)
    ours = [row for row in rows if row["way"].startswith("rmbgd")]
    assert all("times_faster" in row for row in ours)
    assert all(row["times_the_bytes"] < 1.15 for row in ours if "PNG" in row["way"])
