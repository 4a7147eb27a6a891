"""What torch raises, named for what it is, where it is an error of the device. In the engine's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rmbgd.engine.cuda_errors import fault_of
from rmbgd.errors import EngineMemory


@contextmanager
def faults() -> Iterator[None]:
    """Raises EngineLost or EngineMemory for errors of the device; all others stay what they are."""
    try:
        yield
        return
    except (RuntimeError, AssertionError) as error:
        fault = fault_of(error)
        if fault is None:
            raise
    raise fault


def unburdened(shortage: EngineMemory) -> EngineMemory:
    """The same, without the tracebacks whose frames keep the tensors of the batch that failed."""
    shortage.__context__ = None
    return shortage.with_traceback(None)
