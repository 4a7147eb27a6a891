"""What several verbs share: arguments, and how text from files is shown. Loads no configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/rmbgd/rmbgd.toml")  # config.DEFAULT_PATH, without the price of importing pydantic


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="the configuration (default: %(default)s)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table, for programs")


def printable(text: str) -> str:
    """File names are hostile: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
