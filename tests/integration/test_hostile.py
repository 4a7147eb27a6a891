"""Files, names and entries that nobody sane would drop: each ends right or refused (T28, T29, T31)."""

from __future__ import annotations

import csv
import io
import os
import random
import socket
import struct
import threading
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmbgd.errors import Reason
from tests.conftest import CampaignPart
from tests.support import audit
from tests.support.images import assert_cutout_of, encoded, expected_cutout, rgba_of, sample_image
from tests.support.mounts import run
from tests.support.service import ServiceUnderTest
from tests.support.shared_data import shared

MEMORY = 1_500_000_000  # bytes that the service may take at its peak, whatever comes in
IMPATIENT = {"intake": {"incomplete_timeout": 2.0}}
ROOMY = {"limits": {"pixels": 50_000_000}, "pipeline": {"arena_bytes": 512 << 20}, **IMPATIENT}
SWAPS = 150
# Headers of nonsense without anything behind: their end is missing before a decoder has a say.
FRAGMENTS = ("imagepng_x_issue_214.png", "imagepng_x_issue_230.0.png", "imagepng_x_issue_230.1.png")


def peak_memory(service: ServiceUnderTest) -> int:
    """Bytes; of the running service itself."""
    assert service.process is not None
    for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell")


# ------------------------------------------------------------------------------------------------------------- content


def animation(kind: str) -> bytes:
    frames = [Image.open(io.BytesIO(sample_image(number))) for number in range(3)]
    target = io.BytesIO()
    frames[0].save(target, kind, save_all=True, append_images=frames[1:])
    return target.getvalue()


def converted(number: int, mode: str, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    with Image.open(io.BytesIO(sample_image(number))) as opened:
        opened.convert(mode).save(target, kind, **options)
    return target.getvalue()


def sixteen_bits() -> bytes:
    ramp = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (48, 1))
    return encoded(ramp)


def turned() -> bytes:
    """Stored on its side; EXIF says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return sample_image(4, kind="JPEG", exif=exif)


def bomb(width: int, height: int) -> bytes:
    """A few bytes that claim to be an enormous image."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


BAD: dict[str, tuple[Callable[[], bytes], Reason]] = {
    "empty.jpg": (lambda: b"", Reason.EMPTY),
    "text.jpg": (lambda: b"not an image at all\n" * 50, Reason.UNIDENTIFIED),
    "script.png": (lambda: b"<?php system($_GET['c']); ?>\n" * 20, Reason.UNIDENTIFIED),
    "postscript.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" * 20, Reason.FORMAT_NOT_ALLOWED),
    "archive.png": (lambda: b"PK\x03\x04" + bytes(range(256)) * 4, Reason.UNIDENTIFIED),
    "noise.jpg": (lambda: np.random.default_rng(1).bytes(5000), Reason.UNIDENTIFIED),
    "icon.png": (lambda: converted(1, "RGB", "ICO"), Reason.FORMAT_NOT_ALLOWED),
    "moving.gif": (lambda: animation("GIF"), Reason.ANIMATED),
    "moving.webp": (lambda: animation("WEBP"), Reason.ANIMATED),
    "moving.png": (lambda: animation("PNG"), Reason.ANIMATED),
    "bomb.png": (lambda: bomb(30_000, 30_000), Reason.TOO_LARGE),
    "strip.png": (lambda: bomb(1, 50_000_000), Reason.TOO_LARGE),
    "absurd.png": (lambda: bomb(2**31 - 1, 2**31 - 1), Reason.TOO_LARGE),
    "cut.jpg": (lambda: sample_image(2, kind="JPEG")[:-200], Reason.TRUNCATED),
    "cut.png": (lambda: sample_image(3)[:-200], Reason.TRUNCATED),
}
GOOD: dict[str, Callable[[], bytes]] = {
    "png-named.jpg": lambda: sample_image(10),
    "jpeg-named.png": lambda: sample_image(11, kind="JPEG"),
    "palette.png": lambda: converted(12, "P", "PNG"),
    "dot.png": lambda: sample_image(13, size=(1, 1)),
    "grey.png": lambda: converted(14, "L", "PNG"),
    "first-of-many.jpg": lambda: animation("MPO"),
    "bitmap.bmp": lambda: sample_image(15, kind="BMP"),
    "still.gif": lambda: sample_image(16, kind="GIF"),
    "tagged.tif": lambda: sample_image(17, kind="TIFF", compression="tiff_lzw"),
}
SHAPES: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "turned.jpg": (turned, (48, 64)),
    "print.jpg": (lambda: converted(5, "CMYK", "JPEG"), (64, 48)),
    "sixteen.png": (sixteen_bits, (64, 48)),
}


def test_bad_set(tmp_path: Path) -> None:
    """Empty, foreign, enormous, moving and cut files have each their reason; odd but legal ones come out right."""
    bad = {name: make() for name, (make, _) in BAD.items()}
    good = {name: make() for name, make in GOOD.items()}
    shaped = {name: make() for name, (make, _) in SHAPES.items()}
    with ServiceUnderTest(tmp_path, settings=IMPATIENT) as service:
        for name, data in (bad | good | shaped).items():
            service.drop(name, data)
        service.wait_for_endings(len(bad) + len(good) + len(shaped))
        reasons = {event["path"]: event["reason"] for event in service.named("image.failed")}
        assert reasons == {name: reason for name, (_, reason) in BAD.items()}
        assert {name: audit.reason_of(service.failed, name) for name in bad} == reasons
        outputs = {event["path"]: service.output / event["output"] for event in service.named("image.done")}
        for name, data in good.items():
            assert_cutout_of(data, outputs[name], within=4)
        for name, (_, size) in SHAPES.items():
            assert rgba_of(outputs[name]).shape[:2] == size[::-1], name
        steps = rgba_of(outputs["sixteen.png"])[0, :, 3]
        assert len(set(steps)) > 60, "16 bits were clipped, not scaled"
        ended = audit.places(service.roots, bad | good | shaped)
        assert set(ended.values()) == {"done", "failed"}
        assert peak_memory(service) < MEMORY


def test_first_frame_where_the_recipe_says_so(tmp_path: Path) -> None:
    """With animated = "first_frame" a moving image gives the cutout of its first frame."""
    with ServiceUnderTest(tmp_path, recipe={"animated": "first_frame"}) as service:
        data = animation("PNG")
        service.drop("moving.png", data)
        service.wait_for("image.done", path="moving.png")
        assert_cutout_of(sample_image(0), service.output / "moving.png")


@pytest.mark.campaign
@pytest.mark.timeout(300)
def test_every_file_that_broke_a_decoder(tmp_path: Path, campaign_part: CampaignPart) -> None:
    """The corpus at once, with the largest limits: each ends as it should, in one process, in bounded memory."""
    corpus = shared("hostile") / "files"
    table = Path(__file__).parents[1] / "imaging" / "hostile_expected.tsv"
    with table.open(newline="") as stream:
        expected = {row["file"]: row["outcome"] for row in csv.DictReader(stream, delimiter="\t")}
    expected |= dict.fromkeys(FRAGMENTS, str(Reason.TRUNCATED))
    expected = {name: expected[name] for name in campaign_part.of(sorted(expected))}
    with ServiceUnderTest(tmp_path, settings=ROOMY) as service:
        for name in expected:
            service.drop(name, (corpus / name).read_bytes())
        service.wait_for_endings(len(expected), timeout=240.0)
        seen = {event["path"]: event["reason"] for event in service.named("image.failed")}
        seen |= {event["path"]: f"{event['width']}x{event['height']}" for event in service.named("image.done")}
        assert {name: (seen[name], expected[name]) for name in expected if seen[name] != expected[name]} == {}
        assert peak_memory(service) < MEMORY
        service.turn()
        assert len(service.named("service.ready")) == 1


# --------------------------------------------------------------------------------------------------------------- names

NAMES = [
    b"with space.png",
    b"  leading and trailing  .png ",
    b"new\nline.png",
    b"carriage\rreturn.png",
    b"\x1b[31mred\x1b[0m.png",
    b"tab\t.png",
    b"-rf.png",
    b"--help.png",
    b"per%cent%2Fslash%00.png",
    b"%s%n%x.png",
    b"$(reboot).png",
    b"`id`;&|<>.png",
    b"quote'\".png",
    b"back\\slash.png",
    b"*?[a].png",
    b'{"json": 1}.png',
    "🦄 unicorn.png".encode(),
    unicodedata.normalize("NFC", "é-twin.png").encode(),
    unicodedata.normalize("NFD", "é-twin.png").encode(),
    "\u202egnp.right-to-left.png".encode(),
    "İstanbul.png".encode(),
    b"\xff\xfe not utf-8.png",
    b"\xc3 half a character.png",
    b"\xed\xa0\x80 surrogate.png",
    b"UPPER.PNG",
    b"noextension",
    b"trailingdot.",
    b"two..dots.png",
    b"many.dots.in.it.png",
    b"12__claimed.png",
    b"x~2.png",
    b"CON.png",
    b"x" * 251 + b".png",
    b"y" * 255,
    b"z" * 250 + b".jpeg",
    "ü".encode() * 125 + b".png",
    b"\xfe" * 251 + b".png",
    b"dotless" + b"." + b"e" * 247,
    b"deep/" * 60 + b"down.png",
    b"\xff/\xfe/bytes.png",
    b"d" * 255 + b"/" + b"e" * 251 + b".png",
    b"folder.png/inside.png",
]


@pytest.mark.parametrize("originals", ["archive", "keep"])
def test_names_of_every_kind(tmp_path: Path, originals: str) -> None:
    """Any bytes that make a name on Linux: a cutout each, a legal output name, a log that stays JSON, done once."""
    data = {os.fsdecode(name): sample_image(number) for number, name in enumerate(NAMES)}
    with ServiceUnderTest(tmp_path, folder={"originals": originals}) as service:
        for name, content in data.items():
            service.drop(name, content)
        service.wait_for_endings(len(data))
        assert service.named("image.failed") == []
        outputs = {event["path"]: event["output"] for event in service.named("image.done")}
        assert outputs.keys() == data.keys()
        assert len(set(outputs.values())) == len(data)
        assert sorted(outputs.values()) == audit.files(service.output)
        for name, content in data.items():
            assert all(len(os.fsencode(part)) <= 255 for part in outputs[name].split("/"))
            assert os.path.dirname(outputs[name]) == os.path.dirname(name)
            assert_cutout_of(content, service.output / outputs[name])
        if originals == "archive":
            assert set(audit.places(service.roots, data).values()) == {"done"}
        assert len(service.recorded("image.done")) == len(data)
        assert service.stop() == 0
        service.start()
        service.turn(2)
        assert service.computed() == len(data)


def test_refused_names_of_every_kind(tmp_path: Path) -> None:
    """Bad files of difficult names are set aside under them, each with its reason file, whose name is legal too."""
    data = {os.fsdecode(name): b"no image %06d " % number * 40 for number, name in enumerate(NAMES)}
    with ServiceUnderTest(tmp_path) as service:
        for name, content in data.items():
            service.drop(name, content)
        service.wait_for_endings(len(data))
        refused = {event["path"]: event for event in service.named("image.failed")}
        assert refused.keys() == data.keys()
        for name, content in data.items():
            assert refused[name]["reason"] == Reason.UNIDENTIFIED
            assert (service.failed / refused[name]["quarantine"]).read_bytes() == content
        assert len(audit.files(service.failed)) == 2 * len(data)


# -------------------------------------------------------------------------------------------------------------- entries


def test_entries_that_are_no_files_are_never_opened(tmp_path: Path) -> None:
    """Links, pipes, sockets, devices and foreign hard links are told once in their life, stay, and stop nobody."""
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
        told = [event["path"] for event in service.named("image.failed")]
        assert sorted(told) == sorted(entries)
        reasons = {event["path"]: event["reason"] for event in service.named("image.failed")}
        hard = reasons.pop("hard.png", Reason.HARDLINK)
        assert hard == Reason.HARDLINK
        assert set(reasons.values()) == {Reason.NOT_REGULAR}
        assert all(os.path.lexists(service.input / name) for name in entries)
        assert audit.files(service.output) == ["album.png/inside.png"]
        assert audit.files(service.done) == ["album.png/inside.png"]
        assert audit.files(service.failed) == []
        assert (outside / "secret.png").read_bytes() == secret


@pytest.mark.parametrize("what", ["file", "folder"])
def test_swap_for_a_link_gains_nothing(tmp_path: Path, what: str) -> None:
    """A file, or the folder above it, that is swapped for a link at any moment never gives what the link points at."""
    secret = sample_image(99)
    outside = tmp_path / "outside"
    outside.mkdir()
    names = [f"{number}.png" for number in range(SWAPS)]
    dice, moment = random.Random(31), threading.Event()
    with ServiceUnderTest(tmp_path / "service", settings={"intake": {"quiet_closed": 0.05}}) as service:
        for number, name in enumerate(names):
            path = f"{number}/{name}" if what == "folder" else name
            service.drop(path, sample_image(number + 1000))
            (outside / name).write_bytes(secret)
            moment.wait(dice.uniform(0.0, 0.15))  # before it is seen, while it settles, between look and claim, after
            if what == "file":
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
        for root in (service.done, service.failed):
            for name in audit.files(root):
                assert not (root / name).is_symlink(), f"the link {name} was carried on"
                assert (root / name).read_bytes() != secret, f"{name} was taken from behind a link"
        assert sorted(os.listdir(outside)) == sorted(names)
        assert all((outside / name).read_bytes() == secret for name in names)


def test_claim_folder_of_a_stranger_is_not_used(tmp_path: Path) -> None:
    """A link where the claim folder belongs: nothing is moved through it; without it everything goes on."""
    outside = tmp_path / "outside"
    outside.mkdir()
    service = ServiceUnderTest(tmp_path / "service")
    (service.input / ".rmbgd").symlink_to(outside)
    with service:
        service.drop("a.png", sample_image(1))
        service.wait(lambda: service.named("intake.blocked") or service.endings("a.png"), "a word on the image")
        assert os.listdir(outside) == []
        (service.input / ".rmbgd").unlink()
        service.drop("b.png", sample_image(2))
        service.wait(lambda: service.endings("a.png") and service.endings("b.png"), "both images")
        service.wait(service.is_idle, "both archived")
    audit.assert_complete(service.roots, {"a.png": sample_image(1), "b.png": sample_image(2)})


def test_folder_tree_of_a_thousand_levels(tmp_path: Path) -> None:
    """Deeper than a path may be long: what can be named comes out, and nothing stops."""
    with ServiceUnderTest(tmp_path) as service:
        here = os.open(service.desk, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(1000):
            os.mkdir("deeper", dir_fd=here)
            below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        os.rename(service.desk / "deeper", service.input / "deeper")
        try:
            service.drop("deeper/deeper/a.png", sample_image(1))
            service.wait_for("image.done", path="deeper/deeper/a.png")
            service.turn(3)
            assert service.named("image.failed") == []
        finally:
            run("rm", "-rf", service.input / "deeper")  # too deep for Python's own way
