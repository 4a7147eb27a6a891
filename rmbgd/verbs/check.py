"""`rmbgd check`: every problem of a configuration at once, before the service is started with it.

Decides nothing itself: config.py knows the settings, the intake's layout rules know which folders go together.
"""

from __future__ import annotations

import argparse
import sys

from rmbgd.errors import ConfigError
from rmbgd.exitcodes import Exit
from rmbgd.verbs.options import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--print-default", action="store_true", help="print the commented default configuration instead, to begin with"
    )


def run(options: argparse.Namespace) -> int:
    if options.print_default:
        from rmbgd import configdoc

        sys.stdout.write(configdoc.default_toml())
        return Exit.OK
    from rmbgd import config
    from rmbgd.intake.layout import check_layout

    # Each raises ConfigError with all its findings, which main tells. Folders are compared once the settings are right.
    settings = config.load(options.config)
    if not settings.folder:
        raise ConfigError(f"{options.config}: no [[folder]] is defined; see config/rmbgd.toml")
    check_layout(settings)
    print(f"{options.config}: fine; folders: {', '.join(folder.name for folder in settings.folder)}")
    return Exit.OK
