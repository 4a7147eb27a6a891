"""`rmbgd run`: the service. Everything it does is the daemon's."""

from __future__ import annotations

import argparse

from rmbgd.cli.options import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(options: argparse.Namespace) -> int:
    from rmbgd.service import daemon

    return daemon.run(options.config)
