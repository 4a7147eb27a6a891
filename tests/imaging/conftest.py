"""What the composition root does once: Pillow and OpenCV are set up before any test decodes."""

from __future__ import annotations

import pytest

from rmbgd.config.load import LimitSettings
from rmbgd.imaging.pillow import configure_opencv, configure_pillow


@pytest.fixture(autouse=True)
def _libraries_configured() -> None:
    """Again for each test: pytest puts the warning filters back after each."""
    configure_pillow(LimitSettings())
    configure_opencv()
