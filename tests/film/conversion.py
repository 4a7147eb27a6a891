"""A film through reader and writer, without processes: alpha is the green of each frame."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rmbgd.config.load import LimitSettings, Recipe
from rmbgd.deliver.arrange import flatten
from rmbgd.film.forms import FORMS
from rmbgd.film.reader import FilmFrame, FilmReader
from rmbgd.film.writer import FilmArchive, FilmFile


def read(data: bytes, **limits: Any) -> tuple[FilmReader, list[FilmFrame]]:
    with _file(data) as file:
        reader = FilmReader(file.fileno(), LimitSettings(**limits))
        return reader, list(reader.frames())


@contextmanager
def _file(data: bytes) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file


def convert(data: bytes, film: str, folder: Path, **settings: Any) -> tuple[bytes, list[str]]:
    """The film that is made, and the notes."""
    recipe, path = Recipe(film=film, **settings), folder / f"made-{film}"
    path.write_bytes(b"")
    with _file(data) as file:
        return _convert(FilmReader(file.fileno(), LimitSettings()), recipe, path)


def _convert(reader: FilmReader, recipe: Recipe, path: Path) -> tuple[bytes, list[str]]:
    film, sound = recipe.film, reader.sound()
    writer: FilmFile | FilmArchive
    if film == "png":
        writer = FilmArchive(str(path), reader, sound, recipe, "take")
    else:
        writer = FilmFile(str(path), reader, sound, recipe)
    for frame in reader.frames():
        alpha = np.ascontiguousarray(frame.rgb[:, :, 1])
        rgba = np.dstack((frame.rgb, alpha))
        if film == "png" or FORMS[film].alpha:
            writer.write(frame, rgba, alpha)
        else:
            flat = np.empty_like(frame.rgb)
            flatten(rgba, (0, 255, 0), flat)
            writer.write(frame, flat, None)
    writer.close()
    return path.read_bytes(), writer.notes
