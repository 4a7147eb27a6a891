"""`rmbgd once IN OUT`: a file or a folder, now, with a progress bar and a summary.

Reads options and shows what happens; the images are oneshot.py's.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from rmbgd.cli.options import printable
from rmbgd.config import load as config
from rmbgd.errors import ConfigError, Exit

# --- What a person sees of a one-shot run: a bar while it runs, a summary at its end. Decides nothing.


PROBLEMS_SHOWN = 20


class OnceView:
    """An Emit that moves a progress bar; any thread. Used as a context manager around the run."""

    def __init__(self, total: int, *, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,  # into a file or a pipe goes the summary alone
        )
        self._task = self._progress.add_task("loading the model", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: str, /, **keys: object) -> None:
        if event == "engine.started":
            self._progress.update(self._task, description=escape(f"on {keys['device']}"))
        elif event in ("image.done", "image.failed", "image.postponed"):
            self._progress.advance(self._task)
        elif event in ("engine.fault", "engine.failover", "storage.paused"):
            said = ", ".join(f"{key} {value}" for key, value in keys.items())
            self._progress.print(f"[yellow]{event}[/]: {escape(printable(said))}", soft_wrap=True)

    def sum_up(self, done: int, failed: int, skipped: int, seconds: float, problems: list[tuple[str, str]]) -> None:
        """Refused files with their reasons, then one line that says how it went."""
        for path, why in problems[:PROBLEMS_SHOWN]:
            self._console.print(f"[red]refused[/] {escape(printable(path))}: {escape(printable(why))}", soft_wrap=True)
        if len(problems) > PROBLEMS_SHOWN:
            self._console.print(f"... and {len(problems) - PROBLEMS_SHOWN} more")
        parts = [f"{done} done"]
        if failed:
            parts.append(f"[red]{failed} refused[/]")
        if skipped:
            parts.append(f"{skipped} skipped, as their output is there already (--overwrite makes them anew)")
        rate = f", {done / seconds:.1f} a second" if done > 1 and seconds > 0 else ""
        self._console.print(f"{', '.join(parts)}; {seconds:.1f} s{rate}", soft_wrap=True)


# --- `rmbgd once IN OUT`: a file or a folder, now, with a progress bar and a summary.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="an image, or a folder with images at any depth")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder; or, for one image, the file to write")
    parser.add_argument("--overwrite", action="store_true", help="make outputs anew that are there already")
    parser.add_argument("--json", action="store_true", help="every event as a line of JSON, instead of a progress bar")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take recipes, engine and directories from here")
    parser.add_argument("--recipe", default="default", metavar="NAME", help="a recipe of that file (default: default)")
    parser.add_argument("--device", metavar="DEVICE", help='"auto", "cpu", "cuda" or "cuda:N" (default: auto)')
    parser.add_argument("--models-dir", type=Path, metavar="FOLDER", help="where fetched models lie")
    recipe = parser.add_argument_group("recipe", "what comes out; each replaces a setting of the recipe")
    for name, field in config.Recipe.model_fields.items():
        _add_setting(recipe, name, field)


def _add_setting(group: Any, name: str, field: FieldInfo) -> None:
    """An option for one setting of the recipe; config.py judges the value, so that there is one rule for both."""
    flag = f"--{name.replace('_', '-')}"
    text = f"{field.description} (default: {field.default})".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        group.add_argument(flag, type=type(choices[0]), choices=choices, default=None, help=text)
    elif get_origin(field.annotation) is list:
        group.add_argument(flag, type=_words, default=None, metavar="A,B,...", help=text)
    else:
        group.add_argument(flag, default=None, metavar=name.rpartition("_")[2].upper(), help=text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def settings(options: argparse.Namespace) -> tuple[config.Config, config.Recipe]:
    """The configuration and the recipe that the options ask for. Raises ConfigError with every finding."""
    base = config.Config() if options.config is None else config.load(options.config)
    if options.recipe != "default" and options.recipe not in base.recipe:
        known = ", ".join(sorted({"default", *base.recipe}))
        raise ConfigError(f"no recipe '{options.recipe}'; there is {known}")
    recipe = base.recipe.get(options.recipe, config.Recipe())
    said = {name: value for name in config.Recipe.model_fields if (value := getattr(options, name)) is not None}
    tables: dict[str, Any] = {"recipe": {options.recipe: recipe.model_dump() | said}}
    tables["engine"] = base.engine.model_dump() | ({"device": options.device} if options.device else {})
    tables["service"] = base.service.model_dump() | (
        {"models_directory": options.models_dir.absolute()} if options.models_dir else {}
    )
    wanted = config.parse(tables, origin="command line")
    return wanted, wanted.recipe[options.recipe]


def run(options: argparse.Namespace) -> int:
    from rmbgd.service import oneshot
    from rmbgd.telemetry.captured_output import StderrCapture
    from rmbgd.telemetry.log import ConsoleWriter, EventLog

    try:
        wanted, recipe = settings(options)
    except ConfigError as error:
        if options.config is not None:
            raise
        for problem in error.problems:  # nothing but the command line can be wrong
            print(f"rmbgd once: {problem.removeprefix('command line: recipe.default.')}", file=sys.stderr)
        return Exit.USAGE
    view = OnceView(len(oneshot.sources_of(options.source)[1]))
    log = EventLog(None, ConsoleWriter(descriptor=1)) if options.json else None
    with log or nullcontext():
        emit = log.emit if log else view
        with StderrCapture(emit), nullcontext() if log else view:
            summary = oneshot.once(
                options.source,
                options.output,
                recipe,
                engine=wanted.engine,
                service=wanted.service,
                emit=emit,
                overwrite=options.overwrite,
            )
    if log is None:
        view.sum_up(summary.done, summary.failed, summary.skipped, summary.seconds, summary.problems)
    return Exit.FAILED if summary.failed else Exit.OK
