"""`rmbgd presets`: lists presets of marketplaces, shows their rules, and checks finished files against them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rmbgd.cli.table import print_table
from rmbgd.config.load import load
from rmbgd.config.presets import Preset, built_in, own_settings
from rmbgd.deliver.check import RuleResult, check
from rmbgd.errors import ConfigError, Exit, explain
from rmbgd.wording import did_you_mean, printable

STYLES = {"pass": "green", "fixed": "yellow", "fail": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        title="commands", dest="presets_verb", required=True, metavar="list | show | check"
    )

    def command(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}."
        )
        added.set_defaults(presets_action=action)
        about = "also take the presets of this configuration"
        added.add_argument("--config", type=Path, metavar="FILE", help=about)
        added.add_argument("--json", action="store_true", help="print JSON instead of a table")
        return added

    command("list", "list the presets", _list)
    added = command("show", "show the settings and rules of a preset, and where they were read", _show)
    added.add_argument("name", metavar="NAME", help="of a preset")
    added = command("check", "check finished files against the rules of a preset; exit 1 when a rule fails", _check)
    added.add_argument("file", nargs="+", type=Path, metavar="FILE", help="an image, as it would be delivered")
    added.add_argument("--preset", default="amazon-main", metavar="NAME", help="whose rules (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Raises ConfigError."""
    return int(options.presets_action(options))


def _presets(options: argparse.Namespace) -> Mapping[str, Preset]:
    return built_in() if options.config is None else load(options.config).presets


def _named(options: argparse.Namespace, name: str) -> Preset:
    presets = _presets(options)
    if name not in presets:
        hint = did_you_mean(name, presets) or f"there is {', '.join(sorted(presets))}"
        raise ConfigError(f"no preset '{name}'; {hint}")
    return presets[name]


def _list(options: argparse.Namespace) -> int:
    presets = _presets(options)
    if options.json:
        print(json.dumps({name: preset.model_dump(exclude_unset=True) for name, preset in presets.items()}, indent=1))
        return Exit.OK
    table = Table("NAME", "WHAT FOR", "FRAME", "FORMAT", "RULES", "READ IN", box=None, pad_edge=False)
    for name, preset in presets.items():
        source = "our own" if preset.source is None else f"{preset.source.title}, {preset.source.date}"
        frame = preset.make.canvas or "its own"
        cells = (name, preset.title, frame, preset.make.format, str(len(preset.rule)), source)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    print_table(table)
    return Exit.OK


def _show(options: argparse.Namespace) -> int:
    preset = _named(options, options.name)
    if options.json:
        print(json.dumps(preset.model_dump(exclude_unset=True), indent=1))
        return Exit.OK
    print(f"{printable(options.name)}: {printable(preset.title)}")
    if preset.source is not None:
        print(f"read in: {printable(preset.source.title)}, {preset.source.date} {preset.source.url}".rstrip())
    print("makes: " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in own_settings(preset.make).items()))
    table = Table("RULE", "LEAST", "MOST", "ONE OF", "REQUIREMENT", box=None, pad_edge=False)
    for rule in preset.rule:
        bounds = ("" if bound is None else f"{bound:g}" for bound in (rule.minimum, rule.maximum))
        source = "" if rule.source is None else f" ({rule.source.title}, {rule.source.date})"
        cells = (rule.kind, *bounds, ", ".join(rule.one_of), rule.requirement + source)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    print_table(table)
    return Exit.OK


def _check(options: argparse.Namespace) -> int:
    preset = _named(options, options.preset)
    found: dict[str, list[RuleResult]] = {}
    unread = False
    for path in options.file:
        try:
            found[str(path)] = check(path.read_bytes(), preset)
        except OSError as error:
            print(f"rmbgd presets: {explain(error)}", file=sys.stderr)
            unread = True
    if options.json:
        plain = {path: [finding.document() for finding in findings] for path, findings in found.items()}
        print(json.dumps({"preset": options.preset, "files": plain}, indent=1))
    else:
        for path, findings in found.items():
            print(f"{printable(path)}: {options.preset}")
            print_table(findings_table(findings))
    fails = any(finding.outcome == "fail" for findings in found.values() for finding in findings)
    return Exit.FAILED if unread or fails else Exit.OK


def findings_table(findings: list[RuleResult]) -> Table:
    table = Table("RULE", "MEASURED", "REQUIRED", "", box=None, pad_edge=False)
    for each in findings:
        outcome = Text(each.outcome, STYLES[each.outcome])
        table.add_row(each.rule, Text(printable(each.measured)), Text(printable(each.required)), outcome)
    return table
