"""`rmbgd check`: every problem of a configuration, its folders, models and the service's directories, at once."""

from __future__ import annotations

import argparse
import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rmbgd.access_rights import CHANGE, acting_as, groups_of, user_name, whose
from rmbgd.cli.main import add_config
from rmbgd.config.layout import folders_in_use, layout_problems, missing_folders
from rmbgd.config.load import Config, examine, read
from rmbgd.config.problems import NOTATION, Mistake
from rmbgd.config.toml_places import Location
from rmbgd.doctor.checks import USER, CheckState, memory, missing_gpu
from rmbgd.doctor.folders import CAUSES, refusals, service_user, why_unusable
from rmbgd.doctor.unit import check_unit
from rmbgd.errors import ConfigError, ConfigProblem, Exit, LedgerFault, explain
from rmbgd.models import checkpoint, licences, store
from rmbgd.mounts import is_mounted
from rmbgd.paths import DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
from rmbgd.service.unit_files import default_configuration
from rmbgd.store.copies import connect
from rmbgd.store.ledger_lock import LEDGER
from rmbgd.store.opening import known_schema
from rmbgd.store.refusals import ledger_faults, refusal
from rmbgd.telemetry.jsonl import to_json

CREATE = "`rmbgd check --create`"
BY_THE_UNIT = {DEFAULT_STATE_DIRECTORY, DEFAULT_RUNTIME_DIRECTORY}  # made at each start; others by the service
SHARED, OWN = 0o755, 0o750  # modes of what --create makes


@dataclass(slots=True)
class Report:
    """`made` and `notes` are lines for people: what --create did, and what is no problem but should be known."""

    file: Path
    folders: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, json=True)
    add = parser.add_argument
    add("--print-default", action="store_true", help="print the commented default configuration instead")
    add("--create", action="store_true", help="make the folders and directories that are missing, then check")


def run(options: argparse.Namespace) -> int:
    """Raises ConfigError with every problem, unless they are asked for as JSON."""
    if options.print_default:
        print(default_configuration(), end="")
        return Exit.OK
    report = check(options.config, create=options.create)
    if options.json:
        print(to_json(_plain(report)))
        return Exit.CONFIGURATION if report.problems else Exit.OK
    for line in [*report.made, *report.notes]:
        print(line)
    if report.problems:
        raise ConfigError(report.problems)
    print(f"{report.file}: fine; folders: {', '.join(report.folders)}")
    return Exit.OK


def _plain(report: Report) -> dict[str, object]:
    unplaced = dict.fromkeys(("file", "line", "column", "table", "setting"))
    problems = [
        problem.parts if isinstance(problem, ConfigProblem) else unplaced | {"file": report.file, "problem": problem}
        for problem in report.problems
    ]
    lists = {"folders": report.folders, "made": report.made, "notes": report.notes}
    return {"file": report.file, "ok": not problems, "problems": problems, **lists}


def check(path: Path, *, create: bool) -> Report:
    report = Report(path)
    try:
        file = read(path)
    except ConfigError as error:
        report.problems += error.problems
        return report
    config, mistakes = examine(file.tables)
    report.folders += config.root_names
    for each in config.adjusted:
        report.notes.append(
            f"{path}: {each['setting']} = {each['configured']} is read as {each['used']}: {each['why']}"
        )
    user = service_user(config)
    if create and (mistakes or list(layout_problems(config))):
        report.notes.append("nothing was made: a path may be among the settings to correct")
    elif create:
        mistakes += _create(config, user, report.made)
    settings = {mistake.location for mistake in mistakes} - {()}  # what they say need not be looked at any more
    for mistake in _survey(config, path, user, report.notes):
        if not any(mistake.location[: len(each)] == each for each in settings):
            mistakes.append(mistake)
            settings |= {mistake.location} - {()}
    report.problems += file.problems(mistakes)
    return report


def _survey(config: Config, path: Path, user: int | None, notes: list[str]) -> Iterator[Mistake]:
    if not config.folder and not config.bucket:
        yield Mistake((), f"no [[folder]] is defined, so there is nothing to do; {NOTATION}")
    yield from layout_problems(config)
    absent = [(place, path) for place, path, _ in _directories(config, notes) if _is_missing(path)]
    them = "it" if len(absent) == 1 else f"the {len(absent)} that are missing"
    yield from (Mistake(place, f"{path} does not exist ({CREATE} makes {them})") for place, path in absent)
    yield from _tried(config, user, notes)
    yield from missing_folders(config)
    for number, holder in folders_in_use(config).items():
        text = f"{holder} claims from it now; stop one of the two services, or give each its own input"
        yield Mistake(("folder", number, "input"), text)
    if gpu := missing_gpu(config):
        yield Mistake(("engine", "device"), gpu)
    for result in (memory(config), *check_unit(config, path)):  # what only warns is `rmbgd doctor`'s
        if result.state is CheckState.FAIL:
            yield Mistake((), "; ".join(filter(None, (f"{result.need}: {result.text}", result.hint))))


def _directories(config: Config, notes: list[str]) -> Iterator[tuple[Location, Path, int]]:
    """(setting, path, mode) of each that must be there; the service makes its own, where it may."""
    for number, folder in enumerate(config.folder):
        for role in ("input", "output", "done", "failed", "review"):
            path = getattr(folder, role)
            if role == "input" and path is not None and folder.require_mount and not is_mounted(str(path)):
                notes.append(f"{path}: nothing is mounted there now; the service waits for it")
            elif path is not None and (role != "done" or folder.originals == "archive"):
                yield ("folder", number, role), path, SHARED


def _own(config: Config) -> Iterator[tuple[Location, Path, int]]:
    service = config.service
    yield ("service", "state_directory"), service.state_directory, OWN
    yield ("service", "runtime_directory"), service.runtime_directory, OWN
    if service.log_file is not None:
        yield ("service", "log_file"), service.log_file.parent, OWN
    if config.health.metrics_file is not None:
        yield ("health", "metrics_file"), config.health.metrics_file.parent, SHARED


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _create(config: Config, user: int | None, made: list[str]) -> Iterator[Mistake]:
    models = ("service", "models_directory"), config.service.models_directory, SHARED
    gives = bool(user) and os.geteuid() == 0
    for location, path, mode in [*_directories(config, []), *_own(config), models]:
        if not _is_missing(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=mode)
            if user and gives:
                os.chown(path, user, groups_of(user)[0])
        except OSError as error:
            yield Mistake(location, f"cannot be made: {explain(error)}")
        else:
            made.append(f"made {path}" + (f" for user {user_name(user)}" if user and gives else ""))


def _tried(config: Config, user: int | None, notes: list[str]) -> list[Mistake]:
    """What needs rights, with those of the user whom the service runs as, if this one may take them."""
    me = os.geteuid()
    if user == me:
        return [*_refused(config), *_models(config)]
    service = "another user" if user is None else user_name(user)
    note = f"checked as {user_name(me)}; the service runs as {service}: whether it may use its folders was "
    if user is not None and me == 0:
        with suppress(PermissionError), acting_as(user):
            found = [*_refused(config), *_models(config)]
            notes.append(f"{note}tried with its rights")
            return found
    notes.append(f"{note}not tried")
    return list(_models(config))


def _refused(config: Config) -> Iterator[Mistake]:
    """What this user could not do as the service."""
    for number, folder in enumerate(config.folder):
        if folder.require_mount and folder.input and not is_mounted(str(folder.input)):
            continue
        for role, path, why in refusals(folder):
            yield Mistake(("folder", number, role), _may_not(path, why))
    for location, path, _ in _own(config):
        there = next(each for each in (path, *path.parents) if not _is_missing(each))
        by_unit = path in BY_THE_UNIT and user_name(os.geteuid()) == USER
        makes_it = not by_unit and str(location[-1]).endswith("_directory")
        if there == path:
            if why := why_unusable(path):
                yield Mistake(location, _may_not(path, why))
        elif makes_it and not os.access(there, CHANGE, effective_ids=True):
            yield Mistake(location, f"{path} cannot be made, as {whose(str(there), there.stat(), 'change')}")
    if problem := _unusable_ledger(str(config.service.state_directory / LEDGER)):
        yield Mistake(("service", "state_directory"), problem)


def _unusable_ledger(path: str) -> str:
    """Why the service would end; of what it waits for, or mends, nothing."""
    if not os.path.exists(path):
        return ""
    if (found := refusal(path)) is not None and found.of_operator:
        return f"{found.text}; {found.remedy}"
    try:
        with ledger_faults(path), closing(connect(path, "ro")) as db:
            known_schema(db, path)
    except ConfigError as error:
        return str(error)
    except (LedgerFault, sqlite3.Error):
        pass
    return ""


def _may_not(path: Path, why: str) -> str:
    if why == CAUSES[errno.EACCES]:
        with suppress(OSError):
            return whose(str(path), path.stat(), "use")
    return f"{path}: {why}"


def _models(config: Config) -> Iterator[Mistake]:
    places: list[tuple[Location, str]] = [
        (("recipe", folder.recipe, "model"), config.recipe_of(folder).model) for folder in config.folder
    ]
    if config.health.fallback_model != "auto":
        places.append((("health", "fallback_model"), config.health.fallback_model))
    for location, model in dict.fromkeys(places):
        yield from (Mistake(location, problem) for problem in _model_problems(model, config.service.models_directory))


def _model_problems(model: str, models: Path) -> Sequence[str]:
    try:
        place = store.resolve(model, models)
        if place.entry is not None:
            licences.require(place.entry, models)
        checkpoint.read_header(place.weights)
    except ConfigError as error:
        return error.problems
    except OSError as error:
        return [explain(error)]
    return []
