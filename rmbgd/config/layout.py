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
from rmbgd.config.problems import Mistake
from rmbgd.config.toml_places import Location
from rmbgd.errors import ConfigError
from rmbgd.folder_lock import Claimant, other_holder, this_service

RESULTS = {"output", "done", "failed", "review"}
MADE_BY_THE_UNIT = Path("/var/log/rmbgd")  # LogsDirectory= of systemd/rmbgd.service, at its first start


@dataclass(frozen=True, slots=True)
class _Directory:
    """One configured directory: `path` as written, `lineage` of every directory from it up to the root."""

    location: Location
    owner: str
    path: str
    lineage: tuple[object, ...]

    @property
    def role(self) -> str:
        return str(self.location[-1])

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.role} ({self.path})"


def check_layout(config: Config) -> None:
    """Raises ConfigError with every problem."""
    owners: dict[Location, str] = {("folder", n): f"folder '{folder.name}'" for n, folder in enumerate(config.folder)}
    if found := list(layout_problems(config)):
        named = [(owners.get(each.location[:-1], each.location[0]), each) for each in found]
        raise ConfigError([f"{owner}.{each.location[-1]}: {each.text}" for owner, each in named])


def layout_problems(config: Config) -> Iterator[Mistake]:
    directories = list(_directories(config))
    shared = config.source.kind == "jetstream"  # one input may be a root with several recipes
    for pair in combinations(directories, 2):
        if shared and pair[0].role == pair[1].role == "input":
            continue
        if (found := _conflict(*pair)) is not None:
            yield found
    for each in directories:
        if os.path.exists(each.path) and not os.path.isdir(each.path):
            yield Mistake(each.location, f"{each.path} is a file: name a folder, or move the file away")
    for location, path in _own_files(config).items():
        yield from (Mistake(location, f"{path} {text}") for text in _wrong_place(path, directories))
    yield from (Mistake(("health", "metrics_file"), text) for text in missing_extras(config))


def missing_folders(config: Config) -> Iterator[Mistake]:
    """Files of the service's own that cannot be written now: no reason not to start, as their disk may come later."""
    for location, path in _own_files(config).items():
        parent = Path(os.path.realpath(path)).parent
        if parent != MADE_BY_THE_UNIT and _is_absent(parent):
            yield Mistake(location, f"{parent} does not exist; make it, or name another file")


def _own_files(config: Config) -> dict[Location, Path]:
    both = {("service", "log_file"): config.service.log_file, ("health", "metrics_file"): config.health.metrics_file}
    return {location: path for location, path in both.items() if path is not None}


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:  # this user may not look; the service may
        return False
    except OSError:
        return True
    return False


def folders_in_use(config: Config) -> dict[int, Claimant]:
    """By the folder's number: another service that claims from it now, as far as we may see that."""
    me = this_service(config.service.state_directory)
    inputs = {number: folder.input for number, folder in enumerate(config.folder)}
    found = {number: other_holder(str(path), me) for number, path in inputs.items() if path}
    return {number: holder for number, holder in found.items() if holder is not None}


def _directories(config: Config) -> Iterator[_Directory]:
    for number, folder in enumerate(config.folder):
        owner = f"folder '{folder.name or number + 1}'"
        for role, path in (
            ("input", folder.input),
            ("output", folder.output),
            ("done", folder.done if folder.originals == "archive" else None),
            ("failed", folder.failed),
            ("review", folder.review),
        ):
            if path is not None:
                yield _Directory(("folder", number, role), owner, str(path), _lineage(str(path)))
    for role in ("state_directory", "runtime_directory"):
        path = getattr(config.service, role)
        yield _Directory(("service", role), "service", str(path), _lineage(str(path)))


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
        if each.location[0] != "service" and each.lineage[0] in lineage:
            what = "its rotated parts would be taken for images" if each.role == "input" else "it is no result"
            yield f"lies inside {each.name}: {what}; put it elsewhere"


def _conflict(one: _Directory, other: _Directory) -> Mistake | None:
    if "input" not in (one.role, other.role):
        # Folders may share an output, the ledger keeps the names apart; one folder's results may not share a directory.
        if (
            one.location[:-1] != other.location[:-1]
            or not {one.role, other.role} < RESULTS
            or one.lineage[0] != other.lineage[0]
        ):
            return None
        text = f"{other.path} is {one.name}, too: the results of one would mix with those of the other; separate them"
        return Mistake(other.location, text)
    if one.role != "input":
        one, other = other, one
    if one.lineage[0] == other.lineage[0]:
        return Mistake(other.location, f"{other.path} is the same directory as {one.name}: give each its own")
    if one.lineage[0] in other.lineage[1:]:
        text = f"{other.path} lies inside {one.name}: its files would come in again; move it out"
        return Mistake(other.location, text)
    if other.lineage[0] in one.lineage[1:] and other.location[0] != "service":
        text = f"{one.path} lies inside {other.name}: files written there would come in again; move it out"
        return Mistake(one.location, text)
    return None
