"""`rmbgd doctor`: one line for each thing the service needs, with the cause where it is not fine.

Judges nothing itself: the package rmbgd.doctor does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rmbgd import errors
from rmbgd.cli.options import DEFAULT_CONFIG, add_config, add_json
from rmbgd.config import load as config
from rmbgd.doctor import checks as compute
from rmbgd.doctor import checks as manager
from rmbgd.doctor import folders as places
from rmbgd.doctor.checks import Finding, State, fail, healthy, ok, warn
from rmbgd.errors import Exit
from rmbgd.telemetry import jsonl as lines

COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    findings = []
    if options.json:
        findings = list(examine(options.config))
        print(lines.to_json({"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}))
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console(highlight=False)
        for finding in examine(options.config):  # each line as soon as it is known: torch takes seconds
            findings.append(finding)
            mark = f"[{COLOURS[finding.state]}]{finding.state:>4}[/]"
            console.print(f"{mark}  [bold]{escape(finding.need)}[/]: {escape(finding.text)}", soft_wrap=True)
            if finding.hint:
                console.print(f"      {escape(finding.hint)}", soft_wrap=True)
    return Exit.OK if healthy(findings) else Exit.FAILED


def examine(path: Path) -> Iterator[Finding]:
    """Every need, with the configuration at `path`, or with the defaults when it is broken or missing."""
    settings = config.Config()
    try:
        settings = config.load(path)
        yield ok("configuration", str(path))
    except errors.ConfigError as error:
        if path == DEFAULT_CONFIG and not path.exists():
            yield warn("configuration", f"none at {path}; looking with the defaults", "rmbgd check --print-default")
        else:
            yield fail("configuration", "; ".join(error.problems), f"rmbgd check --config {path}")
    yield from compute.examine(settings)
    yield from places.examine(settings)
    yield from manager.examine_manager(settings)
