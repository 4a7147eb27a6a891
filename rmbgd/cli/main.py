"""The `rmbgd` command line: parses arguments, runs one command, turns its errors into an exit status."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rmbgd import __version__
from rmbgd.cli.parser import CommandParser
from rmbgd.errors import EXIT_TEXT, REMEDIES, ConfigError, ConfigProblem, Exit, LedgerFault, RmbgdError, explain
from rmbgd.paths import find_config
from rmbgd.wording import printable

COMMANDS = {  # in the order of `rmbgd --help`
    "init": "make drop folders and a configuration for them",
    "run": "run the service in the foreground",
    "announce": "put the names of complete images on the queue of a fleet",
    "watch": "serve one folder without a configuration",
    "service": "install the service into systemd, or remove it",
    "once": "process files and folders now, without a service",
    "check": "check a configuration and report every problem",
    "status": "show what the running service is doing",
    "list": "list images that wait, are worked on, failed, wait for review, or are done",
    "review": "list images that wait for a person, approve and reject them",
    "retry": "put rejected originals back into the input",
    "pause": "begin no more images, of one folder or of all",
    "resume": "end a pause",
    "sequence": "list the sequences of frames in work, and end them",
    "backfill": "have all images of a fleet's root processed that have no result yet",
    "fleet": "set up, show and repair the queue that several machines share",
    "report": "show what became of the last images, on a page or as JSON",
    "doctor": "check everything the service depends on and explain what is wrong",
    "ledger": "check, copy and restore the record of images",
    "hooks": "run the operator's commands for failures, idleness and failovers",
    "models": "list, fetch and verify models",
    "presets": "list presets of marketplaces, check files against them",
    "eval": "measure cutouts or masks against ground truth",
    "mtbf": "compute the mean time between failures from event logs",
    "bench": "measure images per second on this machine",
    "completion": "print a completion script for your shell",
    "help": "show the help of a command",
}
SERVING = (
    "run",
    "announce",
    "check",
    "service",
    "backfill",
    "fleet",
)  # they mean a configuration, the other commands a service
OWN_CONFIG = "finds_config"
MODULES = {
    "eval": "rmbgd.cli.evaluate",
    "mtbf": "rmbgd.mtbf.command",
    "resume": "rmbgd.cli.pause",
}  # of the others it is rmbgd.cli.VERB


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns one of errors.Exit; argparse itself leaves with 0 or 2."""
    _make_streams_usable()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in arguments if not word.startswith("-")), None)
    signed = f"rmbgd {command}" if command in COMMANDS else "rmbgd"
    serving = False
    try:
        if not arguments:
            return _say_what_there_is()
        options = build_parser(command).parse_args(arguments)
        if OWN_CONFIG in options:
            options.config = find_config(options.config, serving=command in SERVING)
        serving = command in ("run", "announce")
        with _ended_like_by_the_keyboard(() if serving else (signal.SIGTERM, signal.SIGHUP)):
            status = int(options.run_command(options))
            print(end="", flush=True)  # where it goes to a file on a full disk, this is where that shows
            return status
    except ConfigError as error:
        for problem in error.problems:
            print(f"{signed}: {printable(problem)}", file=sys.stderr)
            for line in problem.excerpt if isinstance(problem, ConfigProblem) else ():
                print(f"  {line}", file=sys.stderr)
        return error.exit
    except RmbgdError as error:
        print(f"{signed}: {printable(_said(error))}", file=sys.stderr)
        return error.exit
    except KeyboardInterrupt as interrupt:
        return 128 + int(interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        _drop_output()  # its reader left (`rmbgd ... | head`)
        return Exit.FAILED
    except Exception as error:  # noqa: BLE001, what is left is a defect of ours, and says so
        # For the service every error of the system is one; all other commands work on paths that people name.
        if not serving and isinstance(error, OSError) and (error.filename or error.errno in REMEDIES):
            print(f"{signed}: {printable(explain(error))}", file=sys.stderr)
            if error.filename is None:
                _drop_output()
            return Exit.FAILED
        traceback.print_exc()
        print("rmbgd: this is a defect in rmbgd; please report the lines above", file=sys.stderr)
        return Exit.INTERNAL


def _said(error: RmbgdError) -> str:
    if not isinstance(error, LedgerFault):
        return str(error)
    return explain(error.__cause__) if isinstance(error.__cause__, OSError) else f"{error.path}: {error.detail}"


def _make_streams_usable() -> None:
    """Opens what was closed (`>&-`), and has names that the terminal's encoding lacks written as escapes.

    The next file opened would get the number of a closed stream, and with it what is meant for that.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            while (opened := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            setattr(sys, name, os.fdopen(opened, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # of a stream whose descriptor was exchanged below it
            sys.stdout.reconfigure(errors="backslashreplace")


def _say_what_there_is() -> int:
    """The short help of `rmbgd` alone."""
    parser = build_parser()
    parser.epilog = "see `rmbgd help VERB`"
    parser.print_help(sys.stderr)
    return Exit.USAGE


def _drop_output() -> None:
    """Keep the interpreter from flushing once more what nobody takes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _ended_like_by_the_keyboard(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Turn these signals into a KeyboardInterrupt that carries the number, so that temporary folders are removed.

    One that is ignored stays so (nohup). A second one changes nothing: timeout(1) sends each twice.
    """

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in numbers:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is interrupt:
                signal.signal(number, signal.SIG_DFL)


def build_parser(*commands: str | None) -> CommandParser:
    """The command line, with the options of `commands` only: `rmbgd --help` must not wait for the libraries of all."""
    fill = partial(textwrap.fill, width=shutil.get_terminal_size().columns - 2, subsequent_indent=" " * 7)
    statuses = "\n".join(fill(f"  {int(code):3}  {text}") for code, text in EXIT_TEXT.items())
    parser = CommandParser(
        prog="rmbgd",
        description="Removes the background of every image dropped into a folder.",
        epilog=f"exit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"rmbgd {__version__}")
    verbs = parser.add_subparsers(title="commands", dest="verb", metavar="VERB", required=True)
    for name, text in COMMANDS.items():
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name not in commands:
            continue
        if name == "run":
            add_config(sub)
            sub.set_defaults(run_command=run)
        elif name == "help":
            sub.add_argument("about", nargs="*", metavar="VERB", help="a command, such as once, or models fetch")
            sub.set_defaults(run_command=show_help)
        else:
            module = importlib.import_module(MODULES.get(name, f"rmbgd.cli.{name}"))
            module.add_arguments(sub)
            sub.set_defaults(run_command=module.run)
        if name == "run":
            described = "events as sentences or as JSON lines (default: sentences on a terminal and in the journal)"
            sub.add_argument("--log", choices=("auto", "json", "text"), default="auto", help=described)
    return parser


def show_help(options: argparse.Namespace) -> int:
    build_parser(*options.about[:1]).parse_args([*options.about, "--help"])
    return Exit.OK


def run(options: argparse.Namespace) -> int:
    from rmbgd.service import daemon

    return daemon.run(options.config, log_form=options.log)


def add_config(parser: argparse.ArgumentParser, *, json: bool = False) -> None:
    """Adds --config, which `main` replaces by what find_config answers."""
    text = "configuration file (default: $RMBGD_CONFIG, that of the running service, your own, /etc/rmbgd/rmbgd.toml)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    parser.set_defaults(**{OWN_CONFIG: True})
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def usage_error(command: str, error: ConfigError, *, prefix: str = "") -> int:
    """Prints what is wrong with options alone; `prefix` is what stands before each option's name in a file."""
    for problem in error.problems:
        said = printable(problem.removeprefix("command line: ").removeprefix(prefix))
        print(f"rmbgd {command}: {said}", file=sys.stderr)
    return Exit.USAGE
