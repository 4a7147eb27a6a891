"""Every kernel compiles for every card that it may meet, and fits there. Needs Triton, and no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

# Bytes of shared memory that one program may have, by capability (CUDA C++ Programming Guide).
SHARED = {80: 166_912, 86: 101_376, 87: 166_912, 89: 101_376, 90: 232_448}
SHARED |= {100: 232_448, 103: 232_448, 120: 101_376, 121: 101_376}
MATRIX = {90: {"HGMMA"}, 100: {"UTCHMMA"}, 103: {"UTCHMMA"}}  # matrix instructions of these cards
AT_ONCE = {"window": 3, "pyramid": 1, "norm": 4, "merged": 2}  # programs of a multiprocessor, in half precision
SPILLED = 256  # bytes of a thread: a few values that are used once; the worst of early versions had 16,000


def run(cache: Path, *words: str) -> list[Any]:
    """Lines of JSON of `compiled.py`, run where Triton compiles and does not interpret."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (pip install 'rmbgd[test]')")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.kernels.compiled", *words],
        cwd=Path(__file__).parents[3],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", SHARED)
def test_kernels_compile_and_fit(tmp_path, capability):
    found = run(tmp_path, str(capability))
    assert len(found) >= 26
    for one in found:
        name, kind = one["kernel"].split()[0], one["kernel"].split()[-1]
        assert one["shared"] <= SHARED[capability], one
        assert one["spilled"] <= SPILLED, one
        assert one["programs"] >= (1 if kind == "fp32" else AT_ONCE.get(name, 1)), one
        if name in {"window", "pyramid"} and kind != "fp32":
            assert one["matrix"].keys() == MATRIX.get(capability, {"HMMA"}), one


@pytest.mark.timeout(900)
def test_one_compilation_serves_every_batch(tmp_path):
    """So what `rmbgd models optimize` compiled is all that the service needs. Attention has two, with a shift and
    without; the norm four, with a sum and without, of a stream in float32 and in half; the pyramid and the relaxation
    have one for each of their two tiles."""
    network = {"_attention": 2, "_pyramid": 2, "_head": 1, "_norm": 4, "_merged": 1, "_resize": 1}
    finish = {"_shrink": 1, "_fit": 1, "_coarse": 1, "_halve": 1, "_relax": 2, "_pack": 1}
    assert [network | finish] == run(tmp_path, "launches")
