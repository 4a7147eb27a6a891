"""Adoption: which kept originals have their output already, when the ledger was replaced and does not say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from rmbgd.fs import version_of
from rmbgd.intake import adoption
from rmbgd.intake.startup_recovery import Recovered, Recovery
from rmbgd.store.opening import put_in_place
from tests.support.workspace import Workspace, sha256

WALL = datetime(2026, 1, 1, tzinfo=UTC)


def replaced(base: Path) -> Workspace:
    """The folders as they are, and an empty ledger in the place of the one there was."""
    put_in_place(str(base / "state" / "ledger.sqlite"), None, "replaced", WALL)
    return Workspace(base, originals="keep")


def recovery_of(workspace: Workspace) -> Recovery:
    return Recovery(workspace.config, workspace.ledger, workspace.publisher, workspace.events)


def said(output: Path, original: Path, **changes: object) -> None:
    """A sidecar of the output."""
    stat = original.stat()
    facts = {"folder": "shop", "path": original.name, "sha256": sha256(output.read_bytes())}
    facts |= {"source": {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}}
    output.with_name(output.name + ".json").write_text(
        json.dumps({k: v for k, v in (facts | changes).items() if v is not None})
    )


Given = Callable[[Path, Path], object]  # the output's path, the original's

CASES: dict[str, tuple[Given, tuple[int, int], bool, str]] = {
    # name: what is there, (adopted, unknown), is it computed?, and where the next version is published
    "no output": (lambda out, original: None, (0, 0), True, "a.png"),
    "an output, and nothing that says whose": (lambda out, original: out.write_bytes(b"x"), (0, 1), False, "a~2.png"),
    "with a sidecar": (lambda out, original: out.write_bytes(b"x") and said(out, original), (1, 0), False, "a.png"),
    "with the sidecar of an older version": (
        lambda out, original: out.write_bytes(b"x") and said(out, original, source={"bytes": 1, "mtime_ns": 2}),
        (0, 0), True, "a.png"),
    "with a sidecar of an earlier rmbgd": (
        lambda out, original: out.write_bytes(b"x") and said(out, original, source=None), (0, 1), False, "a~2.png"),
    "with another input's sidecar": (
        lambda out, original: out.write_bytes(b"x") and said(out, original, path="a.tif"), (0, 0), True, "a~2.png"),
    "edited since": (
        lambda out, original: out.write_bytes(b"x") and said(out, original, sha256="0"), (0, 1), False, "a~2.png"),
    "a link": (lambda out, original: out.symlink_to(original), (0, 0), True, "a~2.png"),
    "the name of those that came later": (
        lambda out, original: out.with_name("a_jpg.png").write_bytes(b"x"), (0, 1), False, "a.png"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "counts", "computed", "then"), CASES.values(), ids=CASES)
def test_kept_original(tmp_path: Path, given: Given, counts: tuple[int, int], computed: bool, then: str) -> None:
    first = Workspace(tmp_path, originals="keep")
    original = first.drop("a.jpg")
    first.close()
    given(first.roots["output"] / "a.png", original)
    it = replaced(tmp_path)
    found = recovery_of(it).recover()
    assert (found.adopted, found.unknown) == counts
    version = version_of(original.lstat())
    assert it.ledger.handled("shop", "a.jpg", version) is not computed
    os.utime(original)
    assert it.work("a.jpg", b"another").path == then
    it.close()


def test_folder_that_was_away_is_looked_at_when_it_is_back(tmp_path: Path) -> None:
    """The ledger remembers, over restarts too, that this is still to be done."""
    first = Workspace(tmp_path, originals="keep")
    first.drop("a.jpg")
    first.work("a.jpg")
    first.close()
    os.rename(first.roots["input"], tmp_path / "away")
    for _ in range(2):
        again = list((tmp_path / "state").glob("*.replaced-*"))
        it = Workspace(tmp_path, originals="keep") if again else replaced(tmp_path)
        it.roots["input"].rmdir()
        recovery = recovery_of(it)
        assert recovery.recover() == Recovered()
        assert it.ledger.database.is_adopting()
        it.close()
    it = Workspace(tmp_path, originals="keep")
    it.roots["input"].rmdir()
    recovery = recovery_of(it)
    recovery.recover()
    os.rename(tmp_path / "away", it.roots["input"])
    assert recovery.recover_folder("shop").event()["unknown"] == 1
    assert not it.ledger.database.is_adopting()
    it.close()


def test_a_folder_that_may_not_be_read_is_adopted_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Workspace(tmp_path, originals="keep")
    first.drop("a.jpg")
    first.close()
    (first.roots["output"] / "a.png").write_bytes(b"x")
    it = replaced(tmp_path)
    recovery = recovery_of(it)
    with monkeypatch.context() as patch:
        patch.setattr(adoption, "scan", Mock(side_effect=PermissionError))
        assert recovery.recover().unknown == 0
    assert recovery.recover_folder("shop").unknown == 1
    it.close()
