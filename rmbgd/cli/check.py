"""`rmbgd check`: every problem of a configuration at once, before the service is started with it.

Decides nothing itself: config.py knows the settings, the intake's layout rules know which folders go together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rmbgd.cli.options import add_config
from rmbgd.errors import ConfigError, Exit

if TYPE_CHECKING:
    from rmbgd.config.load import Config


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
    from rmbgd.config import load as config

    settings = config.load(options.config)  # raises ConfigError with all findings; main tells them
    if findings := list(_beyond_the_settings(settings)):
        raise ConfigError([f"{options.config}: {finding}" for finding in findings])
    print(f"{options.config}: fine; folders: {', '.join(folder.name for folder in settings.folder)}")
    return Exit.OK


def _beyond_the_settings(settings: Config) -> Iterator[str]:
    """What no setting shows alone: whether there is anything to do, on folders that go together, with a model."""
    from rmbgd.config.layout import check_layout
    from rmbgd.models import licences as consent
    from rmbgd.models import store as places

    if not settings.folder:
        yield "no [[folder]] is defined, so there is nothing to do; see config/rmbgd.toml"
    try:
        check_layout(settings)
    except ConfigError as error:
        yield from error.problems
    models = settings.service.models_directory
    stands_in = {settings.health.fallback_model} - {"auto"}
    for name in sorted({settings.recipe_of(folder).model for folder in settings.folder} | stands_in):
        try:
            place = places.resolve(name, models)
            if place.entry is not None:
                consent.require(place.entry, models)
        except ConfigError as error:
            yield from error.problems
