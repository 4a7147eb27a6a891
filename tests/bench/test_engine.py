"""The engine process under measurement: which sizes, how many batches, and that it is the real way that is measured."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from rmbgd.bench.engine import BATCHES_MINIMUM, EngineUnderTest
from rmbgd.bench.samples import HAND_OVER, Sample, drawn
from rmbgd.errors import EngineLost, EngineMemory
from rmbgd.testing.engine import expected_alpha

pytestmark = pytest.mark.integration


def under_test(images: list[Sample], *, places: int = 4, arena_bytes: int = 1 << 22, **fake: Any) -> EngineUnderTest:
    return EngineUnderTest(
        "rmbgd.testing.engine:create",
        {"models": ["m"]} | fake,
        model="m",
        images=images,
        places=places,
        arena_bytes=arena_bytes,
        start_timeout=60.0,
        batch_timeout=60.0,
    )


def test_a_batch_makes_the_round_trip_of_the_service() -> None:
    """After measuring, every place of the arena holds the alpha that the child computed from its image."""
    images = drawn(2, 32)
    with under_test(images) as engine:
        reading = engine.measure(4, 0.0)

        for place in range(4):
            slot = engine.planes(place)
            assert np.array_equal(images[place % 2].rgb, slot.rgb)
            assert np.array_equal(expected_alpha(slot.rgb), slot.rgba[..., 3])
    assert (4, BATCHES_MINIMUM) == (reading.size, reading.spread.count)
    assert {"network", HAND_OVER} == set(reading.stages)
    assert reading.memory["rss"] > 0
    assert reading.per_second == pytest.approx(4000 / reading.spread.mean)


def test_warm_up_does_not_count() -> None:
    """Two slow first batches leave no trace in the times."""
    with under_test(drawn(1, 32), script=["delay:0.7", "delay:0.7"]) as engine:
        assert engine.measure(1, 0.0).spread.longest < 700


def test_batches_are_bounded() -> None:
    """However long it may take, no more than asked for."""
    with under_test(drawn(1, 32)) as engine:
        assert 7 == engine.measure(1, 3600.0, batches=7).spread.count


def test_sizes_that_are_not_offered_are_left_out_with_a_reason() -> None:
    """The engine says what it takes, and gets nothing else."""
    with under_test(drawn(1, 32), places=8, batch_sizes=(1, 2, 4)) as engine:
        assert ([1, 4], {8: "the engine offers 1, 2, 4"}) == engine.sizes([1, 4, 8])
        assert ([1, 2, 4], {}) == engine.sizes(None)


def test_sizes_that_do_not_fit_into_the_arena_are_left_out() -> None:
    """The service could not run them either."""
    with under_test(drawn(1, 64), places=8, arena_bytes=3 * 7 * 64 * 64) as engine:
        assert 3 == engine.places
        assert ([1, 2], {4: "only 3 of these images fit into pipeline.arena_bytes"}) == engine.sizes([1, 2, 4])


def test_fault_while_measuring_is_told() -> None:
    """A figure of a device that died would be none."""
    with under_test(drawn(1, 32), script=["ok", "ok", "lost"]) as engine, pytest.raises(EngineLost, match="the script"):
        engine.measure(1, 1.0)


def test_process_is_gone_afterwards() -> None:
    """Also when measuring failed."""
    with pytest.raises(EngineMemory), under_test(drawn(1, 32), script=["memory"]) as engine:  # noqa: PT012
        pid = engine._worker.pid
        engine.measure(1, 1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
