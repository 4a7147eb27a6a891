from __future__ import annotations

from collections.abc import Iterator

import pytest

from rmbgd.engine.arena import Arena
from tests.engine.image_store import ImageStore


@pytest.fixture
def images() -> Iterator[ImageStore]:
    """Images in an arena of 1 MiB."""
    with Arena(1 << 20) as arena, ImageStore(arena) as images:
        yield images
