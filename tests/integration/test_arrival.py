"""How files arrive, and that only whole ones are taken (T1 to T9). While a writer pauses, other images come out."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rmbgd.errors import Reason
from tests.support import audit
from tests.support.images import assert_cutout_of, encoded, rgba_of, sample_image
from tests.support.mounts import mounted
from tests.support.service import ServiceUnderTest

PAGE = 4096
PAUSE = 8  # turns of the service: more than the longest quiet time and the first delays after a held-back look
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP"}
LOSSY = {"jpg": 4, "webp": 4, "gif": 4}  # levels by which decoders may differ
NO_COMPARING = {"intake": {"reconcile": 3600.0}}  # what is found within a test was found by events


def lossless(number: int, kind: str) -> bytes:
    return sample_image(number, kind=kind, **({"lossless": True} if kind == "WEBP" else {}))


def test_slow_writer_is_waited_for(tmp_path: Path) -> None:
    data = sample_image(1)
    step = len(data) // 8 + 1
    with ServiceUnderTest(tmp_path) as service:
        with open(service.input / "slow.png", "wb", buffering=0) as writer:
            for start in range(0, len(data), step):
                writer.write(data[start : start + step])
                service.turn(3)
                assert (service.input / "slow.png").exists()
        service.wait_for("image.done", path="slow.png")
        service.turn()
        assert len(service.endings()) == 1
    audit.assert_complete(service.roots, {"slow.png": data})


@pytest.mark.parametrize("state", ["half", "open", "closed"])
def test_upload_that_pauses_comes_out_whole(tmp_path: Path, state: str) -> None:
    """Half a file, or one that has its full size from the beginning, open or closed: no grey tail."""
    kinds = KINDS if state == "half" else {kind: KINDS[kind] for kind in ("jpg", "tif", "png", "bmp")}
    data = {f"a.{suffix}": lossless(number, kind) for number, (suffix, kind) in enumerate(kinds.items())}
    with ServiceUnderTest(tmp_path) as service:
        writers = {name: open(service.input / name, "wb", buffering=0) for name in data}  # noqa: SIM115
        for name, writer in writers.items():
            writer.write(data[name][: len(data[name]) // 2])
            if state != "half":
                os.posix_fallocate(writer.fileno(), 0, len(data[name]))
            if state != "open":
                writer.close()
        if state == "half":
            for name in data:
                service.wait_for("intake.incomplete", path=name)
        service.turn(PAUSE)
        assert service.endings() == []
        for name, whole in data.items():
            with open(service.input / name, "r+b") as writer:
                writer.seek(len(whole) // 2)
                writer.write(whole[len(whole) // 2 :])
            writers[name].close()
        for name, whole in data.items():
            done = service.wait_for("image.done", path=name)
            assert_cutout_of(whole, service.output / done["output"], within=LOSSY.get(name.split(".")[1], 0))
        assert len(service.endings()) == len(data)
        assert set(audit.places(service.roots, data).values()) == {"done"}


def test_beginning_decides_who_is_waited_for(tmp_path: Path) -> None:
    """What begins like no image is rejected at once, also with holes; a beginning of zeros is still to be written."""
    whole = _photo(1, "PNG")
    with ServiceUnderTest(tmp_path) as service:
        with open(service.desk / "note", "wb") as file:
            file.write(b"bread and butter, and whatever else there is")
            file.truncate(1 << 20)
        os.rename(service.desk / "note", service.input / "note.jpg")
        (service.input / "late.png").write_bytes(bytes(PAGE) + whole[PAGE:])
        service.wait_for("intake.incomplete", path="late.png", gate="head")
        assert service.wait_for("image.failed", path="note.jpg")["reason"] == Reason.UNIDENTIFIED
        service.turn(PAUSE)
        assert service.endings("late.png") == []
        with open(service.input / "late.png", "r+b") as file:
            file.write(whole[:PAGE])
        service.wait_for("image.done", path="late.png")
        assert_cutout_of(whole, service.output / "late.png")


def test_upload_that_nobody_completes_is_refused_as_truncated(tmp_path: Path) -> None:
    whole = {f"half.{suffix}": lossless(number, kind) for number, (suffix, kind) in enumerate(KINDS.items())}
    halves = {name: data[: len(data) // 2] for name, data in whole.items()}
    for kind in ("jpg", "png"):
        halves[f"zeros.{kind}"] = halves[f"half.{kind}"].ljust(len(whole[f"half.{kind}"]), b"\0")
    with ServiceUnderTest(tmp_path, settings={"intake": {"incomplete_timeout": 3.0}}) as service:
        for name, data in halves.items():
            (service.input / name).write_bytes(data)
        service.turn(2)
        assert service.endings() == []
        service.wait_for_endings(len(halves) + 2)
    audit.assert_complete(service.roots, halves, bad=dict.fromkeys(halves, Reason.TRUNCATED))


def _photo(number: int, kind: str) -> bytes:
    """Of some pages, in every format."""
    return sample_image(number, kind=kind, size=(260, 200), **({"quality": 97} if kind in ("JPEG", "WEBP") else {}))


@pytest.mark.parametrize("how", ["written", "hole"])
def test_time_never_turns_a_file_with_a_gap_into_a_whole_one(tmp_path: Path, how: str) -> None:
    """Head and tail are there, pages between them are not: zeros that were written, or space that was not."""
    data = {f"{kind}.{suffix}": _photo(number, kind) for number, (suffix, kind) in enumerate(KINDS.items())}
    data["progressive.jpg"] = sample_image(8, kind="JPEG", size=(260, 200), quality=97, progressive=True)
    data["restarts.jpg"] = sample_image(9, kind="JPEG", size=(260, 200), quality=97, restart_marker_rows=1)
    data["lossless.webp"] = sample_image(10, kind="WEBP", size=(260, 200), lossless=True)
    halves = {}
    with ServiceUnderTest(tmp_path, settings={"intake": {"incomplete_timeout": 3.0}}) as service:
        for name, whole in data.items():
            first, behind = PAGE, len(whole) // PAGE * PAGE - PAGE
            halves[name] = whole[:first] + bytes(behind - first) + whole[behind:]
            with open(service.desk / name, "wb") as file:
                file.write(halves[name] if how == "written" else whole[:first])
                file.truncate(len(whole))
                file.seek(behind)
                file.write(whole[behind:])
            os.rename(service.desk / name, service.input / name)
        for name in data:
            service.wait_for("image.failed", path=name)
        assert service.named("image.done") == []
    audit.assert_complete(service.roots, halves, bad=dict.fromkeys(halves, Reason.TRUNCATED))


def test_sparse_copies_of_whole_images_come_out_in_the_end(tmp_path: Path) -> None:
    pixels = rgba_of(_photo(1, "PNG"))[..., :3].copy()
    pixels[20:90] = 0
    data = {f"black-{suffix}.{suffix}": encoded(pixels, KINDS[suffix]) for suffix in ("bmp", "tif", "png")}
    with ServiceUnderTest(tmp_path, settings={"intake": {"incomplete_timeout": 1.0}}) as service:
        for name, content in data.items():
            (service.desk / name).write_bytes(content)
            subprocess.run(["cp", "--sparse=always", service.desk / name, service.input / name], check=True)
        for name in data:
            done = service.wait_for("image.done", path=name)
            assert done.get("notes", []) == ([] if name.endswith("png") else ["zero_run"])
    audit.assert_complete(service.roots, data)


@pytest.mark.parametrize("sidecars", ["ignore", "carry"])
def test_sidecars_of_other_programs_stay_or_go_with_their_original(tmp_path: Path, sidecars: str) -> None:
    data = {"a/b.png": sample_image(1), "a/c.jpg": b"no image " * 20}
    beside = {f"a/{name}": name.encode() for name in ("b.png.xmp", "b.json", "c.jpg.md5", "other.xmp")}
    with ServiceUnderTest(tmp_path, folder={"sidecars": sidecars}) as service:
        service.drop_all(beside)
        service.drop_all(data)
        service.wait_for_endings(2)
        service.turn()
        assert len(service.endings()) == 2
    done, failed = audit.files(service.done), audit.files(service.failed)
    carried = sidecars == "carry"
    assert [name for name in done if name in beside] == (["a/b.json", "a/b.png.xmp"] if carried else [])
    assert [name for name in failed if name in beside] == (["a/c.jpg.md5"] if carried else [])
    assert set(audit.files(service.input)) == ({"a/other.xmp"} if carried else beside.keys())


def test_a_sidecar_has_the_name_that_its_original_got(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, folder={"sidecars": "carry"}) as service:
        for number in (1, 2):
            service.drop("a.png.xmp", b"of %d" % number)
            service.serve("a.png", sample_image(number))
        service.turn()
    assert (service.done / "a~2.png.xmp").read_bytes() == b"of 2"


def test_sidecars_behind_a_link_stay(tmp_path: Path) -> None:
    """A parent that became one when the image had been claimed would lead to files of somebody else."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "b.xmp").write_bytes(b"secret")
    with ServiceUnderTest(tmp_path, folder={"sidecars": "carry"}) as service:
        service.hold_in_engine("sub/b.png", sample_image(3))
        os.rename(service.input / "sub", tmp_path / "away")
        (service.input / "sub").symlink_to(tmp_path / "private")
        service.hold.unlink()
        service.wait_for("image.done", path="sub/b.png")
        service.turn()
    assert os.listdir(tmp_path / "private") == ["b.xmp"]


def test_a_download_is_unfinished_as_long_as_its_control_file_is_there(tmp_path: Path) -> None:
    whole = _photo(1, "TIFF")
    with ServiceUnderTest(tmp_path, settings={"intake": {"incomplete_timeout": 1.0}}) as service:
        (service.input / "a.tif.aria2").write_bytes(b"\0\1")
        (service.input / "a.tif").write_bytes(whole[: 3 * PAGE].ljust(len(whole), b"\0"))
        assert service.wait_for("intake.incomplete", path="a.tif")["gate"] == "companion"
        service.turn(PAUSE)
        assert service.endings() == []
        (service.input / "a.tif").write_bytes(whole)
        os.unlink(service.input / "a.tif.aria2")
        service.wait_for("image.done", path="a.tif")
        assert len(service.endings()) == 1
    audit.assert_complete(service.roots, {"a.tif": whole})


def test_mapped_writer_is_waited_for(tmp_path: Path) -> None:
    """A writer that maps the file and closes its descriptor early is waited for until the mapping is gone."""
    data = sample_image(7)
    with ServiceUnderTest(tmp_path) as service:
        with open(service.input / "mapped.png", "w+b") as writer:
            writer.truncate(len(data))
            mapping = mmap.mmap(writer.fileno(), len(data))
        mapping[: len(data) // 2] = data[: len(data) // 2]
        service.turn(PAUSE)
        mapping[len(data) // 2 :] = data[len(data) // 2 :]
        mapping.flush()
        service.turn(PAUSE)
        assert service.endings() == []
        mapping.close()
        service.wait_for("image.done", path="mapped.png")
    audit.assert_complete(service.roots, {"mapped.png": data})


def test_rsync_delivers(tmp_path: Path) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    data = {f"{folder}{number}.png": sample_image(number) for number in range(10) for folder in ("", "deep/er/")}
    (tmp_path / "source/deep/er").mkdir(parents=True)
    for name, content in data.items():
        (tmp_path / "source" / name).write_bytes(content)
    with ServiceUnderTest(tmp_path / "service", settings=NO_COMPARING) as service:
        subprocess.run(["rsync", "-a", f"{tmp_path / 'source'}/", f"{service.input}/"], check=True)
        service.wait_for_endings(len(data))
    audit.assert_complete(service.roots, data)


def test_every_way_into_the_folder_is_seen_by_events(tmp_path: Path) -> None:
    names = ("renamed", "moved", "linked", "unnamed", "copied", "cloned")
    data = {f"{name}.png": sample_image(number) for number, name in enumerate(names)}
    (tmp_path / "stick").mkdir()
    with (
        mounted(tmp_path / "stick", "tmpfs", "size=4m"),
        ServiceUnderTest(tmp_path / "service", settings=NO_COMPARING) as service,
    ):
        service.drop("renamed.png", data["renamed.png"])
        (tmp_path / "stick" / "moved.png").write_bytes(data["moved.png"])
        shutil.move(tmp_path / "stick" / "moved.png", service.input / "moved.png")
        (service.desk / "linked.png").write_bytes(data["linked.png"])
        os.link(service.desk / "linked.png", service.input / "linked.png")
        os.unlink(service.desk / "linked.png")
        _link_unnamed(service.input, "unnamed.png", data["unnamed.png"])
        for name, how in (("copied.png", "never"), ("cloned.png", "auto")):
            (service.desk / name).write_bytes(data[name])
            subprocess.run(["cp", f"--reflink={how}", service.desk / name, service.input / name], check=True)
        service.wait_for_endings(len(data))
    audit.assert_complete(service.roots, data)


def _link_unnamed(folder: Path, name: str, data: bytes) -> None:
    """What a careful uploader does: the file has no name until it is whole. open(2), O_TMPFILE."""
    descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o644)
    try:
        os.write(descriptor, data)
        at_fdcwd, follow = -100, 0x400
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.linkat(
            at_fdcwd, f"/proc/self/fd/{descriptor}".encode(), at_fdcwd, os.fsencode(folder / name), follow
        )
        assert not failed, os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)


def test_upload_that_stays_open_is_told_once_and_never_refused(tmp_path: Path) -> None:
    data = sample_image(9)
    with ServiceUnderTest(tmp_path, settings={"intake": {"stuck_upload": 1.0, "incomplete_timeout": 1.0}}) as service:
        with open(service.input / "stuck.png", "wb", buffering=0) as writer:
            writer.write(data)
            service.wait_for("intake.stuck_upload", path="stuck.png")
            service.turn(PAUSE)
            assert (service.input / "stuck.png").exists()
        service.wait_for("image.done", path="stuck.png")
        assert len(service.named("intake.stuck_upload")) == 1
    audit.assert_complete(service.roots, {"stuck.png": data})
