"""How pixels become what the networks were trained on: the statistics of ImageNet, for every network here.

Knows no tensors.
"""

from __future__ import annotations

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

# (x / 255 - mean) / deviation = SCALE * x + SHIFT, per channel, x in 0..255
SCALE = tuple(1 / (255 * deviation) for deviation in DEVIATION)
SHIFT = tuple(-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True))
