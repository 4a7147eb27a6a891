"""Where kernels run in tests: on a CUDA device if there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

# Triton reads it when it is first imported, its own library included, so it stands before any test module. Processes
# that tests start inherit it: on a CPU no path but these tests' asks for Triton.
EARLY = not torch.cuda.is_available() and "triton" in sys.modules
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device on which this session's kernels run."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (pip install 'rmbgd[test]')")
    assert not EARLY, "a test module imported Triton before its interpreter was switched on; import it in a function"
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
