"""A root's images in a Parquet file: an inventory of a bucket, or an export of a data warehouse, made by others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rmbgd.errors import ConfigError, RmbgdError, explain, missing_extra
from rmbgd.fleet.compare import LOOKS_AT_ONCE
from rmbgd.fleet.message import is_fingerprint, unusable
from rmbgd.fleet.root import Entry, Root
from rmbgd.fleet.share import fingerprint_of

SUFFIX = ".parquet"
ROWS = 10_000  # of the file in memory at once
BUFFER = 1 << 20  # bytes of a column that are read at once; without, a row group is read as a whole
VERSIONS = (("fingerprint",), ("etag",), ("size", "mtime_ns"))  # columns that tell a version; the first there counts


class Inventory:
    """An open Parquet file with a column `key`, the path below the root's input, and maybe one of VERSIONS.

    stamp     of the file: it is another when the file was replaced
    left_out  rows so far that name no image that is there; `note` says why in a line, and which was the first

    Raises ConfigError where pyarrow is missing, or the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise missing_extra("pyarrow", "parquet", f"a list in {SUFFIX}") from error
        self.path, self.left_out = path, 0
        self._damage = (pa.ArrowException, OSError)
        self._why: dict[str, tuple[int, str]] = {}  # why rows were left out -> how many, the first
        try:
            status = os.stat(path)
            self.stamp = f"{fingerprint_of(status)} {os.path.abspath(path)}"
            self._file = parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
            schema = self._file.schema_arrow
        except OSError as error:
            raise ConfigError(explain(error)) from error
        except pa.ArrowException as error:
            raise self._unusable(error) from error
        versions = [each for each in VERSIONS if set(each) <= set(schema.names)]
        self._columns = ["key", *(versions[0] if versions else ())]
        types, is_number = pa.types, pa.types.is_integer
        self._bytes = pa.large_binary()
        for name in self._columns:
            if schema.names.count(name) != 1:
                raise ConfigError(f"{path}: has no column '{name}', or several; there is {', '.join(schema.names)}")
            kind = schema.field(name).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            is_text = any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary))
            if not (is_number(kind) if name in ("size", "mtime_ns") else is_text):
                wanted = "an integer" if name in ("size", "mtime_ns") else "a text"
                raise ConfigError(f"{path}: column '{name}' is {kind}; it has to be {wanted}")

    def _unusable(self, error: Exception) -> ConfigError:
        text = " ".join(str(error).split())
        return ConfigError(f"{self.path}: no Parquet file, or damaged ({text}); write it again")

    @property
    def note(self) -> str:
        told = [f"{count:,} rows {why} ({first})" for why, (count, first) in self._why.items()]
        return f"{self.path}: {'; '.join(told)}" if told else ""

    def entries(self, root: Root, wanted: Callable[[str], bool]) -> Iterator[Entry]:
        """Those whose key is wanted. Where no column tells a version, each is looked at where it stands.

        Raises ConfigError where the file is damaged, RmbgdError and OSError where the root cannot be read.
        """
        if trouble := root.trouble():
            raise RmbgdError(f"root '{root.folder.name}': {trouble}")
        row = 0
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            for keys, versions in self._batches():
                usable: list[tuple[int, str, str]] = []
                for number, (key, version) in enumerate(zip(keys, versions, strict=True), row + 1):
                    if not wanted(key):
                        continue
                    if why := unusable(key):
                        self._leave_out("with a key that is no path", f"row {number}, {why}")
                    elif version is None:
                        self._leave_out("without a usable version", f"row {number}, '{key}'")
                    else:
                        usable.append((number, key, version))
                row += len(keys)
                if len(self._columns) > 1:
                    yield from (Entry(key, version) for _, key, version in usable)
                    continue

                def look(key: str) -> str | None:
                    try:
                        return root.fingerprint(key)
                    except OSError:
                        if root.trouble():
                            raise
                        return None

                found = pool.map(look, [key for _, key, _ in usable])
                for (number, key, _), version in zip(usable, found, strict=True):
                    if version is None:
                        self._leave_out(
                            "of files that are not there, or cannot be read; --relist looks again",
                            f"row {number}, '{key}'",
                        )
                    else:
                        yield Entry(key, version)

    def repeated(self, count: int) -> None:
        """So many rows repeat a key; the last of each counts."""
        if count:
            self._why["repeat a key"] = (count, "the last of each counts")

    def _leave_out(self, why: str, which: str) -> None:
        self.left_out += 1
        count, first = self._why.get(why, (0, f"the first is {which}"))
        self._why[why] = count + 1, first

    def _batches(self) -> Iterator[tuple[list[str], list[str | None]]]:
        """(keys, "" for null; versions, None for what is none, "" where the file tells none)."""
        batches = self._file.iter_batches(ROWS, columns=self._columns, use_threads=False)
        while True:
            try:
                if (batch := next(batches, None)) is None:
                    return
                keys = [each or "" for each in self._texts(batch, "key")]
                match self._columns[1:]:
                    case []:
                        versions: list[str | None] = [""] * len(keys)
                    case ["size", "mtime_ns"]:
                        sizes, times = (batch.column(name).to_pylist() for name in ("size", "mtime_ns"))
                        known = zip(sizes, times, strict=True)
                        versions = [None if None in both or min(both) < 0 else f"{both[0]}-{both[1]}" for both in known]
                    case [name]:
                        versions = list(map(_etag if name == "etag" else _fingerprint, self._texts(batch, name)))
            except self._damage as error:
                raise self._unusable(error) from error
            yield keys, versions

    def _texts(self, batch: Any, name: str) -> list[str | None]:
        """By way of bytes: a path need not be UTF-8."""
        found = batch.column(name).cast(self._bytes).to_pylist()
        return [None if each is None else each.decode("utf-8", "surrogateescape") for each in found]


def _fingerprint(text: str | None) -> str | None:
    return text if text and is_fingerprint(text) else None


def _etag(text: str | None) -> str | None:
    bare = (text or "").replace('"', "")
    return _fingerprint(f"etag:{bare}") if bare else None
