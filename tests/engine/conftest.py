from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

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
    """Makes simulations: settings of [health], `tries`, `gpus`, `warm`, `plan`s of their faults; closed at the end."""
    with Arena(1 << 20) as arena, ExitStack() as stack:

        def make(*, gpus: int = 1, warm: bool = True, plan=None, gpu_plan=None, **context: object) -> Simulation:
            simulation = Simulation(context_of(arena, **context), gpus=gpus, warm=warm, plan=plan, gpu_plan=gpu_plan)
            return stack.enter_context(closing(simulation))

        yield make
