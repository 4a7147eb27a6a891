"""`rmbgd completion`: prints the completion script of a shell, made by shtab from the parser of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rmbgd.cli.main import COMMANDS, build_parser
from rmbgd.errors import Exit, missing_extra

SHELLS = ("bash", "zsh", "tcsh")
ABOUT = """\
to use it, also after upgrades:
  bash  eval "$(rmbgd completion bash)" in ~/.bashrc
  zsh   rmbgd completion zsh >~/.zfunc/_rmbgd, with fpath+=~/.zfunc before compinit in ~/.zshrc
  tcsh  rmbgd completion tcsh >~/.rmbgd.tcsh, with source ~/.rmbgd.tcsh in ~/.tcshrc
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = ABOUT, argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or tcsh")


def run(options: argparse.Namespace) -> int:
    """Raises ConfigError where shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise missing_extra("shtab", "completion", "completion") from None
    parser = build_parser(*COMMANDS)
    for action in actions_of(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar == "FOLDER" else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return Exit.OK


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of all below it."""
    for action in parser._actions:  # noqa: SLF001, argparse has no public list
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001, likewise
            for each in action.choices.values():
                yield from actions_of(each)
