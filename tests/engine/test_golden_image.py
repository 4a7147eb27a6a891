"""The golden image's alpha as a message."""

from __future__ import annotations

import base64
import hashlib
import zlib

import numpy as np
import pytest

from rmbgd.engine.golden_image import from_golden, golden_image, golden_scenes, to_golden
from rmbgd.engine.types import Golden


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


def test_scenes_have_the_same_bytes_on_every_machine():
    """Verdicts that were measured on them are kept on disk; the first scene is the golden image."""
    scenes = golden_scenes()
    assert np.array_equal(scenes[0], golden_image()[0])
    digests = [hashlib.sha256(scene.tobytes()).hexdigest()[:8] for scene in scenes]
    assert digests == ["e0fd4505", "25403c83", "94a213aa", "88ad4448", "f825ebc2"]
