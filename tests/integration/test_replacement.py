"""A name that is used again: its output follows the newest content, whole at every moment (T10 to T12)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import audit
from tests.support.images import assert_cutout_of, rgba_of, sample_image
from tests.support.service import ServiceUnderTest

VERSIONS = 6


@contextlib.contextmanager
def reader(path: Path) -> Iterator[list[str]]:
    """Opens a published file again and again, as one does who fetches results: what was wrong each time."""
    over, found = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            try:
                rgba_of(path.read_bytes())
                found.append("")
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("originals", "way"), [("archive", "rename"), ("keep", "rename"), ("keep", "in place")])
def test_replaced_input_replaces_its_output(tmp_path: Path, originals: str, way: str) -> None:
    data = [sample_image(number) for number in range(VERSIONS)]
    with ServiceUnderTest(tmp_path, folder={"originals": originals}) as service:
        service.serve("a.png", data[0])
        with reader(service.output / "a.png") as found:
            for number in range(1, VERSIONS):
                if way == "rename":
                    service.drop("a.png", data[number])
                else:
                    (service.input / "a.png").write_bytes(data[number])
                service.wait_for("image.done", path="a.png", count=number + 1)
                assert_cutout_of(data[number], service.output / "a.png")
        assert set(found) == {""}
        assert len(found) > VERSIONS
        assert audit.files(service.output) == ["a.png"]
        assert len(service.endings()) == service.computed() == VERSIONS
        if originals == "archive":
            archived = sorted((service.done / name).read_bytes() for name in audit.files(service.done))
            assert archived == sorted(data), "an original was overwritten in the archive"
    audit.assert_ledger_settled(service.state, done=VERSIONS)


@pytest.mark.parametrize("originals", ["archive", "delete", "keep"])
def test_input_replaced_while_it_is_computed(tmp_path: Path, originals: str) -> None:
    old, new = sample_image(1), sample_image(2)
    with ServiceUnderTest(tmp_path, folder={"originals": originals}) as service:
        service.hold_in_engine("a.png", old)
        service.drop("a.png", new)
        service.hold.unlink()
        service.wait_for("image.done", path="a.png", sha256_in=hashlib.sha256(new).hexdigest())
        assert_cutout_of(new, service.output / "a.png")
        service.turn()
        service.wait(lambda: originals == "keep" or service.is_idle(), "an empty input")
        assert service.computed() == 2
        assert audit.files(service.output) == ["a.png"]
        left = sorted(
            (role, data)
            for role in ("done", "input", "failed")
            for name in audit.files(service.roots[role])
            if (data := (service.roots[role] / name).read_bytes()) in (old, new)
        )
        expected = {"archive": [("done", old), ("done", new)], "delete": [], "keep": [("input", new)]}
        assert left == sorted(expected[originals])


def test_kept_file_that_is_only_touched_is_not_computed_again(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder={"originals": "keep"}) as service:
        service.serve("kept.png", sample_image(1))
        kept = service.input / "kept.png"
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
        service.restart()
        service.turn(3)
        after = os.stat(service.output / "kept.png")
        assert service.computed() == 1
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        assert kept.read_bytes() == sample_image(1)
        assert all(event["reused"] for event in service.endings("kept.png")[1:])
