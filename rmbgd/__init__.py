"""rmbgd: background removal as a hot-folder service. Holds the version; knows nothing else."""

__version__ = "0.1.0"
