"""Options to backend: the factory that the child process loads by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.cpu.backend import DEVICE, CpuBackend
from rmbgd.engine.types import Backend, Options


def create(block: NDArray[np.uint8], options: Mapping[str, Any]) -> Backend:
    """A backend on the CPU or a GPU, to be started; `start` raises EngineLost for a GPU that is not there."""
    wanted = Options.from_json(options)
    if wanted.device == DEVICE:
        return CpuBackend(block, wanted)
    from rmbgd.backends.cuda.backend import CudaBackend
    from rmbgd.backends.cuda.runtime import CudaDevice

    return CudaBackend(block, wanted, partial(CudaDevice, wanted.device))
