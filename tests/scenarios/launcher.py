"""The real service with a fake engine: `python launcher.py CONFIG OPTIONS`, where OPTIONS is JSON.

Calls the composition root as the command line does; the product itself has no switch for tests.

    engine   keyword arguments of FakeEngine (script, poison, start, ...), and `delay`: seconds for every batch
    count    a file that gets one line per picture the engine computed
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmbgd import daemon
from rmbgd.engine.base import BatchReport, Work
from rmbgd.engine.fake import FakeEngine


class CountedEngine(FakeEngine):
    """Slow when told, and says what it computed in a file that survives the process."""

    def __init__(self, block: Any, *, delay: float = 0.0, count: str = "", **options: Any) -> None:
        super().__init__(block, **options)
        self._delay = delay
        self._count = count
        self._never = threading.Event()

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        if self._delay:
            self._never.wait(self._delay)  # stands for the device's time
        report = super().segment(batch)
        if self._count:
            with open(self._count, "a") as file:
                file.writelines(f"{work.image_id}\n" for work in batch)
        return report


def main() -> int:
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}

    def engine(parts: daemon.EngineParts) -> FakeEngine:
        return CountedEngine(parts.arena.block, count=options.get("count", ""), **options.get("engine", {}))

    return daemon.run(Path(sys.argv[1]), engine_factory=engine)


if __name__ == "__main__":
    sys.exit(main())
