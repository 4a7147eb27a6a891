"""The launcher on a wall clock that runs fast: for what takes the service days, such as forgetting old rows.

    python paced.py CONFIG OPTIONS      options of the launcher, and `pace`: {"factor": 1000, "since": s since 1970}

The clock of the service runs `factor` times as fast from the moment `since` on, over restarts too, and the maintenance
looks after old rows every second. Monotonic time, and the times in the log, are true.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

from rmbgd.clock import SystemClock
from rmbgd.intake import reconciler
from tests.support import launcher

PRUNE_EVERY = 1.0  # s


def fast(factor: float, since: float) -> None:
    began = datetime.fromtimestamp(since, UTC)

    def wall(_clock: SystemClock) -> datetime:
        now = datetime.now(UTC)
        return now + timedelta(seconds=(now - began).total_seconds() * (factor - 1))

    SystemClock.wall = wall  # type: ignore[method-assign]
    reconciler.PRUNE_EVERY = PRUNE_EVERY


if __name__ == "__main__":
    fast(**json.loads(sys.argv[2])["pace"])
    sys.exit(launcher.main())
