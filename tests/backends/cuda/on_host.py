"""A factory for the engine's process: the GPU's engine with the host in the device's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.cuda.backend import CudaBackend
from rmbgd.engine.types import Options
from rmbgd.testing.device import HostDevice


def create(block: NDArray[np.uint8], options: Mapping[str, Any]) -> CudaBackend:
    return CudaBackend(block, Options.from_json(options), lambda: HostDevice((256 << 20, 8 << 30)))
