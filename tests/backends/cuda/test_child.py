"""Both backends in the engine's own process, the host in a GPU's place: all that they tell gets across."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from rmbgd.config.load import parse
from rmbgd.engine import golden_image
from rmbgd.engine.arena import TRIM_SECONDS, Arena
from rmbgd.engine.wiring import default_machine
from rmbgd.engine.worker import EngineWorker
from tests.engine.processes import PATIENCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("factory", "device", "limits", "steps"),
    [
        ("rmbgd.backends.factory:create", "cpu", [], {"network", "finish"}),
        ("tests.backends.cuda.conftest:create", "cuda:0", ["kernels", "memory_low", "batch"], {"network", "finish"}),
    ],
)
def test_the_real_child_cuts_out_the_ball(arena, canvas, factory, device, limits, steps):
    """Options as the service gives them, shared memory, embedded model, limits: the ball stands alone."""
    config = parse({"pipeline": {"batch_maximum": 2}, "engine": {"threads": 1}})
    models = {"u2netp": {"source": "u2netp", "patch_order": "auto"}}
    options = default_machine().options(config, device, models, "auto")
    rgb, truth = golden_image.golden_image()
    work = canvas.place(1, rgb)
    times = {"start_timeout": 4 * PATIENCE, "batch_timeout": PATIENCE}
    with closing(EngineWorker(arena, factory, options, **times, on_output=print)) as worker:
        description, report, golden = worker.start(), worker.run([work]), worker.golden("u2netp")
    alpha = canvas.plane(work)[..., 3] / np.float32(255)
    assert golden_image.overlap(alpha, truth) > 0.98
    assert alpha[:20].max() < 0.02
    assert np.abs(golden.alpha - alpha).max() < 0.02
    assert [limit.what for limit in description.limits] == limits
    assert (report.not_finite, report.limits, set(report.milliseconds)) == ([], [], steps)


@pytest.mark.parametrize(
    ("factory", "device", "locks"),
    [("rmbgd.backends.factory:create", "cpu", False), ("tests.backends.cuda.conftest:create", "cuda:0", True)],
)
def test_memory_that_the_devices_process_has_locked_is_not_given_back(factory, device, locks):
    """Until that process is gone; while it starts, nobody knows yet how much it will lock."""
    pinned, size = 16 << 20, 24 << 20
    config = parse({"pipeline": {"batch_maximum": 1}, "engine": {"threads": 1}, "gpu": {"pinned_bytes": pinned}})
    options = default_machine().options(config, device, {"u2netp": {"source": "u2netp", "patch_order": "auto"}}, "auto")
    times = {"start_timeout": 4 * PATIENCE, "batch_timeout": PATIENCE}
    with Arena(64 << 20) as arena:
        kept, now = [], 0.0

        def idle() -> int:
            nonlocal now
            with arena.lease(size) as lease:
                lease.block[lease.offset :][:size] = 7
            for _ in range(3):
                now += TRIM_SECONDS
                arena.trim(now)
            return arena.statistics().resident_bytes

        with closing(EngineWorker(arena, factory, options, **times, on_output=print)) as worker:
            assert idle() == 0
            launch = worker._launch

            def launched() -> None:
                launch()
                kept.append(idle())

            worker._launch = launched
            worker.start()
            assert kept == [pinned]
            assert idle() == (pinned if locks else 0)
        assert idle() == 0
