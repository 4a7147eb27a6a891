"""Looks into real files: writers, holes and tails, and the opening rule for what strangers put there."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rmbgd.errors import ImageError, Reason
from rmbgd.fs import open_folder, open_regular
from rmbgd.imaging.completeness import Tail, tail_of
from rmbgd.intake import file_checks
from rmbgd.intake.file_checks import check, is_dense
from rmbgd.intake.readiness import ReadinessFacts, Writer
from tests.imaging.builders import photo, saved

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
PHOTO = photo(120, 160)
JPEG = saved(PHOTO, "JPEG")


def tail(data: bytes) -> Tail:
    with os.fdopen(os.memfd_create("image"), "wb", buffering=0) as file:
        file.write(data)
        return tail_of(file.fileno(), len(data))


def facts(path: Path, *, remote: bool = False) -> ReadinessFacts:
    return check(str(path.parent), path.name, remote=remote)[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jpg"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_cut_image_lacks_its_end_wherever_it_is_cut(format_: str) -> None:
    """From the first hundred bytes to the last but two: beyond doubt for JPEG, PNG and WebP. The whole one has it."""
    data = saved(PHOTO, format_)
    assert tail(data) is Tail.COMPLETE
    certain = {"JPEG": 700, "PNG": 40, "WEBP": 40}.get(format_, len(data))
    for size in sorted({100, 300, 700, *range(1000, len(data) - 2, 997), len(data) - 2}):
        assert tail(data[:size]) in ({Tail.MISSING} if size >= certain else {Tail.MISSING, Tail.DOUBTFUL})


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_that_shrinks_meanwhile_is_answered(format_: str) -> None:
    """Its size was taken, then its writer truncated it: an answer, never an error."""
    data = saved(photo(6, 5), format_)
    with os.fdopen(os.memfd_create("shrinking"), "wb", buffering=0) as file:
        file.write(data)
        for size in range(len(data) - 1, -1, -1):
            file.truncate(size)
            assert tail_of(file.fileno(), len(data)) in Tail


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_zeros_are_no_end(format_: str) -> None:
    """A preallocated upload that broke off: the size is right, the second half was never written."""
    data = saved(PHOTO, format_)
    assert tail(data[: len(data) // 2].ljust(len(data), b"\0")) is Tail.MISSING


def test_the_thumbnails_end_is_not_the_images() -> None:
    """Exif carries a whole small JPEG inside; its end marker does not count."""
    thumbnail = saved(PHOTO, "JPEG", quality=5)
    whole = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + JPEG[2:]
    assert tail(whole) is Tail.COMPLETE
    assert tail(whole[: -len(JPEG) // 2]) is Tail.MISSING


@pytest.mark.parametrize("behind", [b"\0" * 300_000, b"\xff" * 3_000_000])
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_a_film_behind_the_image_does_not_hide_its_end(format_: str, behind: bytes) -> None:
    assert tail(saved(PHOTO, format_) + behind) is Tail.COMPLETE


def test_white_images_are_complete() -> None:
    """Even areas compress to zeros: they are no sign of anything missing."""
    white = Image.new("RGB", (1600, 1200), "white")
    white.paste(Image.fromarray(photo(200, 1600)), (0, 0))
    for options in ({"quality": 80}, {"quality": 100}, {"quality": 0}, {"lossless": True, "quality": 0}):
        assert tail(saved(white, "WEBP", method=0, **options)) is Tail.COMPLETE


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
def test_nonsense_is_answered(data: bytes) -> None:
    """Whatever the bytes say, there is an answer at once; judging them is for the decoder."""
    assert tail(data) is not Tail.COMPLETE or data.startswith((b"II", b"MM"))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
def test_striped_tiffs_of_every_kind(compression: str) -> None:
    data = saved(PHOTO, "TIFF", compression=compression)
    assert tail(data) is Tail.COMPLETE
    assert tail(data[: len(data) * 2 // 3]) is Tail.DOUBTFUL


def test_an_open_writer_is_seen(path: Path) -> None:
    path.write_bytes(JPEG)
    with open(path, "ab"):
        assert facts(path).writer is Writer.OPEN
    with open(path, "rb"):
        assert facts(path).writer is Writer.NONE


def test_a_mapped_writer_is_seen(path: Path) -> None:
    """It closed its descriptor and writes through memory."""
    path.write_bytes(bytes(8192))
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 8192)
    assert facts(path).writer is Writer.OPEN
    mapped.close()
    assert facts(path).writer is Writer.NONE


def test_remote_writers_are_not_asked_for(path: Path) -> None:
    """Where a lease says nothing of other machines, none is taken."""
    path.write_bytes(JPEG)
    assert facts(path, remote=True) == ReadinessFacts(Writer.UNSEEN, True, Tail.COMPLETE)


def test_a_writer_that_comes_during_the_look_does_no_harm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel signals whoever holds a lease, and by default that signal ends a process: it must not end ours."""
    path.write_bytes(b"x")
    opened, real = threading.Event(), fcntl.fcntl

    def write() -> None:
        with open(path, "ab"):
            opened.set()

    writer = threading.Thread(target=write)

    def interrupted(descriptor: int, command: int, argument: int) -> int:
        answer = real(descriptor, command, argument)
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
            writer.start()
            assert not opened.wait(0.2)
        return answer

    monkeypatch.setattr(fcntl, "fcntl", interrupted)
    with open(path, "rb") as file:
        assert file_checks.writer_of(file.fileno()) is Writer.NONE
        assert opened.wait(10)
    writer.join()
    assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL


def test_preallocated_uploads_have_holes(path: Path) -> None:
    with open(path, "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        file.write(b"x" * 100_000)
        file.flush()
        assert not is_dense(file.fileno(), 1 << 20)
        file.truncate(100_000)
        assert is_dense(file.fileno(), 100_000)
        assert is_dense(file.fileno(), 0)
    reading, writing = os.pipe()
    assert is_dense(reading, 1), "where it cannot be seen"
    os.close(reading)
    os.close(writing)


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
def test_only_regular_files_are_opened(path: Path, kind: str) -> None:
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    MAKE[kind](path)
    with pytest.raises(ImageError) as caught:
        open_regular(str(path))
    assert caught.value.reason is Reason.NOT_REGULAR


def test_no_parent_may_be_a_link(tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "s").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        check(str(root), "s/a.jpg", remote=False)
    with pytest.raises(OSError):
        open_folder(str(root), "s")


def test_nothing_stays_open(tmp_path: Path) -> None:
    """An open descriptor below a drop folder would keep its disk from being unmounted."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.jpg").write_bytes(JPEG)
    (tmp_path / "b" / "link").symlink_to("x.jpg")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("b/x.jpg", "b/link", "b/none", "none/x.jpg", "b"):
        with contextlib.suppress(OSError, ImageError):
            check(str(tmp_path), path, remote=False)
    assert len(os.listdir("/proc/self/fd")) == before
