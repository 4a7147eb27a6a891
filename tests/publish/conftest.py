"""A workspace of its own for each test: folders, ledger and publisher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support.workspace import Workspace

Build = Callable[..., Workspace]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Build]:
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(closing(Workspace(tmp_path, **given)))


@pytest.fixture
def it(workspace: Build) -> Workspace:
    return workspace()
