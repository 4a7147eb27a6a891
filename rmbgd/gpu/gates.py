"""POLICY: whether a quicker way to compute is near enough to the one it replaces, seen on the known picture.

Knows neither the ways nor the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Gate:
    """mean   largest mean difference of alpha
    far    a difference of alpha that few pixels may exceed
    share  how many may
    """

    mean: float
    far: float
    share: float

    def refusal(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
        """Why `found` does not pass, both float32 [h, w], or nothing."""
        difference = np.abs(found - expected)
        if not np.isfinite(difference).all():
            return "alpha of the known picture is not finite"
        mean, beyond = float(difference.mean()), float((difference > self.far).mean())
        if mean <= self.mean and beyond <= self.share:
            return ""
        return (
            f"alpha of the known picture is off by {255 * mean:.2f} levels on average ({255 * self.mean:.2f} are let "
            f"through), by more than {255 * self.far:.0f} in {100 * beyond:.2f} % of it ({100 * self.share:.2f} %)"
        )


KERNELS = Gate(mean=0.5 / 255, far=8 / 255, share=1e-3)
"""Triton's kernels against plain ones in the same type: both round, in other orders."""

FLOAT8 = Gate(mean=1.5 / 255, far=8 / 255, share=5e-3)
"""Against float16: what bfloat16 may be off by, too."""
