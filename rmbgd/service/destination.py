"""Decides which images `rmbgd once` takes and where their cutouts go: a file, a folder or standard output.

Looks and lists; changes nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rmbgd import naming as names
from rmbgd.errors import ConfigError

STANDARD = "-"
"""In the place of a path: standard input or output."""
STDIN, STDOUT = "stdin", "stdout"
"""Files that hold what came on standard input, and what is to go to standard output."""

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,4}")  # of a file; `out.d`, `shots.v2` and `2026.11.28` are folders
_KNOWN = ".png, .webp, .tiff, .jpg"
_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class InputImage:
    """A file to process.

    root   folder that it is claimed from, without links
    path   below `root`
    shown  its name in events and for people
    name   below the output folder, still with the input's suffix
    """

    root: str
    path: str
    shown: str
    name: str


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run is to do.

    place   folder to write into
    single  name of the one cutout there, where OUT is a file or standard output
    shown   OUT as the operator named it
    format  that OUT asks for by its suffix; `film`: of a film
    unread  why folders below the sources cannot be looked into
    """

    images: list[InputImage]
    place: Path
    single: str | None
    shown: str
    format: str | None
    unread: list[OSError]
    film: str | None = None

    def outputs(self, extension: str, film_extension: str = ".mov") -> dict[InputImage, str]:
        """Where each cutout goes, below `place`; no two have one name, by the rule that the service follows.

        Raises ConfigError for one that would replace an input.
        """
        found: dict[str, InputImage] = {}
        names_of: dict[str, Iterator[str]] = {}  # by the input's name; where one begins again, all before are taken
        for image in self.images:
            ending = film_extension if names.is_film(image.name) else extension
            plain, later = names.output_names(image.name, ending)
            left = names_of.setdefault(image.name, itertools.chain([plain], names.versions(later)))
            found[self.single or next(name for name in left if name not in found)] = image
        there = {self.place / name: identity for name in found if (identity := _identity(self.place / name))}
        sources = {_identity(Path(image.root, image.path)) for image in self.images} if there else set()
        if same := [path for path, identity in there.items() if identity in sources]:
            raise ConfigError([f"{path}: IN and OUT are the same file; name another" for path in same])
        return {image: name for name, image in found.items()}

    def shown_output(self, name: str) -> str:
        return self.shown if self.single is not None else os.path.join(self.shown, name)


@dataclass(slots=True)
class Summary:
    """What became of the files. `skipped`: their output was there already."""

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    empty: list[str] = field(default_factory=list)  # images without a subject, of those done
    problems: list[tuple[str, str]] = field(default_factory=list)  # (path, why) of what failed without an event

    @property
    def left(self) -> int:
        return self.total - self.done - self.failed - self.skipped


def plan(
    sources: Sequence[str],
    output: str,
    *,
    scratch: Path | None = None,
    asked: str | None = None,
    asked_film: str | None = None,
) -> RunPlan:
    """Every image of `sources` (files and folders), and where its cutout goes. Nothing is made or changed.

    scratch  folder of STDIN and STDOUT; only for STANDARD
    asked    format that an option asks for; asked_film: of films

    Raises ConfigError with every mistake in the command line, and OSError for what may not be looked into.
    """
    problems, folders = list[str](), list[str]()
    if "" in (*sources, output):  # a variable of the shell that is not set
        problems.append("a path is empty; name a file or a folder (. is this one)")
    for source in dict.fromkeys(sources):
        if source not in (STANDARD, ""):
            try:
                mode = os.stat(source).st_mode
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                problems.append(f"{source}: {(error.strerror or '').lower()}")
                continue
            if stat.S_ISDIR(mode):
                folders.append(source)
            elif not stat.S_ISREG(mode):
                problems.append(f"{source}: neither a file nor a folder; pipe it in, and write - for it")
    several = len(sources) > 1 or bool(folders)
    is_folder = os.path.isdir(output)
    form: str | None = None
    film: str | None = None
    single: str | None = None
    if output == STANDARD:
        single = STDOUT
        if several:
            problems.append("standard output takes one cutout; name a folder for several")
    elif output and not (is_folder or output.endswith("/")):
        if not several and names.is_film(sources[0]):
            film = _film_of(output, problems, asked_film)
        else:
            form = _format_of(output, problems, asked, several=several)
        single = os.path.basename(output) if form or film else None
    if not (is_folder or single or problems) and os.path.lexists(output.rstrip("/")):
        problems.append(f"{output}: is a file; name a folder, or for one image a file that ends in {_KNOWN}")
    problems += [
        f"{output}: results would be written among the sources; name another folder"
        for folder in folders
        if is_folder and os.path.samefile(folder, output)
    ]
    if problems:
        raise ConfigError(problems)
    place = scratch if output == STANDARD else Path(os.path.dirname(output) or "." if single else output)
    assert place is not None
    found: dict[str, InputImage] = {}
    unread: list[OSError] = []
    for source in sources:
        for image in _images(source, output if is_folder else "", unread, scratch, alone=len(sources) == 1):
            found.setdefault(os.path.join(image.root, image.path), image)
    return RunPlan(list(found.values()), place, single, output, form, unread, film)


def _format_of(output: str, problems: list[str], asked: str | None, *, several: bool) -> str | None:
    """The format that a file name asks for; None where it is the name of a folder. Adds to `problems`."""
    suffix = os.path.splitext(output)[1]
    form = names.FORMATS.get(suffix.lower())
    if form is None:
        if _SUFFIX.fullmatch(suffix):
            kind = suffix[1:].upper()
            problems.append(f"{output}: {kind} is no output format; use {_KNOWN}, or a folder name (ending in /)")
    elif several:
        problems.append(f"{output}: one file cannot hold several cutouts; name a folder")
    elif asked not in (None, form):
        problems.append(f"{output} would hold a {str(asked).upper()}; leave --format out, or give it another suffix")
    return form


def _film_of(output: str, problems: list[str], asked: str | None) -> str | None:
    """As `_format_of`, of a film."""
    suffix = os.path.splitext(output)[1]
    film = names.FILM_FORMATS.get(suffix.lower())
    if film is None and _SUFFIX.fullmatch(suffix):
        known = ", ".join(names.FILM_FORMATS)
        problems.append(
            f"{output}: no film is made in {suffix[1:].upper()}; use {known}, or a folder name (ending in /)"
        )
    elif film is not None and asked not in (None, film):
        problems.append(f"{output} would hold {asked}; leave --film out, or give it another suffix")
    return film


def _images(
    source: str, output: str, unread: list[OSError], scratch: Path | None, *, alone: bool
) -> Iterator[InputImage]:
    if source == STANDARD:
        yield InputImage(str(scratch), STDIN, STANDARD, STDIN)
    elif not os.path.isdir(source):
        root, path = os.path.split(os.path.realpath(source))
        name = os.path.basename(source)
        yield InputImage(root, path, name if alone else source, name)
    else:
        root = os.path.realpath(source)
        for path in below(source, unread, leave_out=output):
            shown = path if alone else os.path.join(source, path)
            yield InputImage(root, path, shown, path if alone else os.path.join(os.path.basename(root), path))


def below(folder: str, unread: list[OSError], *, leave_out: str = "") -> Iterator[str]:
    """Paths of all files below a folder but hidden and linked ones, sorted. `unread`: of folders below it that may not
    be looked into. Raises OSError where that is `folder` itself."""
    os.listdir(folder)
    left_out = _identity(Path(leave_out)) if leave_out else None
    for directory, folders, files in os.walk(folder, onerror=unread.append):
        visible = sorted(each for each in folders if not each.startswith("."))
        folders[:] = [each for each in visible if not left_out or _identity(Path(directory, each)) != left_out]
        paths = (os.path.join(directory, each) for each in sorted(files) if not each.startswith("."))
        yield from (os.path.relpath(path, folder) for path in paths if not os.path.islink(path))


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
