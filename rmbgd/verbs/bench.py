"""`rmbgd bench`: what this machine does with a model and with pictures like the operator's.

Reads options and says what was found; the measuring is the package rmbgd.bench's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from rmbgd import config
from rmbgd.errors import ConfigError
from rmbgd.exitcodes import Exit
from rmbgd.health import lines
from rmbgd.verbs.benchview import BenchView

PRECISIONS = get_args(config.EngineSettings.model_fields["precision"].annotation)
ABOUT = """\
For --seconds, batches of each size go through the engine's process (the service's own: arena, worker, child), one at
a time. Then for as long files go through the whole line, as fast as it takes them: read, decode, engine, encode, sync
and rename into a temporary folder. Starting, and the first batches of each size, are not counted.

exit status:
    0  measured
    1  the device failed while it was measured, or a picture did not come out
    2  the command line was wrong
   78  no such GPU, no such model, no picture to measure with, or the configuration cannot be used
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = ABOUT, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="MODEL", help="a name of `rmbgd models list`, or a path (default: u2netp)")
    parser.add_argument(
        "--device", metavar="DEVICE", help='"auto", "cpu", "cuda" (the first) or "cuda:N" (default: auto)'
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network's arithmetic (default: auto)")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="JPEG and PNG files (default: drawn, 1024 x 1024)",
    )
    parser.add_argument("--seconds", type=_seconds, default=20.0, metavar="S", help="per half (default: 20)")
    parser.add_argument(
        "--batch", type=_sizes, metavar="LIST", help="sizes such as 1,2,4 (default: what the engine offers)"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="on the disk that shall be measured (default: the system's)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take recipe, engine, threads and directories from here"
    )
    parser.add_argument("--recipe", default="default", metavar="NAME", help="a recipe of that file (default: default)")
    parser.add_argument("--models-dir", type=Path, metavar="FOLDER", help="where fetched models lie")
    parser.add_argument("--json", action="store_true", help="the JSON line alone, for programs")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: from 0.1 to 3600 seconds")
    return value


def _sizes(text: str) -> list[int]:
    from rmbgd.bench.run import SIZES

    try:
        sizes = sorted({int(word) for word in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or not set(sizes) <= set(SIZES):
        raise argparse.ArgumentTypeError(f"{text}: a list of {', '.join(map(str, SIZES))}, such as 1,2,4")
    return sizes


def settings(options: argparse.Namespace) -> tuple[config.Config, config.Recipe]:
    """The configuration and the recipe that are measured. Raises ConfigError with every finding."""
    base = config.Config() if options.config is None else config.load(options.config)
    if options.recipe != "default" and options.recipe not in base.recipe:
        raise ConfigError(f"no recipe '{options.recipe}'; there is {', '.join(sorted({'default', *base.recipe}))}")
    recipe = base.recipe.get(options.recipe, config.Recipe())
    said: dict[str, Any] = {"device": options.device, "precision": options.precision}
    tables: dict[str, Any] = base.model_dump(exclude={"recipe", "folder"})
    tables["recipe"] = {options.recipe: recipe.model_dump() | ({"model": options.model} if options.model else {})}
    tables["engine"] |= {name: value for name, value in said.items() if value}
    if options.models_dir:
        tables["service"]["models_directory"] = options.models_dir.absolute()
    if options.batch:
        tables["pipeline"]["batch_maximum"] = options.batch[-1]
    wanted = config.parse(tables, origin="command line")
    return wanted, wanted.recipe[options.recipe]


def run(options: argparse.Namespace) -> int:
    from rmbgd.bench import run as bench

    try:
        wanted, recipe = settings(options)
    except ConfigError as error:
        if options.config is not None:
            raise
        for problem in error.problems:  # nothing but the command line can be wrong
            print(f"rmbgd bench: {problem.removeprefix('command line: ')}", file=sys.stderr)
        return Exit.USAGE
    machine = bench.default_machine()
    with BenchView(quiet=options.json) as view:
        view.step("looking for the device")
        job = bench.prepared(
            wanted,
            recipe,
            machine,
            folder=options.pictures,
            sizes=options.batch,
            seconds=options.seconds,
            scratch=options.scratch,
        )
        result = bench.measure(job, machine, view.step)
    if not options.json:
        view.show(job, result)
    print(lines.to_json(bench.to_json(job, result)))
    return Exit.OK
