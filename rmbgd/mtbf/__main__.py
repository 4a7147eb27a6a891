"""`python -m rmbgd.mtbf LOG...`: the report tool alone."""

from __future__ import annotations

import sys

from rmbgd.mtbf.command import main

if __name__ == "__main__":
    sys.exit(main())
