"""Files, names and entries that nobody sane would drop: each ends right or refused (T28, T29, T31)."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import threading
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmbgd.errors import Reason
from tests.support import audit
from tests.support.images import assert_cutout_of, expected_cutout, rgba_of, sample_image, samples
from tests.support.mounts import run
from tests.support.service import ServiceUnderTest

MEMORY = 1_500_000_000  # bytes that the service may take at its peak, whatever comes in
SWAPS = 100
DEEPER = "deeper" + 13 * "r"  # a level of 20 bytes with its slash; a path has 4,096


def moving_gif() -> bytes:
    frames = [Image.open(io.BytesIO(sample_image(number))) for number in (1, 2)]
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:])
    return target.getvalue()


def enormous_png() -> bytes:
    """A few bytes that claim 1 x 50,000,000 pixels."""
    small = sample_image(1)
    header = b"IHDR" + struct.pack(">II", 1, 50_000_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


# A file for each reason that content can have, and no image of any kind; the matrix is the decoders' (tests/imaging).
BAD: dict[str, tuple[bytes, Reason]] = {
    "empty.jpg": (b"", Reason.EMPTY),
    "script.png": (b"<?php system($_GET['c']); ?>\n" * 20, Reason.UNIDENTIFIED),
    "archive.png": (b"PK\x03\x04" + bytes(range(256)) * 4, Reason.UNIDENTIFIED),
    "noise.jpg": (random.Random(1).randbytes(5000), Reason.UNIDENTIFIED),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" * 20, Reason.FORMAT_NOT_ALLOWED),
    "moving.gif": (moving_gif(), Reason.ANIMATED),
    "strip.png": (enormous_png(), Reason.TOO_LARGE),
    "cut.jpg": (sample_image(2, kind="JPEG")[:-200], Reason.TRUNCATED),
}
GOOD = {"png-named.jpg": sample_image(10), "tagged.tif": sample_image(17, kind="TIFF", compression="tiff_lzw")}


def test_bad_set(tmp_path: Path) -> None:
    dropped = {name: data for name, (data, _) in BAD.items()} | GOOD
    with ServiceUnderTest(tmp_path, settings={"intake": {"incomplete_timeout": 2.0}}) as service:
        service.serve_all(dropped)
        status = Path(f"/proc/{service.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) * 1024 < MEMORY
    audit.assert_settled(service, dropped, bad={name: reason for name, (_, reason) in BAD.items()})


# --------------------------------------------------------------------------------------------------------------- names

NAMES = [
    b"  leading and trailing  .png ",
    b"new\nline.png",
    b"\x1b[31mred\x1b[0m.png",
    b"--help.png",
    b"per%cent%2Fslash%00.png",
    b"$(reboot)`id`;&|<>'\"\\.png",
    b"*?[a].png",
    b'{"json": 1}.png',
    unicodedata.normalize("NFC", "é-twin.png").encode(),
    unicodedata.normalize("NFD", "é-twin.png").encode(),
    "\u202egnp.right-to-left.png".encode(),
    b"\xff\xfe not utf-8.png",
    b"\xed\xa0\x80 surrogate.png",
    b"noextension",
    b"trailingdot.",
    b"12__claimed.png",
    b"x~2.png",
    b"x" * 251 + b".png",
    b"y" * 255,
    b"\xfe" * 251 + b".png",
    b"deep/" * 60 + b"down.png",
    b"\xff/\xfe/bytes.png",
    b"d" * 255 + b"/" + b"e" * 251 + b".png",
    b"folder.png/inside.png",
]


@pytest.mark.parametrize("originals", ["archive", "keep"])
def test_names_of_every_kind(tmp_path: Path, originals: str) -> None:
    data = {os.fsdecode(name): sample_image(number) for number, name in enumerate(NAMES)}
    with ServiceUnderTest(tmp_path, folder={"originals": originals}) as service:
        service.serve_all(data)
        outputs = {event["path"]: event["output"] for event in service.named("image.done")}
        assert outputs.keys() == data.keys()
        assert sorted(outputs.values()) == audit.files(service.output)
        for name, content in data.items():
            assert all(len(os.fsencode(part)) <= 255 for part in outputs[name].split("/"))
            assert os.path.dirname(outputs[name]) == os.path.dirname(name)
            assert_cutout_of(content, service.output / outputs[name])
        if originals == "archive":
            assert set(audit.places(service.roots, data).values()) == {"done"}
        assert len(service.recorded("image.done")) == len(data)
        service.restart()
        service.turn(2)
        assert service.computed() == len(data)


# -------------------------------------------------------------------------------------------------------------- entries


def test_entries_that_are_no_files_are_never_opened(tmp_path: Path) -> None:
    secret = sample_image(99)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(secret)
    with ServiceUnderTest(tmp_path / "service") as service:
        links = {
            "link.png": outside / "secret.png",
            "dangling.png": outside / "nothing.png",
            "endless.png": Path("/dev/zero"),
            "loop.png": service.input / "loop.png",
            "folder-link": outside,
            "upwards": service.input,
        }
        for name, target in links.items():
            (service.input / name).symlink_to(target)
        os.mkfifo(service.input / "pipe.png")
        plug = socket.socket(socket.AF_UNIX)
        plug.bind(os.path.relpath(service.input / "socket.png"))
        entries = [*links, "pipe.png", "socket.png"]
        if os.geteuid() == 0:
            os.mknod(service.input / "device.png", 0o600 | 0o020000, os.makedev(1, 5))
            (outside / "theirs.png").write_bytes(secret)
            os.chown(outside / "theirs.png", 65534, 65534)
            os.link(outside / "theirs.png", service.input / "hard.png")
            entries += ["device.png", "hard.png"]
        (service.input / "album.png").mkdir()
        service.drop("album.png/inside.png", sample_image(1))
        service.wait_for_endings(len(entries) + 1)
        service.turn(3)
        assert service.stop() == 0
        plug.close()
        service.start()
        service.turn(3)
        told = sorted((event["path"], event["reason"]) for event in service.named("image.failed"))
        assert told == sorted((name, Reason.HARDLINK if name == "hard.png" else Reason.NOT_REGULAR) for name in entries)
        assert all(os.path.lexists(service.input / name) for name in entries)
        assert audit.files(service.output) == ["album.png/inside.png"]
        assert audit.files(service.done) == ["album.png/inside.png"]
        assert audit.files(service.failed) == []
        assert (outside / "secret.png").read_bytes() == secret


def test_swap_for_a_link_gains_nothing(tmp_path: Path) -> None:
    """Nor does one for the folder above it, at any moment: what the link points at never comes out."""
    secret = sample_image(99)
    outside = tmp_path / "outside"
    outside.mkdir()
    names = [f"{number}.png" for number in range(SWAPS)]
    dice, moment = random.Random(31), threading.Event()
    with ServiceUnderTest(tmp_path / "service", settings={"intake": {"quiet_closed": 0.05}}) as service:
        for number, name in enumerate(names):
            service.drop(f"{number}/{name}" if number % 2 else name, sample_image(number + 1000))
            (outside / name).write_bytes(secret)
            moment.wait(dice.uniform(0.0, 0.15))  # before it is seen, while it settles, between look and claim, after
            if number % 2 == 0:
                link = service.desk / "link"
                link.symlink_to(outside / name)
                os.replace(link, service.input / name)
            else:
                os.rename(service.input / str(number), service.desk / f"away-{number}")
                (service.input / str(number)).symlink_to(outside)
        service.turn(5)
        wrong = expected_cutout(secret)
        for name in audit.files(service.output):
            assert not np.array_equal(rgba_of(service.output / name), wrong), f"{name} shows what a link points at"
        for kept in (root / name for root in (service.done, service.failed) for name in audit.files(root)):
            assert not kept.is_symlink(), f"the link {kept} was carried on"
            assert kept.read_bytes() != secret, f"{kept} was taken from behind a link"
        assert sorted(os.listdir(outside)) == sorted(names)
        assert all((outside / name).read_bytes() == secret for name in names)


def test_claim_folder_of_a_stranger_is_not_used(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    service = ServiceUnderTest(tmp_path / "service")
    (service.input / ".rmbgd").symlink_to(outside)
    with service:
        service.drop("1.png", sample_image(1))
        service.wait(lambda: service.named("intake.blocked") or service.endings("1.png"), "a word on the image")
        assert os.listdir(outside) == []
        (service.input / ".rmbgd").unlink()
        service.drop("2.png", sample_image(2))
        service.wait_for_endings(2)
        service.wait(service.is_idle, "both archived")
    audit.assert_complete(service.roots, samples([1, 2]))


def test_folder_tree_that_is_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    """250 levels, of which a path can name some 200: what can be named comes out, and nothing stops."""
    with ServiceUnderTest(tmp_path) as service:
        here = os.open(service.desk, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(250):
            os.mkdir(DEEPER, dir_fd=here)
            below = os.open(DEEPER, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        os.rename(service.desk / DEEPER, service.input / DEEPER)
        try:
            service.serve(f"{DEEPER}/{DEEPER}/a.png", sample_image(1))
            service.turn()
            assert service.named("image.failed") == []
        finally:
            run("rm", "-rf", service.input / DEEPER)  # too deep for Python's own way
