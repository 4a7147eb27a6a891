from __future__ import annotations

from collections.abc import Iterator

import pytest

from rmbgd.engine.arena import Arena
from tests.engine.images import Pictures


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    """Pictures in an arena of 1 MiB."""
    with Arena(1 << 20) as arena, Pictures(arena) as pictures:
        yield pictures
