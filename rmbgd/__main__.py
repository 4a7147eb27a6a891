"""Lets `python -m rmbgd` be the `rmbgd` command."""

from __future__ import annotations

import sys

from rmbgd.cli.main import main

sys.exit(main())
