"""The GPU's engine in the engine's own process, with the host in the device's place: all that it tells gets across."""

from __future__ import annotations

import numpy as np
import pytest

from rmbgd.config.load import parse
from rmbgd.engine import golden_image
from rmbgd.engine.wiring import default_machine
from rmbgd.engine.worker import EngineWorker
from tests.engine.processes import PATIENCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_the_real_child_cuts_out_the_ball(arena, canvas):
    """Options as the service gives them, shared memory, embedded model, limits: the ball stands alone."""
    config = parse({"pipeline": {"batch_maximum": 2}, "engine": {"threads": 1}})
    models = {"u2netp": {"source": "u2netp", "patch_order": "auto"}}
    options = default_machine().options(config, "cuda:0", models, "auto")
    worker = EngineWorker(
        arena,
        "tests.backends.cuda.on_host:create",
        options,
        start_timeout=PATIENCE * 4,
        batch_timeout=PATIENCE,
        on_output=print,
    )
    rgb, truth = golden_image.golden_image()
    work = canvas.place(1, rgb)
    try:
        description = worker.start()
        report = worker.run([work])
        golden = worker.golden("u2netp")
    finally:
        worker.close()
    alpha = canvas.plane(work)[..., 3] / np.float32(255)

    assert golden_image.overlap(alpha, truth) > 0.98
    assert np.abs(golden.alpha - alpha).max() < 0.02
    assert description.batch_sizes == (1,)
    assert [limit.what for limit in description.limits] == ["kernels", "memory_low", "batch"]
    assert (report.again, report.limits) == (0, [])
    assert set(report.milliseconds) == {"network", "finish"}
