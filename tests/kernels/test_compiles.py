"""Every kernel compiles for every card that it may meet, and fits there. Needs Triton, and no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bytes of shared memory that one program may have, by capability (CUDA C++ Programming Guide).
SHARED = {80: 166_912, 86: 101_376, 87: 166_912, 89: 101_376, 90: 232_448, 120: 101_376}
SPILLED = 256  # bytes of a thread: a few values that are used once; the worst of early versions had 16,000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", SHARED)
def test_kernels_compile_and_fit(tmp_path, capability):
    """Each kernel, in each type, gets through the compiler, into the card's shared memory, and hardly spills."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (pip install 'rmbgd[test]')")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled", str(capability)],
        cwd=Path(__file__).parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(told) == 16
    for one in told:
        assert one["shared"] <= SHARED[capability], one
        assert one["spilled"] <= SPILLED, one
