"""`rmbgd doctor`: one line for each thing the service needs, with the cause and a remedy where it is not fine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from rmbgd.cli.main import add_config
from rmbgd.config.load import Config, load
from rmbgd.doctor.checks import CheckResult, CheckState, check_compute, check_manager, fail, healthy, ok, warn
from rmbgd.doctor.folders import check_folders
from rmbgd.doctor.ledger import check_ledger
from rmbgd.doctor.queue import check_buckets, check_queue
from rmbgd.doctor.unit import check_unit
from rmbgd.errors import ConfigError, Exit
from rmbgd.paths import DEFAULT_CONFIG
from rmbgd.telemetry.jsonl import to_json

COLOURS = {CheckState.OK: "green", CheckState.WARN: "yellow", CheckState.FAIL: "red"}

add_arguments = partial(add_config, json=True)


def run(options: argparse.Namespace) -> int:
    results = []
    console = Console(highlight=False, quiet=options.json)
    for result in check_all(options.config):  # each line as soon as it is known: torch takes seconds
        results.append(result)
        mark = f"[{COLOURS[result.state]}]{result.state:>4}[/]"
        console.print(f"{mark}  [bold]{escape(result.need)}[/]: {escape(result.text)}", soft_wrap=True)
        if result.hint:
            console.print(f"      {escape(result.hint)}", soft_wrap=True)
    if options.json:
        print(to_json({"healthy": healthy(results), "findings": [asdict(result) for result in results]}))
    return Exit.OK if healthy(results) else Exit.FAILED


def check_all(path: Path) -> Iterator[CheckResult]:
    """Every need, with the configuration at `path`, or with the defaults when it is broken or missing."""
    config = Config()
    try:
        config = load(path)
        yield ok("configuration", str(path))
    except ConfigError as error:
        if path == DEFAULT_CONFIG and not path.exists():
            yield warn("configuration", f"none at {path}; checking the defaults", "rmbgd check --print-default")
        else:
            yield fail("configuration", "; ".join(error.problems), f"rmbgd check --config {path}")
    yield from check_compute(config)
    yield from check_folders(config)
    yield from check_ledger(config)
    yield from check_queue(config)
    yield from check_buckets(config)
    yield from check_unit(config, path)
    yield from check_manager(config, path)
