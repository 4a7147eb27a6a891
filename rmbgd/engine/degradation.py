"""POLICY: what a GPU's next process does without, after processes that failed before they had passed their self-test.

Kernels of our own and recorded graphs are quicker, and the images do not need them. A card or a driver that they break
would end every process at its start, and the GPU would never be used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rmbgd.engine.types import Limit

FAILED = 2  # processes in a row: one may be an accident


@dataclass(frozen=True, slots=True)
class Degradation:
    """Kept for the life of the service: what was given up is not tried again."""

    kernels: bool = True  # Triton's are tried
    graphs: bool = True  # launches are recorded
    failed: int = 0  # processes in a row that a fault of their own ended before they had passed

    @property
    def options(self) -> dict[str, object]:
        """Of the next process, where they differ from the configuration's."""
        return ({} if self.kernels else {"kernels": "off"}) | ({} if self.graphs else {"graphs": False})

    def after_pass(self) -> Degradation:
        return replace(self, failed=0)

    def after_fault(self, why: str) -> tuple[Degradation, Limit | None]:
        """And what it now does without, if that is more than before. `why`: the fault, in words."""
        failed = self.failed + 1
        if failed < FAILED or not (self.kernels or self.graphs):
            return replace(self, failed=failed), None
        times = f"{failed} processes in a row ended before they had passed their self-test, the last one with: {why}"
        if self.kernels:
            return replace(self, kernels=False, failed=0), Limit("kernels", f"plain kernels from now on: {times}")
        return replace(self, graphs=False, failed=0), Limit("graphs", f"no graphs are recorded from now on: {times}")

    def after_unclean_capture(self, why: str) -> tuple[Degradation, Limit]:
        """A recording failed and left its process unusable. That is not counted: without graphs it cannot be again."""
        return replace(self, graphs=False), Limit("graphs", f"no graphs are recorded from now on: {why}")
