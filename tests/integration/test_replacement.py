"""A name that is used again: its output follows the newest content, whole at every moment (T10 to T12)."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

import pytest

from tests.support import audit
from tests.support.images import assert_cutout_of, rgba_of, sample_image
from tests.support.service import ServiceUnderTest

VERSIONS = 6


class Reader:
    """Opens a published file again and again, as somebody would who fetches results; notes what was not whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self.faults: list[str] = []
        self.reads = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                rgba_of(self._path.read_bytes())
            except Exception as error:
                self.faults.append(f"{type(error).__name__}: {error}")
            self.reads += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize(("originals", "way"), [("archive", "rename"), ("keep", "rename"), ("keep", "in place")])
def test_replaced_input_replaces_its_output(tmp_path: Path, originals: str, way: str) -> None:
    """Each new version of a name replaces the output of the one before; a reader sees whole files at every moment."""
    data = [sample_image(number) for number in range(VERSIONS)]
    with ServiceUnderTest(tmp_path, folder={"originals": originals}) as service:
        service.drop("a.png", data[0])
        service.wait_for("image.done", path="a.png")
        with Reader(service.output / "a.png") as reader:
            for number in range(1, VERSIONS):
                if way == "rename":
                    service.drop("a.png", data[number])
                else:
                    (service.input / "a.png").write_bytes(data[number])
                service.wait_for("image.done", path="a.png", count=number + 1)
                assert_cutout_of(data[number], service.output / "a.png")
        assert reader.faults == []
        assert reader.reads > VERSIONS
        assert audit.files(service.output) == ["a.png"]
        assert len(service.endings()) == service.computed() == VERSIONS
        if originals == "archive":
            archived = sorted((service.done / name).read_bytes() for name in audit.files(service.done))
            assert archived == sorted(data), "an original was overwritten in the archive"
    audit.assert_ledger_settled(service.state, done=VERSIONS)


@pytest.mark.parametrize("originals", ["archive", "delete", "keep"])
def test_input_replaced_while_it_is_computed(tmp_path: Path, originals: str) -> None:
    """A new version that comes while the old one is in the engine is computed too, and is the final output."""
    old, new = sample_image(1), sample_image(2)
    with ServiceUnderTest(tmp_path, folder={"originals": originals}) as service:
        service.hold.touch()
        service.drop("a.png", old)
        service.wait(lambda: service.given() == 1, "the old version in the engine")
        service.drop("a.png", new)
        service.hold.unlink()
        service.wait(lambda: _shows(service.output / "a.png", new), "the new version's cutout")
        service.turn()
        service.wait(lambda: originals == "keep" or service.is_idle(), "an empty input")
        assert service.computed() == 2
        assert audit.files(service.output) == ["a.png"]
        left = {root: [(service.roots[root] / n).read_bytes() for n in audit.files(service.roots[root])]
                for root in ("done", "input", "failed")}  # fmt: skip
        left["input"] = [data for data in left["input"] if data in (old, new)]
        expected = {"archive": {"done": [old, new]}, "delete": {}, "keep": {"input": [new]}}[originals]
        assert {root: sorted(found) for root, found in left.items() if found} == {
            root: sorted(files) for root, files in expected.items()
        }


def _shows(path: Path, source: bytes) -> bool:
    if not path.exists():
        return False
    try:
        assert_cutout_of(source, path)
    except AssertionError:
        return False
    return True


def test_kept_file_that_is_only_touched_is_not_computed_again(tmp_path: Path) -> None:
    """Reading, touching, changing the mode of a finished file: no computation, and its output is not written anew."""
    with ServiceUnderTest(tmp_path, folder={"originals": "keep"}) as service:
        kept = service.drop("kept.png", sample_image(1))
        service.wait_for("image.done", path="kept.png")
        before = os.stat(service.output / "kept.png")
        kept.read_bytes()
        os.utime(kept)
        kept.chmod(0o600)
        with open(kept, "r+b"):  # a scanner for viruses, say
            pass
        service.turn(5)
        service.signal(1)
        service.wait_for("service.reload")
        service.turn(5)
        assert service.stop() == 0
        service.start()
        service.turn(3)
        after = os.stat(service.output / "kept.png")
        assert service.computed() == 1
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        assert kept.read_bytes() == sample_image(1)
        assert all(event["reused"] for event in service.endings("kept.png")[1:])
