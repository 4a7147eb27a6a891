"""Command-line parser: an error is one usage line and one line that says what is wrong and what was probably meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from rmbgd.wording import did_you_mean

# argparse's texts that reach users, in our words.
WORDINGS = (
    (r"^argument ", ""),
    (r"invalid \w+ value: (.*)", r"\1 is not a number"),
    (r"expected (one|at least one) argument", "a value is missing"),
    (r"ignored explicit argument .*", "takes no value"),
    (r"the following arguments are required: (.*)", r"missing: \1"),
)


class CommandParser(argparse.ArgumentParser):
    """Adds suggestions, short usage lines, and errors of the system while it prints. Its commands get the same class.

    `error` leaves with status 2; `--help` raises OSError where it cannot be printed, which argparse hides.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | settings)
        self._words: list[str] = []
        self.take_rest: Callable[[argparse.Namespace, list[str]], list[str]] = lambda _, words: words
        """Gets what is parsed and the words that are left; answers those that it cannot use. A command may set it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """No word is left to the parser above, which knows another usage."""
        self._words = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown := self.take_rest(found, unknown):
            word = next((each for each in unknown if each.startswith("-")), unknown[0])
            self.error(self._no_option(word) if word.startswith("-") else f"one word too many: '{word}'")
        return found, []

    def _no_option(self, word: str) -> str:
        name = word.partition("=")[0]
        return f"there is no option '{name}'{suggestion(name, self._option_string_actions)}"

    def _wrong_option(self) -> str | None:
        """The first word that looks like an option of this parser and is none; those behind a verb are the verb's."""
        for word in self._words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return None
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                return word
        return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if (wrong := self._wrong_option()) is not None:
            hint = "" if self._subparsers is None else "; options follow the verb"
            raise argparse.ArgumentError(None, self._no_option(wrong) + hint)
        known = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001, argparse has no public name for it
            listed = "" if (meant := suggestion(value, known)) else f"; there are {_listed(known)}"
            raise argparse.ArgumentError(None, f"there is no verb '{value}'{meant or listed}")
        raise argparse.ArgumentError(action, f"'{value}' is not {_listed(known, 'or')}{suggestion(value, known)}")

    def error(self, message: str) -> NoReturn:
        if "required" in message and (wrong := self._wrong_option()) is not None:
            message = self._no_option(wrong)
        for theirs, ours in WORDINGS:
            message = re.sub(theirs, ours, message)
        message += " See" if message.endswith("?") else "; see"
        self.exit(2, f"{self.format_usage()}{self.prog}: {message} `{self.prog} --help`\n")

    def format_usage(self) -> str:
        """One line: options are listed below it, or by --help."""
        formatter = self._get_formatter()
        formatter.add_usage(None, [each for each in self._actions if not each.option_strings], [], prefix="")
        _, _, positionals = " ".join(formatter.format_help().split()).partition(self.prog)
        return f"usage: {self.prog} [OPTION]...{positionals}\n"

    def format_help(self) -> str:
        self.usage = self.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
        return super().format_help()

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        print(end="", flush=True)
        super().exit(status, message)


def between(least: float, most: float) -> Callable[[str], float]:
    """The type of an option: a number within bounds, and a whole one where the bounds are."""

    def number(word: str) -> float:
        if not least <= (value := type(least)(word)) <= most:
            raise argparse.ArgumentTypeError(f"'{word}' is not between {least:g} and {most:g}")
        return value

    return number


def suggestion(word: str, known: Iterable[str]) -> str:
    near = did_you_mean(word, [each for each in known if len(each) > 2])
    return near and f"; {near}"


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))
