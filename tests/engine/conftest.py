from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rmbgd.engine.arena import Arena
from tests.engine.image_store import ImageStore
from tests.engine.simulation import Simulation, context_of


@pytest.fixture
def images() -> Iterator[ImageStore]:
    """Images in an arena of 1 MiB."""
    with Arena(1 << 20) as arena, ImageStore(arena) as images:
        yield images


@pytest.fixture
def simulate() -> Iterator[Callable[..., Simulation]]:
    """Makes simulations: settings of [health], `tries`, and what Simulation takes; closed at the end."""
    made: list[Simulation] = []
    with Arena(1 << 20) as arena:

        def make(*, gpus: int = 1, warm: bool = True, plan=None, gpu_plan=None, **context: object) -> Simulation:
            made.append(Simulation(context_of(arena, **context), gpus=gpus, warm=warm, plan=plan, gpu_plan=gpu_plan))
            return made[-1]

        yield make
        for each in made:
            each.close()
