"""Modules that one image crosses, counted in a real service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def test_image_crosses_parent_and_worker_and_leaves_out_what_runs_at_the_start() -> None:
    """From the watcher to the outbox, and the network in the worker's process."""
    command = [sys.executable, "-m", "tools.trace_image", "--images", "2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    names = set(json.loads(done.stdout.splitlines()[-1])["modules"][0])
    assert {"intake/watcher.py", "pipeline/infer.py", "models/u2net.py", "store/outbox.py"} <= names
    assert not names & {"cli/main.py", "config/layout.py", "engine/selftest.py"}
