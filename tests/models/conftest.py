"""Settings for tests that run networks."""

from __future__ import annotations

import os

# OpenMP's threads spin while they wait for each other. On a machine that does other work besides, a test that takes a
# second would take twenty. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
