"""The `rmbgd` command line: parses arguments, runs one command, turns its errors into an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rmbgd import __version__
from rmbgd.errors import EXIT_TEXT, ConfigError, Exit, RmbgdError
from rmbgd.service.exit_recorder import DEFAULT_CONFIG

COMMANDS = {  # in the order of `rmbgd --help`
    "run": "run the service in the foreground",
    "once": "process a file or a folder now, with a progress bar",
    "check": "check a configuration and report every problem",
    "status": "show what the running service is doing",
    "doctor": "check everything the service depends on and explain what is wrong",
    "ledger": "check, copy and restore the record of images",
    "models": "list, fetch and verify models",
    "mtbf": "compute the mean time between failures from event logs",
    "bench": "measure images per second on this machine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns one of errors.Exit; argparse itself leaves with 0 or 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in arguments if not word.startswith("-")), None)
    try:
        options = build_parser(command).parse_args(arguments)
        return int(options.run_command(options))
    except ConfigError as error:
        for problem in error.problems:
            print(f"rmbgd: {problem}", file=sys.stderr)
        return Exit.CONFIGURATION
    except RmbgdError as error:
        print(f"rmbgd: {error}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`rmbgd ... | head`): keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception:  # noqa: BLE001, what is left is a defect of ours, and says so
        traceback.print_exc()
        print("rmbgd: this is a defect in rmbgd; please report the lines above", file=sys.stderr)
        return Exit.INTERNAL


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The command line, with the options of `command` only: `rmbgd --help` must not wait for the libraries of all."""
    statuses = "\n".join(f"  {int(code):3}  {text}" for code, text in EXIT_TEXT.items())
    parser = argparse.ArgumentParser(
        prog="rmbgd",
        description="Removes the background of every image dropped into a folder.",
        epilog=f"exit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rmbgd {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        if name != command:
            continue
        if name in ("run", "check"):
            add_config(sub)
            sub.set_defaults(run_command=run if name == "run" else check)
        else:
            module = importlib.import_module("rmbgd.mtbf.command" if name == "mtbf" else f"rmbgd.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run_command=module.run)
        if name == "check":
            described = "print the commented default configuration instead"
            sub.add_argument("--print-default", action="store_true", help=described)
    return parser


def run(options: argparse.Namespace) -> int:
    from rmbgd.service import daemon

    return daemon.run(options.config)


def check(options: argparse.Namespace) -> int:
    """Raises ConfigError with every problem: settings, folders that cannot be used together, missing models."""
    if options.print_default:
        sys.stdout.write(resources.files("rmbgd.config").joinpath("default.toml").read_text(encoding="utf-8"))
        return Exit.OK
    from rmbgd.config.layout import check_layout
    from rmbgd.config.load import load
    from rmbgd.models import licences, store

    config = load(options.config)
    problems = [] if config.folder else ["no [[folder]] is defined, so there is nothing to do; see config/rmbgd.toml"]
    try:
        check_layout(config)
    except ConfigError as error:
        problems += error.problems
    models = {config.recipe_of(folder).model for folder in config.folder}
    for model in sorted(models | ({config.health.fallback_model} - {"auto"})):
        try:
            place = store.resolve(model, config.service.models_directory)
            if place.entry is not None:
                licences.require(place.entry, config.service.models_directory)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError([f"{options.config}: {problem}" for problem in problems])
    print(f"{options.config}: fine; folders: {', '.join(folder.name for folder in config.folder)}")
    return Exit.OK


def add_config(parser: argparse.ArgumentParser, *, json: bool = False) -> None:
    text = "configuration file (default: %(default)s)"
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=text)
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def usage_error(command: str, error: ConfigError, *, prefix: str = "") -> int:
    """Prints what is wrong with options alone; `prefix` is what stands before each option's name in a file."""
    for problem in error.problems:
        print(f"rmbgd {command}: {problem.removeprefix(f'command line: {prefix}')}", file=sys.stderr)
    return Exit.USAGE


def printable(text: str) -> str:
    """Escapes what could steer the terminal: file names are hostile."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
