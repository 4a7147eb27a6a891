"""`rmbgd once` in a pipe: the cutout alone on standard output, words on standard error, and readers that leave."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import PIL.Image
import pytest

from rmbgd.cli import main as cli
from rmbgd.errors import Exit
from rmbgd.service import oneshot
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import in_process
from tests.support.mounts import mounted

Fds = pytest.CaptureFixture[bytes]


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = in_process(lambda context: FakeBackend(context.arena.block))
    monkeypatch.setattr(oneshot, "once", partial(oneshot.once, build_devices=made))
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a.jpg", "red"), ("b.jpg", "navy")):
        PIL.Image.new("RGB", (32, 24), colour).save(name)


@pytest.fixture
def piped() -> Iterator[Callable[[bytes], None]]:
    """Makes these bytes, and no more, what comes on standard input."""
    saved = os.dup(0)

    def pipe(data: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield pipe
    os.dup2(saved, 0)
    os.close(saved)


def run(words: str) -> int:
    return cli.main(["once", *words.split(), "--device", "cpu", "--sidecar", "never"])


def kind(data: bytes) -> tuple[str | None, str, tuple[int, int]]:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return image.format, image.mode, image.size


@pytest.mark.parametrize(
    ("options", "expected"),
    [("", ("PNG", "RGBA")), ("--format jpeg", ("JPEG", "RGB")), ("--content mask", ("PNG", "L"))],
)
def test_cutout_alone_is_on_standard_output(
    options: str, expected: tuple[str, str], piped: Callable[[bytes], None], capfdbinary: Fds
) -> None:
    piped(Path("a.jpg").read_bytes())
    assert Exit.OK == run(f"- - {options}")
    out, err = capfdbinary.readouterr()
    assert (*expected, (32, 24)) == kind(out)
    first, second = err.decode().splitlines()
    assert first.startswith("- -> - (32x24, u2netp on fake, ")
    assert second.startswith("1 done (1 without a subject: -); ")


def test_json_is_on_standard_error_where_the_cutout_is_on_standard_output(capfdbinary: Fds) -> None:
    assert Exit.OK == run("a.jpg - --json")
    out, err = capfdbinary.readouterr()
    assert ("PNG", "RGBA", (32, 24)) == kind(out)
    assert err.splitlines()[-1].startswith(b'{"event":"run.summary"')


def test_standard_input_goes_to_a_file_or_a_folder(piped: Callable[[bytes], None], capfdbinary: Fds) -> None:
    for output, written in (("x.webp", "x.webp"), ("out/", "out/stdin.png")):
        piped(Path("a.jpg").read_bytes())
        assert Exit.OK == run(f"- {output}")
        assert b" -> %s (" % written.encode() in capfdbinary.readouterr().out
        assert Path(written).is_file()


def test_refused_image_leaves_standard_output_empty(piped: Callable[[bytes], None], capfdbinary: Fds) -> None:
    piped(b"<?php system($_GET['c']); ?>")
    assert Exit.FAILED == run("- -")
    out, err = capfdbinary.readouterr()
    assert b"" == out
    assert err.startswith(b"rejected -: unidentified (")


def test_empty_standard_input_is_told(piped: Callable[[bytes], None], capfdbinary: Fds) -> None:
    piped(b"")
    assert Exit.FAILED == run("- out")
    assert (b"", b"rmbgd once: nothing came on standard input\n") == capfdbinary.readouterr()
    assert not Path("out").exists()


def test_reader_that_leaves_before_the_cutout_is_told_of(capfdbinary: Fds) -> None:
    reading, writing = os.pipe()
    saved = os.dup(1)
    os.close(reading)
    os.dup2(writing, 1)
    os.close(writing)
    try:
        assert Exit.FAILED == run("a.jpg -")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    last = capfdbinary.readouterr().err.splitlines()[-1]
    assert b"rmbgd once: cannot write to standard output: its reader left before it had the whole cutout" == last


@pytest.mark.parametrize("device", ["/dev/full", ""])
def test_images_are_done_though_nobody_takes_the_words(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A full disk behind >, and `| head -1`."""
    Path("many").mkdir()
    for number in range(8):
        PIL.Image.new("RGB", (32, 24), (number, 0, 0)).save(f"many/{number}.png")
    if device:
        writing = os.open(device, os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    with open(writing, "w", encoding="utf-8") as lost, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", lost)
        assert Exit.FAILED == run("many out")
    assert [f"{number}.png" for number in range(8)] == sorted(os.listdir("out"))
    err = capfd.readouterr().err
    assert ("rmbgd once: No space left on device" in err) == bool(device)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words", ["a.jpg --overwrite b.jpg out", "a.jpg b.jpg --overwrite out", "--overwrite -- a.jpg b.jpg out"]
)
def test_options_may_stand_between_paths(words: str) -> None:
    assert Exit.OK == cli.main(["once", "--quiet", *words.split()])
    assert ["a.png", "b.png"] == sorted(name for name in os.listdir("out") if not name.endswith(".json"))


def test_unknown_option_is_none_of_the_paths(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run("a.jpg b.jpg --colour red out")
    assert Exit.USAGE == leaving.value.code
    assert "--colour" in capfd.readouterr().err


def test_folder_without_files_is_said_to_be_empty(capfd: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert Exit.OK == run("empty/ out")
    assert ("no files in empty/\n", "") == capfd.readouterr()


@pytest.mark.integration
def test_full_disk_is_told_for_each_image_and_leaves_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("small").mkdir()
    with mounted(tmp_path / "small", "tmpfs", "size=16k"):
        Path("small/full").write_bytes(bytes(12 << 10))
        for name in ("a.jpg", "b.jpg"):
            PIL.Image.effect_noise((128, 128), 90).save(name)
        assert Exit.FAILED == run("a.jpg b.jpg small")
        assert ["full"] == os.listdir("small")
    out, err = capfd.readouterr()
    assert ("", 3) == (err, len(out.splitlines()))
    assert 2 == out.count("No space left on device")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a.jpg -", "standard output is a terminal; write > FILE behind the command, or name a file as OUT"),
        ("- out", "standard input is a terminal; pipe an image into it, or name a file"),
    ],
)
def test_no_image_goes_to_a_terminal_or_comes_from_one(words: str, said: str) -> None:
    controller, terminal = os.openpty()
    command = [sys.executable, "-m", "rmbgd", "once", *words.split()]
    done = subprocess.run(command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False)
    for descriptor in (controller, terminal):
        os.close(descriptor)
    assert (Exit.USAGE, f"rmbgd once: {said}\n") == (done.returncode, done.stderr)


@pytest.mark.integration
def test_cutout_for_a_closed_standard_output_is_not_said_to_be_done() -> None:
    command = f"exec {sys.executable} -m rmbgd once a.jpg - >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    said = "rmbgd once: standard output is closed; write > FILE behind the command, or name a file as OUT\n"
    assert (Exit.USAGE, said) == (done.returncode, done.stderr)


@pytest.mark.parametrize("words", [["a.jpg", ""], ["", "out"], ["", "b.jpg", "out"]])
def test_empty_path_is_refused(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """`rmbgd once a.jpg "$OUT"` where OUT is not set."""
    assert Exit.USAGE == cli.main(["once", *words])
    assert "rmbgd once: a path is empty; name a file or a folder (. is this one)\n" == capfd.readouterr().err
    assert {"a.jpg", "b.jpg"} == set(os.listdir())


@pytest.mark.integration
def test_names_that_a_locale_cannot_spell_are_escaped() -> None:
    """And those that no locale can: bytes that are no UTF-8."""
    names = "ä漢.jpg", os.fsdecode(b"\xff.jpg")
    for name in names:
        PIL.Image.new("RGB", (32, 24), "red").save(name, "JPEG")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "rmbgd", "once", *names, "out", "--device", "cpu", "--sidecar", "never"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (Exit.OK, b"") == (done.returncode, done.stderr)
    assert done.stdout.isascii()
    assert {os.fsencode(name)[:-4] + b".png" for name in names} == set(os.listdir(b"out"))
