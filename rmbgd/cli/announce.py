"""`rmbgd announce`: watch drop folders, and put the names of complete images on the queue of a fleet."""

from __future__ import annotations

import argparse

from rmbgd.cli.main import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    described = "events as sentences or as JSON lines (default: sentences on a terminal and in the journal)"
    parser.add_argument("--log", choices=("auto", "json", "text"), default="auto", help=described)


def run(options: argparse.Namespace) -> int:
    from rmbgd.cli.fleet import need_library
    from rmbgd.service import daemon

    need_library()
    return daemon.run(options.config, log_form=options.log, announces=True)
