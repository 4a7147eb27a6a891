"""`rmbgd check`: every problem of a configuration, its folders, models and the service's directories, at once."""

from __future__ import annotations

import argparse
import errno
import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from rmbgd.access_rights import CHANGE, acting_as, user_name, whose
from rmbgd.cli.main import add_config
from rmbgd.config.layout import folders_in_use, layout_problems, missing_folders
from rmbgd.config.load import Config, examine, read
from rmbgd.config.problems import NOTATION, Finding
from rmbgd.config.toml_places import Location
from rmbgd.doctor.checks import USER, missing_gpu
from rmbgd.doctor.folders import CAUSES, refusals, why_unusable
from rmbgd.errors import ConfigError, ConfigProblem, Exit, explain
from rmbgd.models import checkpoint, licences, store
from rmbgd.mounts import is_mounted
from rmbgd.paths import DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
from rmbgd.store.ledger_lock import LEDGER
from rmbgd.store.refusals import refusal
from rmbgd.telemetry.jsonl import to_json

CREATE = "`rmbgd check --create`"
MADE_BY_THE_UNIT = {DEFAULT_STATE_DIRECTORY, DEFAULT_RUNTIME_DIRECTORY}  # at each start; the others by the service
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
        print(resources.files("rmbgd.config").joinpath("default.toml").read_text(encoding="utf-8"), end="")
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
    keys = ("file", "line", "column", "table", "setting")
    problems: list[dict[str, object]] = []
    for problem in report.problems:
        if isinstance(problem, ConfigProblem):
            problems.append({key: getattr(problem, key) or None for key in keys} | {"problem": problem.text})
        else:
            problems.append(dict.fromkeys(keys) | {"file": str(report.file), "problem": problem})
    lists = {"folders": report.folders, "made": report.made, "notes": report.notes}
    return {"file": str(report.file), "ok": not problems, "problems": problems, **lists}


def check(path: Path, *, create: bool) -> Report:
    report = Report(path)
    try:
        file = read(path)
    except ConfigError as error:
        report.problems += error.problems
        return report
    config, findings = examine(file.tables)
    report.folders += [folder.name for folder in config.folder]
    for each in config.adjusted:
        report.notes.append(
            f"{path}: {each['setting']} = {each['configured']} is read as {each['used']}: {each['why']}"
        )
    user = _service_user(config)
    if create and (findings or list(layout_problems(config))):
        report.notes.append("nothing was made: a path may be among the settings to correct")
    elif create:
        findings += _create(config, user, report.made)
    settings = {finding.location for finding in findings} - {()}  # what they say need not be looked at any more
    for finding in _survey(config, user, report.notes):
        if not any(finding.location[: len(each)] == each for each in settings):
            findings.append(finding)
            settings |= {finding.location} - {()}
    report.problems += file.problems(findings)
    return report


def _service_user(config: Config) -> int | None:
    """Whom the service runs as, which the state directory says; None where this user may not look."""
    state = config.service.state_directory
    if state == DEFAULT_STATE_DIRECTORY:
        with suppress(KeyError):
            return pwd.getpwnam(USER).pw_uid
    try:
        return state.stat().st_uid
    except PermissionError:
        return None
    except OSError:
        return os.geteuid()


def _survey(config: Config, user: int | None, notes: list[str]) -> Iterator[Finding]:
    if not config.folder:
        yield Finding((), f"no [[folder]] is defined, so there is nothing to do; {NOTATION}")
    yield from layout_problems(config)
    absent = [(place, path) for place, path, _ in _directories(config, notes) if _is_missing(path)]
    them = "it" if len(absent) == 1 else f"the {len(absent)} that are missing"
    yield from (Finding(place, f"{path} does not exist ({CREATE} makes {them})") for place, path in absent)
    yield from _rights(config, user, notes)
    yield from missing_folders(config)
    for number, holder in folders_in_use(config).items():
        text = f"{holder} claims from it now; stop one of the two services, or give each its own input"
        yield Finding(("folder", number, "input"), text)
    yield from _models(config)
    if gpu := missing_gpu(config):
        yield Finding(("engine", "device"), gpu)


def _directories(config: Config, notes: list[str]) -> Iterator[tuple[Location, Path, int]]:
    """(setting, path, mode) of each that must be there; the service makes its own, where it may."""
    for number, folder in enumerate(config.folder):
        for role in ("input", "output", "done", "failed"):
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


def _create(config: Config, user: int | None, made: list[str]) -> Iterator[Finding]:
    models = ("service", "models_directory"), config.service.models_directory, SHARED
    for location, path, mode in [*_directories(config, []), *_own(config), models]:
        if not _is_missing(path):
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=mode)
            if os.geteuid() == 0 and user:
                os.chown(path, user, pwd.getpwuid(user).pw_gid)
        except (OSError, KeyError) as error:
            why = explain(error) if isinstance(error, OSError) else f"{path}: user {user} has no account"
            yield Finding(location, f"cannot be made: {why}")
        else:
            made.append(f"made {path}" + (f" for user {user_name(user)}" if os.geteuid() == 0 and user else ""))


def _rights(config: Config, user: int | None, notes: list[str]) -> Iterator[Finding]:
    """Really tries, as the user whom the service runs as, if this one may."""
    me = os.geteuid()
    if user == me:
        yield from _refused(config)
        return
    service = "another user" if user is None else user_name(user)
    note = f"checked as {user_name(me)}; the service runs as {service}: whether it may use its folders was "
    if user is not None and me == 0:
        with suppress(PermissionError), acting_as(user):
            yield from list(_refused(config))  # all of them before this user's rights are back
            notes.append(f"{note}tried with its rights")
            return
    notes.append(f"{note}not tried")


def _refused(config: Config) -> Iterator[Finding]:
    """What this user could not do as the service."""
    for number, folder in enumerate(config.folder):
        if folder.require_mount and folder.input and not is_mounted(str(folder.input)):
            continue
        for role, path, why in refusals(folder):
            yield Finding(("folder", number, role), _may_not(path, why))
    for location, path, _ in _own(config):
        there = next(each for each in (path, *path.parents) if not _is_missing(each))
        by_unit = path in MADE_BY_THE_UNIT and user_name(os.geteuid()) == USER
        if there == path:
            if why := why_unusable(path):
                yield Finding(location, _may_not(path, why))
        elif (
            str(location[-1]).endswith("_directory")
            and not by_unit
            and not os.access(there, CHANGE, effective_ids=True)
        ):
            yield Finding(location, f"{path} cannot be made, as {whose(str(there), there.stat(), 'change')}")
    ledger = str(config.service.state_directory / LEDGER)
    if os.path.exists(ledger) and (found := refusal(ledger)) is not None and found.of_operator:
        yield Finding(("service", "state_directory"), f"{found.text}; {found.remedy}")


def _may_not(path: Path, why: str) -> str:
    if why == CAUSES[errno.EACCES]:
        with suppress(OSError):
            return whose(str(path), path.stat(), "use")
    return f"{path}: {why}"


def _models(config: Config) -> Iterator[Finding]:
    places: list[tuple[Location, str]] = [
        (("recipe", folder.recipe, "model"), config.recipe_of(folder).model) for folder in config.folder
    ]
    if config.health.fallback_model != "auto":
        places.append((("health", "fallback_model"), config.health.fallback_model))
    for location, model in dict.fromkeys(places):
        yield from (Finding(location, problem) for problem in _model_problems(model, config.service.models_directory))


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
