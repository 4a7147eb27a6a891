"""Run the report tool alone: `python -m rmbgd.mtbf LOG...`."""

from __future__ import annotations

import sys

from rmbgd.mtbf.command import main

if __name__ == "__main__":
    sys.exit(main())
