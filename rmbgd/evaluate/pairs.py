"""Pairs predictions with truths by name, in sub-folders too; a table may say of which category each is."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from rmbgd import naming as names
from rmbgd.errors import ConfigError

SUFFIXES = frozenset([".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif", ".avif", ".heic", ".heif"])


@dataclass(frozen=True, slots=True)
class MaskPair:
    """A truth and what was predicted for it, None where nothing was; `name` is the truth's path without suffix."""

    name: str
    truth: str
    prediction: str | None
    category: str = ""


def paired(predictions: str, truths: str) -> tuple[list[MaskPair], list[str]]:
    """All truths below a folder, or the one file, in the order of their names; and predictions without a truth.

    An output that the service named otherwise, as its name was taken (a_jpg.png, a~2.png), belongs to the truth of its
    input where no other prediction does. Raises OSError for what may not be looked into, and ConfigError for a folder
    beside a file.
    """
    if os.path.isdir(predictions) != os.path.isdir(truths):
        raise ConfigError(f"{predictions} and {truths}: one is a folder; name two folders, or two files")
    if not os.path.isdir(truths):
        return [MaskPair(Path(truths).stem, truths, predictions)], []
    found = images_below(truths)
    free: dict[str, str] = {}
    for path in found:
        free.setdefault(os.path.splitext(path)[0], path)
    left = {path: names.sources_of(path) for path in images_below(predictions)}
    taken: dict[str, str] = {}
    for likeness in range(3):
        for path, sources in list(left.items()):
            truth = free.pop(sources[likeness], None) if likeness < len(sources) else None
            if truth is not None:
                taken[truth] = os.path.join(predictions, path)
                del left[path]
    pairs = [_pair(truths, path, taken.get(path)) for path in found]
    return pairs, [os.path.join(predictions, path) for path in left]


def _pair(folder: str, path: str, prediction: str | None) -> MaskPair:
    category, separator, _ = path.partition("/")
    return MaskPair(os.path.splitext(path)[0], os.path.join(folder, path), prediction, category if separator else "")


def images_below(folder: str) -> list[str]:
    """Paths of all files with an image's suffix but hidden ones, sorted. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for directory, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        images = (each for each in files if os.path.splitext(each)[1].lower() in SUFFIXES and not each.startswith("."))
        found += [os.path.relpath(os.path.join(directory, each), folder) for each in images]
    return sorted(found)


def categorized(pairs: list[MaskPair], table: Path) -> tuple[list[MaskPair], int]:
    """With the categories of a CSV file (name, category; the name with or without folder and suffix), and how many of
    its names are none of an image. Raises ConfigError and OSError."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            rows = [row for row in csv.reader(file) if row]
        except csv.Error as error:
            raise ConfigError(f"{table}: this is no CSV file: {error}") from error
    if short := next((number for number, row in enumerate(rows, 1) if len(row) < 2), 0):
        raise ConfigError(f"{table}: row {short} has no second column; write name,category")
    stems = (os.path.splitext(row[0]) for row in rows)
    known = {
        stem if suffix.lower() in SUFFIXES else stem + suffix: row[1].strip()
        for (stem, suffix), row in zip(stems, rows, strict=True)
    }
    used: set[str] = set()

    def of(pair: MaskPair) -> str:
        name = next((each for each in (pair.name, os.path.basename(pair.name)) if each in known), None)
        used.update([name] if name is not None else [])
        return known[name] if name is not None else ""

    return [replace(pair, category=of(pair)) for pair in pairs], len(known.keys() - used)


def in_sequence(pairs: list[MaskPair]) -> list[tuple[MaskPair, MaskPair | None]]:
    """Each frame with the one before it in its folder, in natural order: 2 before 10."""

    def order(pair: MaskPair) -> tuple[str, list[tuple[int, str]]]:
        folder, name = os.path.split(pair.name)
        return folder, [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]

    frames = sorted(pairs, key=order)
    before = [None, *frames]
    return [
        (frame, last if last and os.path.dirname(last.name) == os.path.dirname(frame.name) else None)
        for frame, last in zip(frames, before, strict=False)
    ]
