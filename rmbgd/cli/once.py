"""`rmbgd once IN OUT`: processes a file or a folder now, with a progress bar and a summary."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from rmbgd.cli.main import printable, usage_error
from rmbgd.config.load import Config, overlay
from rmbgd.config.settings import Recipe
from rmbgd.errors import ConfigError, Exit
from rmbgd.events import Emit
from rmbgd.models import licences, store

PROBLEMS_SHOWN = 20
NUMBERS: dict[object, Callable[[str], object]] = {int: int, float: float}  # everything else is text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="an image, or a folder with images at any depth")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder; or, for one image, the file to write")
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing outputs")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, without progress bar")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take recipes, engine and directories from here")
    parser.add_argument("--recipe", default="default", metavar="NAME", help="a recipe of that file (default: default)")
    parser.add_argument("--device", metavar="DEVICE", help='"auto", "cpu", "cuda" or "cuda:N" (default: auto)')
    parser.add_argument("--models-dir", type=Path, metavar="FOLDER", help="directory of fetched models")
    group = parser.add_argument_group("recipe", "what comes out; each replaces a setting of the recipe")
    for name, field in Recipe.model_fields.items():  # values are checked with the settings, so that there is one rule
        text = f"{field.description} (default: {field.default})".replace("%", "%%")
        add = partial(group.add_argument, f"--{name.replace('_', '-')}", default=None, help=text)
        if field.annotation is bool:
            add(action=argparse.BooleanOptionalAction)
        elif get_origin(field.annotation) is Literal:
            choices = get_args(field.annotation)
            add(type=type(choices[0]), choices=choices)
        elif get_origin(field.annotation) is list:
            add(type=lambda text: [word for part in text.split(",") if (word := part.strip())], metavar="A,B,...")
        else:
            add(type=NUMBERS.get(field.annotation, str), metavar=name.rpartition("_")[2].upper())


def settings(options: argparse.Namespace) -> tuple[Config, Recipe]:
    """The configuration and the recipe that the options ask for. Raises ConfigError with every problem."""
    asked = {
        "recipe": {name: getattr(options, name) for name in Recipe.model_fields},
        "engine": {"device": options.device},
        "service": {"models_directory": options.models_dir and options.models_dir.absolute()},
    }
    return overlay(options.config, options.recipe, ("engine", "service"), asked)


def run(options: argparse.Namespace) -> int:
    from rmbgd.service import oneshot
    from rmbgd.telemetry.captured_output import StderrCapture
    from rmbgd.telemetry.log import ConsoleWriter, EventLog

    try:
        config, recipe = settings(options)
    except ConfigError as error:
        if options.config is not None:
            raise
        return usage_error("once", error, prefix="recipe.default.")
    total = len(oneshot.sources_of(options.source)[1])
    models = config.service.models_directory
    if (entry := store.resolve(recipe.model, models).entry) is not None:  # where this user may not look, it says so
        licences.require(entry, models)
    console = Console(highlight=False)
    with ExitStack() as stack:
        if options.json:
            emit: Emit = stack.enter_context(EventLog(None, ConsoleWriter(descriptor=1))).emit
        else:
            emit = stack.enter_context(progress(console, total))
        stack.enter_context(StderrCapture(emit))
        paths = options.source, options.output
        summary = oneshot.once(
            *paths, recipe, engine=config.engine, service=config.service, emit=emit, overwrite=options.overwrite
        )
    if not options.json:
        sum_up(console, **asdict(summary))
    return Exit.FAILED if summary.failed else Exit.OK


@contextmanager
def progress(console: Console, total: int) -> Iterator[Emit]:
    """A bar that follows the events given to the Emit, from any thread; only on a terminal. Shows faults at once."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("loading the model", total=total)

        def emit(event: str, /, **keys: object) -> None:
            if event == "engine.started":
                bar.update(task, description=escape(f"on {keys['device']}"))
            elif event in ("image.done", "image.failed", "image.postponed"):
                bar.advance(task)
            elif event in ("engine.fault", "engine.failover", "storage.paused"):
                text = ", ".join(f"{key} {value}" for key, value in keys.items())
                bar.print(f"[yellow]{event}[/]: {escape(printable(text))}", soft_wrap=True)

        yield emit


def sum_up(
    console: Console, *, done: int, failed: int, skipped: int, seconds: float, problems: list[tuple[str, str]]
) -> None:
    for path, why in problems[:PROBLEMS_SHOWN]:
        console.print(f"[red]refused[/] {escape(printable(path))}: {escape(printable(why))}", soft_wrap=True)
    if len(problems) > PROBLEMS_SHOWN:
        console.print(f"... and {len(problems) - PROBLEMS_SHOWN} more")
    parts = [f"{done} done"]
    if failed:
        parts.append(f"[red]{failed} refused[/]")
    if skipped:
        parts.append(f"{skipped} skipped, as their output exists (--overwrite replaces it)")
    rate = f", {done / seconds:.1f} a second" if done > 1 and seconds > 0 else ""
    console.print(f"{', '.join(parts)}; {seconds:.1f} s{rate}", soft_wrap=True)
