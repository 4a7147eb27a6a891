"""A list of images that others made, in a Parquet file: read once, in pieces, and what is wrong with it is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rmbgd.errors import ConfigError, Exit, RmbgdError
from rmbgd.fleet.backfill import Manifest, in_part
from rmbgd.fleet.inventory import Inventory
from rmbgd.fleet.share import SharedRoot, fingerprint_of
from tests.fleet.test_feeding import begin, rmbgd, write_all
from tests.support.fleet import FleetUnderTest
from tests.support.images import sample_image
from tests.support.workspace import Workspace

IN_MEMORY = """
import re, sys
from pathlib import Path
from rmbgd.fleet.backfill import Manifest
from rmbgd.fleet.inventory import Inventory
def most(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10  # MiB
class Root: trouble = staticmethod(lambda: "")
inventory = Inventory(Path(sys.argv[1]))
before = most()
Manifest(Path(sys.argv[2])).fill("shop", "", inventory.entries(Root, lambda _: True), inventory)
print(most() - before)
"""


def table(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    parquet.write_table(pa.table(columns), path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> SharedRoot:
    it = Workspace(tmp_path, originals="keep")
    return SharedRoot(it.folder, it.config.recipe_of(it.folder))


def read(path: Path, root: SharedRoot, part: str = "") -> tuple[dict[str, str], Inventory]:
    inventory = Inventory(path)
    found = inventory.entries(root, lambda key: in_part(key, part))
    return {entry.key: entry.fingerprint for entry in found}, inventory


@pytest.mark.parametrize(
    ("columns", "fingerprint"),
    [
        ({"fingerprint": ["10-20"], "etag": ["other"], "size": [1], "mtime_ns": [2]}, "10-20"),
        ({"etag": ['"0a1b-3"'], "size": [1], "mtime_ns": [2]}, "etag:0a1b-3"),
        ({"etag": pa.array(["0a1b"]).dictionary_encode(), "size": [1.5]}, "etag:0a1b"),
        ({"size": [7], "mtime_ns": [1_700_000_000_123_456_789], "owner": ["x"]}, "7-1700000000123456789"),
    ],
)
def test_which_columns_tell_the_version(
    tmp_path: Path, root: SharedRoot, columns: dict[str, Any], fingerprint: str
) -> None:
    found, inventory = read(table(tmp_path / "list.parquet", {"key": ["a/1.png"], **columns}), root)
    assert (found, inventory.note) == ({"a/1.png": fingerprint}, "")


def test_files_are_looked_at_where_no_column_tells_the_version(tmp_path: Path, root: SharedRoot) -> None:
    there, odd = root.folder.input / "a.png", os.fsdecode(b"\xff.png")
    there.write_bytes(b"1")
    (root.folder.input / odd).write_bytes(b"2")
    (root.folder.input / "folder").mkdir()
    keys = [b"a.png", b"gone.png", b"folder", b"a.png/below", b"x" * 300, b"\xff.png"]
    found, inventory = read(table(tmp_path / "list.parquet", {"key": keys}), root)
    assert found == {name: fingerprint_of(os.lstat(root.folder.input / name)) for name in ("a.png", odd)}
    assert inventory.left_out == 4
    assert (
        "4 rows of files that are not there, or cannot be read; --relist looks again (the first is row 2, 'gone.png')"
        in inventory.note
    )
    root.folder.input.rename(tmp_path / "away")
    with pytest.raises(RmbgdError, match="it is not there"):
        read(tmp_path / "list.parquet", root)


def test_rows_that_name_no_image_are_told_in_one_line(tmp_path: Path, root: SharedRoot) -> None:
    rows = {
        "key": ["a", None, "/a", "b/../c", "d", "e", "f", "a"],
        "fingerprint": ["1-1", "1-1", "1-1", "1-1", None, "", "x" * 300, "2-2"],
    }
    path = table(tmp_path / "list.parquet", rows)
    inventory = Inventory(path)
    with closing(Manifest(tmp_path / "manifest")) as manifest:
        assert not manifest.is_whole("shop", "", inventory.stamp)
        manifest.fill("shop", "", inventory.entries(root, lambda _: True), inventory)
        assert [(each.key, each.fingerprint) for each in manifest.entries()] == [("a", "2-2")]
        assert manifest.is_whole("shop", "", inventory.stamp)
        assert not manifest.is_whole("shop", "")  # it was not listed
        left_out, note = manifest.left_out()
    assert left_out == 6
    assert note.splitlines() == [note]
    assert note.startswith(f"{path}: 3 rows with a key that is no path (the first is row 2, it is empty")
    assert "3 rows without a usable version (the first is row 5, 'd')" in note
    assert note.endswith("1 rows repeat a key (the last of each counts)")


def test_parts_have_every_row_once(tmp_path: Path, root: SharedRoot) -> None:
    keys = [None, "/bad", *(f"{number}.png" for number in range(50))]
    path = table(tmp_path / "list.parquet", {"key": keys, "etag": ["e"] * len(keys)}, row_group_size=7)
    parts = [read(path, root, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(key for found, _ in parts for key in found) == sorted(keys[2:])
    assert sum(inventory.left_out for _, inventory in parts) == 2
    assert min(len(found) for found, _ in parts) > 5


def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, root: SharedRoot) -> None:
    path = tmp_path / "list.parquet"
    keys = [f"{number:06}-{number * 7919 % 10007}.png" for number in range(50_000)]
    whole = table(path, {"key": keys, "etag": keys}, compression="none", use_dictionary=False).read_bytes()
    broken = bytearray(whole)
    broken[1000:600_000] = bytes(599_000)
    for content, said in {
        whole[:-1000]: "no Parquet file, or damaged",
        b"": "no Parquet file, or damaged",
        b"key\na.png\n": "no Parquet file, or damaged",
        bytes(broken): "no Parquet file, or damaged",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said) as error:
            read(path, root)
        assert str(error.value).splitlines() == [str(error.value)]
    path.unlink()
    for columns, said in (
        ({"path": ["a"], "etag": ["b"]}, "has no column 'key', or several; there is path, etag"),
        ({"key": [1]}, "column 'key' is int64; it has to be a text"),
        ({"key": ["a"], "size": [1.0], "mtime_ns": [1]}, "column 'size' is double; it has to be an integer"),
    ):
        with pytest.raises(ConfigError, match=said):
            Inventory(table(path, columns))
    for nowhere in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(ConfigError, match=nowhere.name):
            Inventory(nowhere)


@pytest.mark.integration
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """Written in one row group, as some programs do: it is read in pieces all the same."""
    path, count = tmp_path / "list.parquet", 600_000
    keys = pa.array([f"{number:012}/{number * 2654435761 % 2**32:032}.png" for number in range(count)])
    parquet.write_table(
        pa.table({"key": keys, "etag": keys}), path, row_group_size=count, compression="none", use_dictionary=False
    )
    assert os.stat(path).st_size > 60 << 20
    command = [sys.executable, "-c", IN_MEMORY, str(path), str(tmp_path / "manifest")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 40, f"{grown} MiB"


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_killed_backfill_from_a_list_goes_on_and_a_newer_list_is_read_again(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1, options={"engine": {"delay": 0.02}}) as fleet:
        fleet.start()
        names = sorted(write_all(fleet, 30))
        path = table(tmp_path / "list.parquet", {"key": names[:20]})
        words = ("backfill", "shop", "--manifest", str(path), "--window", "4")
        first = begin(fleet, *words)
        fleet.wait(lambda: len(fleet.records()) >= 5, "some results")
        first.kill()
        first.communicate()
        os.rename(fleet.input / names[0], fleet.input / "moved.png")  # not looked at again
        told = json.loads(rmbgd(fleet, *words, "--json"))
        assert (told["wanted"], told["done"], told["missing"], told["left_out"]) == (20, 20, 0, 0)
        assert set(fleet.records()) == set(names[:20])
        time.sleep(0.01)
        table(path, {"key": [*names, "/bad"]})
        done = begin(fleet, *words, "--json")
        out, err = done.communicate(timeout=120)
        assert done.returncode == Exit.FAILED, err
        told = json.loads(out)
        assert (told["wanted"], told["done"], told["missing"], told["left_out"]) == (31, 29, 2, 2)
        assert "1 rows with a key that is no path (the first is row 31, it is absolute)" in err
        assert f"the first is row 1, '{names[0]}'" in err
        assert "moved.png" not in fleet.records()


@pytest.mark.integration
def test_the_list_is_looked_at_before_the_broker(tmp_path: Path) -> None:
    with FleetUnderTest(tmp_path, workers=1) as fleet:
        fleet.broker.stop()
        fleet.write("a.png", sample_image(1))
        (tmp_path / "list.parquet").write_bytes(b"none")
        said = rmbgd(fleet, "backfill", "shop", "--manifest", str(tmp_path / "list.parquet"), status=Exit.CONFIGURATION)
        assert said.startswith(f"rmbgd backfill: {tmp_path}/list.parquet: no Parquet file, or damaged")
        assert len(said.splitlines()) == 1
