"""`rmbgd once IN... OUT`: processes files and folders now, with a line for each result and a summary."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, get_args, get_origin

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from rmbgd import naming as names
from rmbgd.cli.main import usage_error
from rmbgd.cli.parser import CommandParser
from rmbgd.config.load import Config, overlay
from rmbgd.config.settings import MEBI, Recipe, percent
from rmbgd.errors import ConfigError, Exit, explain
from rmbgd.events import Emit
from rmbgd.models import licences, store
from rmbgd.naming import FILM_EXTENSIONS, FORMATS
from rmbgd.service.destination import STANDARD, STDIN, STDOUT, RunPlan, Summary, plan
from rmbgd.wording import VERDICTS, printable

NAMES_SHOWN = 3  # of images without a subject, in the summary
ABOUT_MODEL = ("model", "patch_order", "model_sha256")
SETTINGS = [name for name in Recipe.model_fields if name not in ("deliver", "review_below")]  # those an option can say


def number(text: str) -> Any:
    """Raises ValueError."""
    share = percent(text)
    return float(text) if share is text else share


NUMBERS: dict[object, Callable[[str], object]] = {int: int, float: number}  # everything else is text


def add_arguments(parser: CommandParser) -> None:
    about = "an image or a film, a folder with some at any depth, or - for standard input"
    parser.add_argument("source", nargs="+", metavar="IN", help=about)
    films = ", ".join(FILM_EXTENSIONS.values())
    about = f"a folder; for one image also a file ({', '.join(FORMATS)}; of a film {films}), or - for standard output"
    parser.add_argument("output", metavar="OUT", help=about)
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing outputs")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what is rejected")
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, and nothing else")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take recipes, engine and directories from here")
    parser.add_argument("--recipe", default="default", metavar="NAME", help="a recipe of that file (default: default)")
    recipe = parser.add_argument_group("output", "what comes out; each option replaces a setting of the recipe")
    model = parser.add_argument_group("model", "what computes it, and where")
    for name in sorted(SETTINGS, key=lambda name: name in ABOUT_MODEL):
        _add_setting(model if name in ABOUT_MODEL else recipe, name)
    model.add_argument("--models-dir", type=Path, metavar="FOLDER", help="directory of fetched models")
    about = 'device to compute on: "auto", "cpu", "cuda" or "cuda:N" (default: auto)'
    model.add_argument("--device", metavar="DEVICE", help=about)
    parser.take_rest = _paths_anywhere


def _add_setting(group: argparse._ArgumentGroup, name: str) -> None:
    """Values are checked with the settings, so that there is one rule."""
    field = Recipe.model_fields[name]
    shown = ", ".join(field.default) if isinstance(field.default, list) else str(field.default)
    if field.annotation is bool:
        shown = "yes" if field.default else "no"
    text = f"{field.description}" + (f" (default: {shown})" if shown else "")
    add = partial(group.add_argument, f"--{name.replace('_', '-')}", default=None, help=text.replace("%", "%%"))
    if field.annotation is bool:
        add(action=argparse.BooleanOptionalAction)
    elif get_origin(field.annotation) is Literal:
        choices = get_args(field.annotation)
        add(type=type(choices[0]), choices=choices)
    elif get_origin(field.annotation) is list:
        entry: Callable[[str], object] = str if shown else number  # names, or shares
        add(type=lambda text: [entry(word) for part in text.split(",") if (word := part.strip())], metavar="A,B,...")
    else:
        add(type=NUMBERS.get(field.annotation, str), metavar=name.rpartition("_")[2].upper())


def _paths_anywhere(found: argparse.Namespace, left: list[str]) -> list[str]:
    """Lets options stand between the paths: argparse takes paths from the first place only where there are some."""
    if not left or any(word.startswith("-") and word != STANDARD for word in left):
        return left
    paths = [*found.source, found.output, *left]
    found.source, found.output = paths[:-1], paths[-1]
    return []


def settings(options: argparse.Namespace, form: str | None = None, film: str | None = None) -> tuple[Config, Recipe]:
    """The configuration and the recipe that the options ask for, in format `form`, films in `film`, where they say
    nothing of it. Raises ConfigError with every problem."""
    asked = {
        "recipe": {name: getattr(options, name) for name in SETTINGS},
        "engine": {"device": options.device},
        "service": {"models_directory": options.models_dir and options.models_dir.absolute()},
    }
    asked["recipe"] |= {"format": options.format or form, "film": options.film or film}
    return overlay(options.config, options.recipe, ("engine", "service"), asked)


def run(options: argparse.Namespace) -> int:
    standard = STANDARD in (*options.source, options.output)
    with tempfile.TemporaryDirectory(prefix="rmbgd-once-") if standard else nullcontext() as scratch:
        return _run(options, None if scratch is None else Path(scratch))


def _run(options: argparse.Namespace, scratch: Path | None) -> int:
    try:
        check_standard(options.source, options.output)
        found = plan(options.source, options.output, scratch=scratch, asked=options.format, asked_film=options.film)
    except ConfigError as error:
        return usage_error("once", error)
    except OSError as error:
        return _cannot("read", error)
    try:
        config, recipe = settings(options, found.format, found.film)
    except ConfigError as error:
        if options.config is not None:
            raise
        return usage_error("once", error, prefix="recipe.default.")
    resolved = config.resolved(options.recipe)
    if found.single is not None and resolved.makes_several:
        return usage_error("once", ConfigError("the recipe makes several files of an image; name a folder for them"))
    if resolved.of_images_alone and found.images and all(names.is_film(image.path) for image in found.images):
        text = f"films cannot have {resolved.of_images_alone[0]}; leave it out"
        return usage_error("once", ConfigError(text))
    try:
        found.outputs(names.EXTENSIONS[resolved.format], FILM_EXTENSIONS[resolved.film])
    except ConfigError as error:
        return usage_error("once", error)
    models = config.service.models_directory
    if (entry := store.resolve(recipe.model, models).entry) is not None:  # where this user may not look, it says so
        licences.require(entry, models)
    if scratch is not None and STANDARD in options.source and not _take_input(scratch, config.limits.file_bytes):
        print("rmbgd once: nothing came on standard input", file=sys.stderr)
        return Exit.FAILED
    if not (found.images or found.unread or options.json):
        print(f"no files in {printable(', '.join(options.source))}")
        return Exit.OK
    try:
        failed = _work(options, found, config, recipe)
    except OSError as error:
        return _cannot("write to" if error.filename and os.path.lexists(error.filename) else "create", error)
    if scratch is not None and options.output == STANDARD and not failed:
        failed = not _give_output(scratch)
    return Exit.FAILED if failed else Exit.OK


def check_standard(sources: Sequence[str], output: str) -> None:
    """Raises ConfigError where a person sits at what should be a pipe or a file, or nobody is."""
    if STANDARD in sources and sys.stdin is not None and sys.stdin.isatty():
        raise ConfigError("standard input is a terminal; pipe an image into it, or name a file")
    if output == STANDARD and sys.__stdout__ is None:
        raise ConfigError("standard output is closed; write > FILE behind the command, or name a file as OUT")
    if output == STANDARD and sys.stdout is not None and sys.stdout.isatty():
        raise ConfigError("standard output is a terminal; write > FILE behind the command, or name a file as OUT")


def _take_input(scratch: Path, most: int) -> int:
    """How many bytes came on standard input; of an endless one, one more than an image may have."""
    taken = 0
    with (scratch / STDIN).open("wb") as file:
        while sys.stdin is not None and taken <= most and (data := os.read(0, min(MEBI, most + 1 - taken))):
            taken += file.write(data)
    return taken


def _give_output(scratch: Path) -> bool:
    try:
        with (scratch / STDOUT).open("rb") as file, open(os.dup(1), "wb") as out:
            shutil.copyfileobj(file, out)
    except OSError as error:
        left = "its reader left before it had the whole cutout"
        why = left if isinstance(error, BrokenPipeError) else explain(error)
        print(f"rmbgd once: cannot write to standard output: {why}", file=sys.stderr)
        return False
    return True


def _cannot(what: str, error: OSError) -> int:
    if error.filename is None:
        raise error
    print(f"rmbgd once: cannot {what} {printable(explain(error))}", file=sys.stderr)
    return Exit.FAILED


def _work(options: argparse.Namespace, found: RunPlan, config: Config, recipe: Recipe) -> int:
    """How many images failed."""
    from rmbgd.service import oneshot
    from rmbgd.telemetry.captured_output import StderrCapture
    from rmbgd.telemetry.log import ConsoleWriter, EventLog

    summary = Summary()
    with ExitStack() as stack:
        descriptor, file = 1, None
        if options.output == STANDARD:  # the true standard error: StderrCapture makes another of descriptor 2
            descriptor = os.dup(2)
            file = stack.enter_context(open(descriptor, "w", encoding="utf-8", errors="backslashreplace"))
        console = Words(file)
        try:
            with ExitStack() as inner:
                if options.json:
                    writer = ConsoleWriter(descriptor=descriptor)
                    emit: Emit = inner.enter_context(EventLog(None, writer)).emit
                else:
                    emit = inner.enter_context(progress(console, found, quiet=options.quiet))
                inner.enter_context(StderrCapture(emit))
                oneshot.once(
                    found,
                    recipe,
                    engine=config.engine,
                    service=config.service,
                    presets=config.preset,
                    emit=emit,
                    overwrite=options.overwrite,
                    summary=summary,
                )
        except KeyboardInterrupt:
            if summary.total and not options.json:
                again = "" if options.overwrite else "; run it again to go on"
                failed = f", {summary.failed} rejected" if summary.failed else ""
                console.say(f"interrupted: {summary.done} done{failed}, {summary.left} left{again}")
            raise
        if not options.json and (summary.failed or not options.quiet):
            sum_up(console, summary)
        if console.lost is not None:
            raise console.lost
    return summary.failed


class Words(Console):
    """A console that loses its words where nobody takes them (a closed pipe, a full disk): the images go on."""

    def __init__(self, file: IO[str] | None, **options: Any) -> None:
        super().__init__(file=file, highlight=False, emoji=False, **options)
        self.lost: OSError | None = None  # the first; set by any thread, read when they have ended

    def say(self, text: str) -> None:
        try:
            self.print(text, soft_wrap=True)
        except OSError as error:
            self._lose(error)

    def on_broken_pipe(self) -> None:
        self._lose(BrokenPipeError())

    def _lose(self, error: OSError) -> None:
        self.lost, self.quiet = self.lost or error, True


@contextmanager
def progress(console: Words, found: RunPlan, *, quiet: bool = False) -> Iterator[Emit]:
    """Words for the events given to the Emit, from any thread: a line for each result as it comes, faults at once, and
    on a terminal a bar below."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("loading the model", total=len(found.images))
        films: dict[int, TaskID] = {}  # by job

        def emit(event: str, /, **keys: Any) -> None:
            if event == "engine.started":
                bar.update(task, description=escape(f"on {keys['device']}"))
            elif event == "film.started":
                if keys["job"] in films:  # its process was lost
                    bar.remove_task(films[keys["job"]])
                films[keys["job"]] = bar.add_task(escape(printable(keys["path"])), total=keys["frames"])
            elif event == "film.progress":
                bar.update(films[keys["job"]], completed=keys["frames"], refresh=True)
            elif event in ("image.done", "image.failed", "image.postponed"):
                if keys.get("job") in films:
                    bar.remove_task(films.pop(keys["job"]))
                bar.advance(task)
                if event != "image.done":
                    why = f"{keys['reason']} ({keys['detail']})" if "reason" in keys else str(keys["detail"])
                    console.say(rejected(keys["path"], why))
                elif not quiet:
                    console.say(escape(printable(result(keys, found.shown_output(keys["output"])))))
            elif event in ("engine.fault", "engine.failover"):  # a full disk is in the line of each image
                text = ", ".join(f"{key} {value}" for key, value in keys.items())
                console.say(f"[yellow]{event}[/]: {escape(printable(text))}")

        yield emit


def result(keys: Mapping[str, Any], output: str) -> str:
    """One line for an image.done. Seconds from the first byte read to the cutout in its place, but for what it waited
    for other images of the run."""
    spent = keys["milliseconds"]
    seconds = (spent["total"] - spent.get("wait", 0.0) - spent.get("queue", 0.0)) / 1000
    facts = f"{keys['width']}x{keys['height']}, {keys['model']} on {keys['device']}, {seconds:.1f} s"
    verdict = "".join(f": {text}" for word, text in VERDICTS.items() if word == keys["verdict"])
    return f"{keys['path']} -> {output} ({facts}){verdict}"


def rejected(path: str, why: str) -> str:
    return f"[red]rejected[/] {escape(printable(path))}: {escape(printable(why))}"


def sum_up(console: Words, summary: Summary) -> None:
    for path, why in summary.problems:
        console.say(rejected(path, why))
    done = f"{summary.done} done"
    if summary.empty:
        more = len(summary.empty) - NAMES_SHOWN
        shown = sorted(summary.empty)[:NAMES_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        done += f" ({len(summary.empty)} without a subject: {escape(printable(', '.join(shown)))})"
    parts = [done]
    if summary.failed:
        parts.append(f"[red]{summary.failed} rejected[/]")
    if summary.skipped:
        parts.append(f"{summary.skipped} skipped, as their output exists (--overwrite replaces it)")
    rate = f", {summary.done / summary.seconds:.1f} a second" if summary.done > 1 and summary.seconds > 0 else ""
    console.say(f"{', '.join(parts)}; {summary.seconds:.1f} s{rate}")
