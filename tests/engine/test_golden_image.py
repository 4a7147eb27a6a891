"""Looks at an engine between two batches: in the caller's process, and through the real child."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from rmbgd.engine.arena import Arena
from rmbgd.engine.golden_image import from_golden, golden_image, to_golden
from rmbgd.engine.types import Golden, MemoryTestPass
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import EngineLost


def test_alpha_survives_the_way_to_16_bits():
    alpha = np.random.default_rng(1).random((240, 320), dtype=np.float32)
    back = to_golden(from_golden(Golden(alpha, 0.25)))
    assert back.seconds == 0.25
    assert np.abs(back.alpha - alpha).max() <= 0.51 / 65535


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"alpha": "no base64!", "seconds": 1},
        {"alpha": base64.b64encode(b"not compressed").decode(), "seconds": 1},
        {"alpha": base64.b64encode(zlib.compress(b"\0" * 100)).decode(), "seconds": 1},
        {"alpha": base64.b64encode(zlib.compress(bytes(1 << 24))).decode(), "seconds": 1},
        {"alpha": from_golden(Golden(np.zeros((240, 320), np.float32), 0.0))["alpha"], "seconds": "soon"},
    ],
)
def test_what_is_no_known_image_is_refused(message):
    """Cut, swollen or of another kind: an error, and no more memory than a golden image takes."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        to_golden(message)


@pytest.mark.integration
def test_a_child_is_looked_at_between_two_batches(tmp_path):
    """The golden image comes back as the engine computes it here; so do the blocks of a pass of the memory test; a look
    at a process that was killed is a fault like any other."""
    options, limits = {"orders": str(tmp_path)}, {"start_timeout": 60, "batch_timeout": 60}
    with Arena(1 << 16) as arena:
        worker = EngineWorker(arena, "rmbgd.testing.engine:create", options, on_output=lambda line: None, **limits)
        worker.start()
        assert np.abs(worker.golden("fake").alpha - golden_image()[0][..., 1] / 255).max() <= 1 / 65535
        assert worker.canary(64) == MemoryTestPass(64, 0)
        (tmp_path / "canary").write_text("3")
        assert worker.canary(64) == MemoryTestPass(64, 3)
        assert worker.alive
        worker.abort()
        with pytest.raises(EngineLost):
            worker.golden("fake")
        assert not worker.alive
        assert worker.ended
        worker.close()
