"""Refuses paths that cannot be used, or not together, before anything is watched: all problems at once.

Compares by real path and by (device, inode), so that links and bind mounts hide nothing. Creates and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from rmbgd.config.extras import missing_extras
from rmbgd.config.load import Config
from rmbgd.errors import ConfigError
from rmbgd.folder_lock import Claimant, other_holder, this_service

RESULTS = {"output", "done", "failed"}
MADE_BY_THE_UNIT = Path("/var/log/rmbgd")  # LogsDirectory= of systemd/rmbgd.service, at its first start


@dataclass(frozen=True, slots=True)
class _Directory:
    """One configured directory: `path` as written, `lineage` of every directory from it up to the root."""

    owner: str
    role: str
    path: str
    lineage: tuple[object, ...]

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.role} ({self.path})"


def check_layout(config: Config) -> None:
    """Raises ConfigError with every problem."""
    directories = list(_directories(config))
    problems = [text for pair in combinations(directories, 2) if (text := _conflict(*pair))]
    there = [each for each in directories if os.path.exists(each.path) and not os.path.isdir(each.path)]
    problems += [f"{each.name} is a file: name a folder, or move the file away" for each in there]
    for setting, path in _own_files(config).items():
        problems += [f"{setting} ({path}) {text}" for text in _wrong_place(path, directories)]
    problems += missing_extras(config)
    if problems:
        raise ConfigError(problems)


def missing_folders(config: Config) -> list[str]:
    """Files of the service's own that cannot be written now: no reason not to start, as their disk may come later."""
    wanted = {setting: Path(os.path.realpath(path)).parent for setting, path in _own_files(config).items()}
    absent = {
        setting: parent for setting, parent in wanted.items() if parent != MADE_BY_THE_UNIT and _is_absent(parent)
    }
    return [f"{setting}: {parent} does not exist; make it, or name another file" for setting, parent in absent.items()]


def _own_files(config: Config) -> dict[str, Path]:
    both = {"service.log_file": config.service.log_file, "health.metrics_file": config.health.metrics_file}
    return {setting: path for setting, path in both.items() if path is not None}


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:  # this user may not look; the service may
        return False
    except OSError:
        return True
    return False


def folders_in_use(config: Config) -> dict[str, Claimant]:
    """By folder name: another service that claims from it now, as far as we may see that."""
    me = this_service(config.service.state_directory)
    found = {folder.name: other_holder(str(folder.input), me) for folder in config.folder}
    return {name: holder for name, holder in found.items() if holder is not None}


def _directories(config: Config) -> Iterator[_Directory]:
    for folder in config.folder:
        owner = f"folder '{folder.name}'"
        for role, path in (
            ("input", folder.input),
            ("output", folder.output),
            ("done", folder.done if folder.originals == "archive" else None),
            ("failed", folder.failed),
        ):
            if path is not None:
                yield _Directory(owner, role, str(path), _lineage(str(path)))
    for role in ("state_directory", "runtime_directory"):
        path = getattr(config.service, role)
        yield _Directory("service", role, str(path), _lineage(str(path)))


def _lineage(path: str) -> tuple[object, ...]:
    """The directory and its ancestors, each by (device, inode) where it exists, else by its real path."""
    real = Path(os.path.realpath(path))
    lineage: list[object] = []
    for here in (real, *real.parents):
        try:
            found = here.stat()
            lineage.append((found.st_dev, found.st_ino))
        except OSError:
            lineage.append(here)
    return tuple(lineage)


def _wrong_place(path: Path, directories: Sequence[_Directory]) -> Iterator[str]:
    """What keeps a file of the service's own from being written at `path`, or from being left alone there."""
    if os.path.isdir(path):
        yield "is a folder: name a file in it"
    parent = Path(os.path.realpath(path)).parent
    if os.path.isfile(parent):
        yield f"cannot be written, as {parent} is a file: name another place"
    lineage = _lineage(str(parent))
    for each in directories:
        if each.owner != "service" and each.lineage[0] in lineage:
            what = "its rotated parts would be taken for images" if each.role == "input" else "it is no result"
            yield f"lies inside {each.name}: {what}; put it elsewhere"


def _conflict(one: _Directory, other: _Directory) -> str | None:
    if "input" not in (one.role, other.role):
        # Folders may share an output, the ledger keeps the names apart; one folder's results may not share a directory.
        if one.owner != other.owner or not {one.role, other.role} < RESULTS or one.lineage[0] != other.lineage[0]:
            return None
        return f"{one.name} and its {other.role} are the same directory: cutouts and originals would mix; separate them"
    if one.role != "input":
        one, other = other, one
    if one.lineage[0] == other.lineage[0]:
        return f"{one.name} and {other.name} are the same directory: give each its own"
    if one.lineage[0] in other.lineage[1:]:
        return f"{other.name} lies inside {one.name}: its files would come in again; move it out"
    if other.lineage[0] in one.lineage[1:] and other.owner != "service":
        return f"{one.name} lies inside {other.name}: files written there would come in again; move it out"
    return None
