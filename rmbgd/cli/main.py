"""The `rmbgd` command: finds the verb, hands over to its module, and turns what comes back into an exit status.

Has no logic of its own. Only the chosen verb's module is imported, so that `rmbgd --help` does not wait for libraries.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from rmbgd import __version__
from rmbgd.errors import EXIT_TEXT, ConfigError, Exit, RmbgdError

# verb -> (module, what it does). A verb's module has add_arguments(parser) and run(options) -> int.
VERBS: dict[str, tuple[str, str]] = {
    "run": ("rmbgd.cli.run", "the service: watch the folders until told to stop"),
    "once": ("rmbgd.cli.once", "a file or a folder, now, with a progress bar"),
    "check": ("rmbgd.cli.check", "tell everything that is wrong with a configuration"),
    "status": ("rmbgd.cli.status", "what the running service is doing"),
    "doctor": ("rmbgd.cli.doctor", "what the service needs on this machine, and whether it is there"),
    "models": ("rmbgd.cli.models", "list, fetch and inspect models"),
    "mtbf": ("rmbgd.mtbf.command", "mean time between failures from the event log"),
    "bench": ("rmbgd.cli.bench", "images a second on this machine"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns one of exitcodes.Exit; argparse itself leaves with 0 or 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verb = next((word for word in arguments if not word.startswith("-")), None)
    try:
        module, options = _parse(verb, arguments)
        return int(module.run(options))
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
        # The reader of our output has had enough (`rmbgd ... | head`): keep the interpreter from flushing to nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception:  # noqa: BLE001, the last door: whatever is left is a defect of ours, and says so
        traceback.print_exc()
        print("rmbgd: this is a defect in rmbgd; the lines above tell its maintainers where", file=sys.stderr)
        return Exit.INTERNAL


def _parse(verb: str | None, arguments: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    statuses = "\n".join(f"  {int(code):3}  {text}" for code, text in EXIT_TEXT.items())
    parser = argparse.ArgumentParser(
        prog="rmbgd",
        description="Removes the background of every image dropped into a folder.",
        epilog=f"exit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rmbgd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    module = None
    for name, (path, text) in VERBS.items():
        if not _exists(path):
            continue
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        if name == verb:
            module = importlib.import_module(path)
            module.add_arguments(sub)
    options = parser.parse_args(arguments)
    assert module is not None  # argparse has left before, when there was no verb that it knows
    return module, options


def _exists(path: str) -> bool:
    """Whether the module is there, without importing it."""
    place = os.path.join(os.path.dirname(os.path.dirname(__file__)), *path.split(".")[1:])
    return os.path.exists(f"{place}.py") or os.path.exists(os.path.join(place, "__init__.py"))


if __name__ == "__main__":
    sys.exit(main())
