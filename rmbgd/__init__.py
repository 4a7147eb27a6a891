"""rmbgd: background removal as a hot-folder service. Holds the version; knows nothing else."""

from __future__ import annotations

__version__ = "0.1.0"
