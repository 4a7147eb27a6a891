"""Where the measuring data lie: beside the checkout, or where RMBGD_SHARED says. Never inside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(name: str) -> Path:
    """The folder `name` of the measuring data, or a skip that says what is missing."""
    root = Path(os.environ.get("RMBGD_SHARED", Path(__file__).parents[3] / "shared"))
    folder = root / name
    if not folder.exists():
        pytest.skip(f"measuring data not present: no '{name}' beside the checkout and RMBGD_SHARED is not set")
    return folder
