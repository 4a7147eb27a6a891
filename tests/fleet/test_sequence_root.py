"""Roots of frames: which sequences there are, which version of each, what counts as its answer."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from unittest import mock

import pytest

from rmbgd.config.load import Folder, Recipe
from rmbgd.fleet.message import unusable
from rmbgd.fleet.sequence_root import SequenceRoot, sequence_key, sequence_of
from rmbgd.fleet.share import SharedRoot, fingerprint_of


def root_at(base: Path, **settings: object) -> SequenceRoot:
    places = {role: base / role for role in ("input", "output", "failed")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    folder = Folder.model_validate({"name": "takes", "kind": "frames", "originals": "keep"} | places | settings)
    return SequenceRoot(SharedRoot(folder, Recipe()))


def write(root: SequenceRoot, *names: str, age: float = 3600.0) -> None:
    for name in names:
        path = root.folder.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
        os.utime(path, (time.time() - age,) * 2)


def publish(root: SequenceRoot, name: str) -> None:
    """As a worker does: an output, and its record."""
    output = root.folder.output / f"{name.removesuffix('.png')}.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(b"cutout")
    story = {"folder": "takes", "path": name, "fingerprint": fingerprint_of(os.stat(root.folder.input / name))}
    story |= {"recipe": "default", "outputs": [{"path": os.path.relpath(output, root.folder.output), "size": 6}]}
    output.with_name(output.name + ".json").write_text(json.dumps(story))


@pytest.mark.parametrize("sequence", ["take/", "take/f_", ".", "f", "a*b", "take/#"])
def test_a_key_is_usable_and_names_its_sequence(sequence: str) -> None:
    assert unusable(sequence_key(sequence)) == ""
    assert sequence_of(sequence_key(sequence)) == sequence


def test_a_file_is_no_sequence() -> None:
    assert sequence_of("take/cover.png") is None


def test_sequences_and_stills_are_inputs(tmp_path: Path) -> None:
    root = root_at(tmp_path, ignore=["proxy_*"])
    write(root, "take/f1.png", "take/f2.png", "take/g1.png", "take/cover.png", "7.png", "take/proxy_1.png")
    write(root, "take/f3.png", age=5.0)
    write(root, "take/sequence.end")
    found = {entry.key: entry for entry in root.inputs()}
    assert set(found) == {"take/f#", "take/g#", "take/cover.png", "#"}
    assert found["take/f#"].fingerprint.startswith("frames-3-")
    assert found["take/f#"].unchanged < 60 < found["take/g#"].unchanged
    for key, entry in found.items():
        assert root.fingerprint(key) == entry.fingerprint
        assert root.source(key, entry.fingerprint).state == "ready"
    assert [frame.number for frame in root.source("take/f#", found["take/f#"].fingerprint).frames] == [1, 2, 3]


def test_frames_come_by_their_numbers_whatever_their_width(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "f10.png", "f9.png", "f0010.png", "f100000000000.png", f"f{2**40}.png")
    assert [frame.path for frame in root.frames("f#")] == [
        "f9.png", "f0010.png", "f10.png", "f100000000000.png", f"f{2**40}.png"
    ]  # fmt: skip


def test_a_frame_more_or_written_again_is_another_version(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "f1.png", "f2.png")
    first = str(root.fingerprint("f#"))
    write(root, "f3.png", age=1.0)
    assert root.source("f#", first).state == "superseded"
    (root.folder.input / "f3.png").unlink()
    assert root.fingerprint("f#") == first
    write(root, "f1.png", age=2.0)
    assert root.source("f#", first).state == "superseded"


def test_what_nobody_writes_any_more_is_done_as_it_is(tmp_path: Path) -> None:
    """Nobody announces that a frame was removed."""
    root = root_at(tmp_path)
    write(root, "f1.png", "f2.png", "f3.png")
    first = str(root.fingerprint("f#"))
    (root.folder.input / "f2.png").unlink()
    assert root.source("f#", first).state == "superseded"  # their inodes were changed just now
    with mock.patch("time.time", return_value=time.time() + 61):
        found = root.source("f#", first)
    assert (found.state, [frame.number for frame in found.frames]) == ("ready", [1, 3])


def test_what_is_gone_is_gone_and_a_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "other.png")
    assert root.source("take/f#", "frames-1-0").state == "gone"
    assert root.fingerprint("take/f#") is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f1.png").touch()
    (root.folder.input / "take").symlink_to(elsewhere)
    assert root.frames("take/f#") == []
    assert root.source("take/f#", "frames-1-0").state == "refused"


def test_a_root_that_is_away_has_no_sequence_that_is_gone(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    with pytest.raises(FileNotFoundError, match="root is empty"):
        root.source("take/f#", "frames-1-0")


def test_a_sequence_has_its_answer_when_each_frame_has(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "f1.png", "f2.png")
    version = str(root.fingerprint("f#"))
    publish(root, "f1.png")
    assert root.answer("f#", version) is None
    publish(root, "f2.png")
    found = root.answer("f#", version)
    assert found is not None
    assert found.kind == "done"
    assert not found.story
    write(root, "f3.png")
    assert root.answer("f#", version) is None
    assert root.answer("f#", str(root.fingerprint("f#"))) is None


def test_a_rejected_frame_is_an_answer_and_may_be_tried_again(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "f1.png", "f2.png")
    version = str(root.fingerprint("f#"))
    publish(root, "f1.png")
    story = {"folder": "takes", "path": "f2.png", "recipe": "default"}
    story["fingerprint"] = fingerprint_of(os.stat(root.folder.input / "f2.png"))
    reason = root.folder.failed / "f2.png.error.json"
    reason.write_text(json.dumps(story))
    found = root.answer("f#", version)
    assert found is not None
    assert found.kind == "failed"
    assert root.forget_refusal("f#")
    assert not reason.exists()
    assert not root.forget_refusal("f#")
    assert root.answer("f#", version) is None


def test_a_still_whose_name_looks_like_a_key_is_a_still(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "take#")
    [entry] = root.inputs()
    assert entry.key == "take#"
    assert [frame.path for frame in root.source("take#", entry.fingerprint).frames] == ["take#"]


def test_a_file_with_the_name_of_a_key_hides_no_sequence(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "f1.png", "f2.png", "f#")
    found = {(entry.key, root.source(entry.key, entry.fingerprint).state) for entry in root.inputs()}
    assert found == {("f#", "ready")}
    assert sorted(len(root.source(entry.key, entry.fingerprint).frames) for entry in root.inputs()) == [1, 2]
    (root.folder.input / "f#").unlink()
    (root.folder.input / "f#").symlink_to("f1.png")
    [entry] = root.inputs()
    assert root.source(entry.key, entry.fingerprint).state == "ready"


def test_a_share_that_fails_has_nothing_that_is_gone(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, "take/f1.png")
    version = str(root.fingerprint("take/f#"))
    real = os.lstat

    def stale(path: str, **options: int) -> os.stat_result:
        if os.fspath(path).endswith("input/take"):
            raise OSError(errno.ESTALE, "stale file handle")
        return real(path, **options)

    with mock.patch("os.lstat", stale):
        for ask in (lambda: root.source("take/f#", version), lambda: root.fingerprint("take/f#")):
            with pytest.raises(OSError, match="stale"):
                ask()


def test_a_name_that_is_no_unicode_is_a_frame_as_any(tmp_path: Path) -> None:
    root = root_at(tmp_path)
    write(root, os.fsdecode(b"t\xff/f1.png"), "line\nbreak/f1.png")
    assert {root.source(entry.key, entry.fingerprint).state for entry in root.inputs()} == {"ready"}
