"""`python -m rmbgd` is the `rmbgd` command."""

import sys

from rmbgd.cli import main

sys.exit(main())
