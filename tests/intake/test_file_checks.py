"""Looks into real files: writers, holes and tails, and the opening rule for what strangers put there."""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmbgd.errors import ImageError, Reason
from rmbgd.fs import open_folder, open_regular
from rmbgd.imaging.completeness import Tail, tail_of
from rmbgd.intake import file_checks
from rmbgd.intake.file_checks import check, is_dense
from rmbgd.intake.readiness import ReadinessFacts, Writer

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def photo(width: int = 160, height: int = 120) -> Image.Image:
    noise = np.random.default_rng(7).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height))


def image(format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, format=format_, **options)
    return buffer.getvalue()


def tail(path: Path, data: bytes) -> Tail:
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return tail_of(descriptor, len(data))
    finally:
        os.close(descriptor)


def facts(path: Path, *, remote: bool = False) -> ReadinessFacts:
    return check(str(path.parent), path.name, remote=remote)[1]


# ------------------------------------------------------------------------------------------------------------ tails


@pytest.mark.parametrize("format_", FORMATS)
def test_whole_images_have_their_end(tmp_path: Path, format_: str) -> None:
    """Every format as its encoder wrote it."""
    assert tail(tmp_path / "x", image(format_)) is Tail.COMPLETE


@pytest.mark.parametrize("format_", FORMATS)
def test_a_cut_image_lacks_its_end_wherever_it_is_cut(tmp_path: Path, format_: str) -> None:
    """From the first hundred bytes to the last but two: beyond doubt for JPEG, PNG and WebP."""
    data = image(format_)
    certain = {"JPEG": 700, "PNG": 40, "WEBP": 40}
    for size in sorted({100, 300, 700, *range(1000, len(data) - 2, 997), len(data) - 2}):
        found = tail(tmp_path / "x", data[:size])
        if size >= certain.get(format_, len(data)):
            assert found is Tail.MISSING
        else:
            assert found in (Tail.MISSING, Tail.DOUBTFUL)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_zeros_are_no_end(tmp_path: Path, format_: str) -> None:
    """A preallocated upload that broke off: the size is right, the second half was never written."""
    data = image(format_)
    assert tail(tmp_path / "x", data[: len(data) // 2].ljust(len(data), b"\0")) is Tail.MISSING


def test_the_thumbnails_end_is_not_the_images(tmp_path: Path) -> None:
    """Exif carries a whole small JPEG inside; its end marker does not count."""
    data = image("JPEG")
    thumbnail = image("JPEG", quality=5)
    exif = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + exif + data[2:]

    assert tail(tmp_path / "x", whole) is Tail.COMPLETE
    assert tail(tmp_path / "x", whole[: -len(data) // 2]) is Tail.MISSING


def test_a_film_behind_the_image_does_not_hide_its_end(tmp_path: Path) -> None:
    """Phones put megabytes of video behind the JPEG's end."""
    for behind in (b"\0" * 300_000, b"\xff" * 3_000_000):
        assert tail(tmp_path / "x", image("JPEG") + behind) is Tail.COMPLETE
        assert tail(tmp_path / "x", image("PNG") + behind) is Tail.COMPLETE


def test_white_images_are_complete(tmp_path: Path) -> None:
    """Even areas compress to zeros: they are no sign of anything missing."""
    white = Image.new("RGB", (1600, 1200), "white")
    white.paste(photo(1600, 200), (0, 0))
    for options in ({"quality": 80}, {"quality": 100}, {"quality": 0}, {"lossless": True, "quality": 0}):
        buffer = io.BytesIO()
        white.save(buffer, format="WEBP", method=0, **options)
        assert tail(tmp_path / "x", buffer.getvalue()) is Tail.COMPLETE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"just text that is called x.jpg",
        b"BM" + b"\xff" * 100,
        b"II*\0" + b"\xff" * 100,
        b"\xff\xd8\xff\xe0\0\0" + b"\0" * 100,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 100,
        b"\0\0\0\x01ftyp" + b"\xff" * 100,
        b"GIF89a",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x11\0\x04\xff\xff\xff\xff\0\0\0\0" * 20,
    ],
)
def test_nonsense_is_answered(tmp_path: Path, data: bytes) -> None:
    """Whatever the bytes say, there is an answer at once; judging them is for the decoder."""
    assert tail(tmp_path / "x", data) is not Tail.COMPLETE or data.startswith((b"II", b"MM"))


def test_striped_tiffs_of_every_kind(tmp_path: Path) -> None:
    """Both byte orders, compressed or not, directory first or last."""
    for compression in ("raw", "tiff_lzw", "tiff_deflate"):
        data = image("TIFF", compression=compression)
        assert tail(tmp_path / "x", data) is Tail.COMPLETE
        assert tail(tmp_path / "x", data[: len(data) * 2 // 3]) is Tail.DOUBTFUL


# ---------------------------------------------------------------------------------------------------- writers, holes


def test_an_open_writer_is_seen(tmp_path: Path) -> None:
    """While it is open for writing, however little happens; no more when it is closed. A reader is no writer."""
    path = tmp_path / "a.jpg"
    path.write_bytes(image("JPEG"))
    with open(path, "ab"):
        assert facts(path).writer is Writer.OPEN
    with open(path, "rb"):
        assert facts(path).writer is Writer.NONE


def test_a_mapped_writer_is_seen(tmp_path: Path) -> None:
    """It closed its descriptor and writes through memory."""
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(8192))
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 8192)
    assert facts(path).writer is Writer.OPEN
    mapped.close()
    assert facts(path).writer is Writer.NONE


def test_remote_writers_are_not_asked_for(tmp_path: Path) -> None:
    """Where a lease says nothing of other machines, none is taken."""
    path = tmp_path / "a.jpg"
    path.write_bytes(image("JPEG"))
    assert facts(path, remote=True) == ReadinessFacts(Writer.UNSEEN, True, Tail.COMPLETE)


def test_a_writer_that_comes_during_the_look_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel signals whoever holds a lease, and by default that signal ends a process: it must not end ours."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    opened = threading.Event()
    descriptor = os.open(path, os.O_RDONLY)

    def write() -> None:
        with open(path, "ab"):
            opened.set()

    writer = threading.Thread(target=write)

    real = fcntl.fcntl

    def interrupted(descriptor: int, command: int, argument: int) -> int:
        """With a writer that comes at the worst moment."""
        answer = real(descriptor, command, argument)
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
            writer.start()
            assert not opened.wait(0.2)
        return answer

    monkeypatch.setattr(fcntl, "fcntl", interrupted)
    try:
        assert file_checks.writer_of(descriptor) is Writer.NONE
        assert opened.wait(10)
    finally:
        os.close(descriptor)
        writer.join()
    assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL


def test_preallocated_uploads_have_holes(tmp_path: Path) -> None:
    """The size is that of the whole file, the blocks are not there yet."""
    path = tmp_path / "a.jpg"
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        file.write(b"x" * 100_000)
    with open(path, "rb") as file:
        assert not is_dense(file.fileno(), 1 << 20)
    path.write_bytes(b"x" * 100_000)
    with open(path, "rb") as file:
        assert is_dense(file.fileno(), 100_000)
        assert is_dense(file.fileno(), 0)
    pipe = os.pipe()
    assert is_dense(pipe[0], 1), "where it cannot be seen"
    for end in pipe:
        os.close(end)


def test_which_incomplete_file_is_held_by_which_gate(tmp_path: Path) -> None:
    """Every kind of half upload of a JPEG is held by at least one gate; the whole file by none."""
    data = image("JPEG")
    half = len(data) // 2
    path = tmp_path / "a.jpg"

    def held() -> bool:
        found = facts(path)
        return found.writer is Writer.OPEN or not found.dense or found.tail is not Tail.COMPLETE

    for preallocated in (False, True):
        with open(path, "wb", buffering=0) as file:
            if preallocated:
                os.posix_fallocate(file.fileno(), 0, len(data))
            file.write(data[:half])
            assert held()
        assert held()
    path.write_bytes(data[:half].ljust(len(data), b"\0"))
    assert held()
    path.write_bytes(data)
    assert not held()


# ------------------------------------------------------------------------------------------------------ opening rule


MAKE: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to(__file__),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),  # /dev/zero
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the socket lasts no longer than its name is needed
@pytest.mark.parametrize("kind", MAKE)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    """Refused with a reason, at once, and never read."""
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    MAKE[kind](tmp_path / "x.jpg")
    with pytest.raises(ImageError) as caught:
        open_regular(str(tmp_path / "x.jpg"))
    assert caught.value.reason is Reason.NOT_REGULAR


def test_no_parent_may_be_a_link(tmp_path: Path) -> None:
    """A sub-folder that was swapped for a link does not lead out of the drop folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "s").symlink_to(outside)

    with pytest.raises(NotADirectoryError):
        check(str(root), "s/a.jpg", remote=False)
    with pytest.raises(OSError):
        open_folder(str(root), "s")


def test_nothing_stays_open(tmp_path: Path) -> None:
    """An open descriptor below a drop folder would keep its disk from being unmounted."""
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    (root / "x.jpg").write_bytes(image("JPEG"))
    (root / "pipe").symlink_to("x.jpg")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("b/x.jpg", "b/pipe", "b/none", "none/x.jpg", "b"):
        try:
            check(str(tmp_path / "a"), path, remote=False)
        except (OSError, ImageError):
            continue

    assert len(os.listdir("/proc/self/fd")) == before
