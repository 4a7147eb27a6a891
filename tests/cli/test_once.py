"""`rmbgd once`: options become a recipe, a person sees what happens, and the exit status says whether all came out."""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image
from rich.console import Console

from rmbgd.cli import main as cli
from rmbgd.cli import once
from rmbgd.cli.once import PROBLEMS_SHOWN
from rmbgd.config.settings import EngineSettings, Recipe, ServiceSettings
from rmbgd.engine import wiring
from rmbgd.engine.device_query import VisibleGpus
from rmbgd.errors import ConfigError, Exit
from rmbgd.service import oneshot
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import in_process
from tests.support.mounts import without_override


def parsed(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    once.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def faked(source: Path, output: Path, recipe: Recipe, **options: Any) -> oneshot.Summary:
    """What a run with a fake engine made of it."""
    around = {"engine": EngineSettings(device="cpu"), "service": ServiceSettings(), "emit": Mock()}
    made = in_process(lambda context: FakeBackend(context.arena.block))
    return oneshot.once(source, output, recipe, build_devices=made, **around, **options)


def recorded(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200, highlight=False, force_terminal=terminal), text


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "shoe.png"
    Image.new("RGB", (32, 24), "red").save(path)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the one-shot run was asked for. It refuses every file whose name begins with 'bad'."""
    calls: list[dict[str, Any]] = []

    def run(source: Path, output: Path, recipe: Recipe, **rest: Any) -> oneshot.Summary:
        calls.append({"source": source, "output": output, "recipe": recipe} | rest)
        failed = sum(name.startswith("bad") for name in oneshot.sources_of(source)[1])
        rest["emit"]("run.summary", done=1, failed=failed, skipped=0, seconds=0.5)
        return oneshot.Summary(done=1, failed=failed, seconds=0.5, problems=[("bad.png", "corrupt: no")] * failed)

    monkeypatch.setattr(oneshot, "once", run)
    return calls


def test_every_setting_of_the_recipe_is_an_option(image: Path) -> None:
    options = parsed(image, "out")
    assert {None} == {getattr(options, name) for name in Recipe.model_fields}
    assert Recipe() == once.settings(options)[1]


def test_options_replace_settings(image: Path) -> None:
    words = "--format webp --webp-quality 90 --no-webp-lossless --crop --crop-margin 0.1 --background #FF0000"
    more = ("--metadata", "copyright, artist", "--device", "cpu", "--models-dir", "/m")
    settings, recipe = once.settings(parsed(image, "out", *words.split(), *more))
    colours = {"webp_quality": 90, "webp_lossless": False, "background": "#ff0000"}
    assert Recipe(format="webp", crop=True, crop_margin=0.1, metadata=["copyright", "artist"], **colours) == recipe
    assert ("cpu", Path("/m")) == (settings.engine.device, settings.service.models_directory)


def test_options_replace_settings_of_a_named_recipe(image: Path, tmp_path: Path) -> None:
    (tmp_path / "rmbgd.toml").write_text('[engine]\ndevice = "cpu"\n[recipe.shop]\nformat = "tiff"\ncrop = true\n')
    words = ("--config", tmp_path / "rmbgd.toml", "--recipe", "shop", "--no-crop")
    settings, recipe = once.settings(parsed(image, "out", *words))
    assert Recipe(format="tiff", crop=False) == recipe
    assert "cpu" == settings.engine.device


def test_value_that_cannot_be_is_a_usage_error(
    image: Path, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert Exit.USAGE == once.run(parsed(image, "out", "--png-level", "9"))
    assert "rmbgd once: png_level: Input should be less than or equal to 3 (is 9)\n" == capsys.readouterr().err
    assert Exit.USAGE == once.run(parsed(image, "out", "--device", "g\udcffu"))  # as the shell hands over odd bytes
    assert capsys.readouterr().err.startswith("rmbgd once: engine.device: 'g\\udcffu' is no device; write")
    assert [] == asked


def test_all_done_is_exit_0(image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert Exit.OK == once.run(parsed(image, image.parent / "out", "--overwrite"))
    assert ("1 done; 0.5 s\n", "") == capfd.readouterr()
    (call,) = asked
    assert (image, image.parent / "out", True) == (call["source"], call["output"], call["overwrite"])


def test_one_refused_file_is_exit_1(
    tmp_path: Path, image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    assert Exit.FAILED == once.run(parsed(tmp_path, tmp_path / "out"))
    assert "refused bad.png: corrupt: no\n1 done, 1 refused; 0.5 s\n" == capfd.readouterr().out


def test_json_is_one_event_a_line(image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert Exit.OK == once.run(parsed(image, "out", "--json"))
    (line,) = capfd.readouterr().out.splitlines()
    assert "run.summary" == json.loads(line)["event"]


def test_existing_output_is_skipped_and_counted() -> None:
    console, text = recorded()
    once.sum_up(console, done=0, failed=0, skipped=2, seconds=0.1, problems=[])
    assert text.getvalue().startswith("0 done, 2 skipped, as their output exists (--overwrite")


def test_many_refused_files_are_counted() -> None:
    console, text = recorded()
    problems = [(f"{number}.png", "corrupt") for number in range(100)]
    once.sum_up(console, done=0, failed=100, skipped=0, seconds=1.0, problems=problems)
    assert PROBLEMS_SHOWN + 2 == len(text.getvalue().splitlines())
    assert f"... and {100 - PROBLEMS_SHOWN} more" in text.getvalue()


def test_fault_of_the_engine_is_shown_at_once() -> None:
    console, text = recorded()
    with once.progress(console, 2) as emit:
        emit("engine.fault", device="cuda:0", kind="lost", detail="[died]", images=1, restarts=1)
        assert "engine.fault: device cuda:0, kind lost, detail [died], images 1, restarts 1" in text.getvalue()


def test_bar_follows_the_images() -> None:
    console, text = recorded(terminal=True)
    with once.progress(console, 3) as emit:
        for event in ("engine.started", "image.done", "image.failed", "service.reload"):
            emit(event, device="cpu")
    assert "2/3" in text.getvalue().rpartition("on cpu")[2]


@pytest.mark.parametrize("links", [True, False])
def test_equal_images_have_an_output_each(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed once: the second is a copy of an output that has been moved to its place by then."""
    if not links:
        monkeypatch.setattr(oneshot.os, "link", Mock(side_effect=OSError(errno.EPERM, "no links here")))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        Image.new("RGB", (32, 24), "navy").save(tmp_path / "in" / name)
    summary = faked(tmp_path / "in", tmp_path / "out", Recipe(sidecar="always"))

    assert (3, 0, []) == (summary.done, summary.failed, summary.problems)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert ["a.png", "a.png.json", "b.png", "b.png.json", "sub/c.png", "sub/c.png.json"] == found
    assert 1 == len({(tmp_path / "out" / name).read_bytes() for name in ("a.png", "b.png", "sub/c.png")})


def test_output_that_cannot_take_its_place_is_refused_and_the_others_done(tmp_path: Path) -> None:
    """A folder stands under the name of one cutout, and a file under that of a sub-folder."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "b.png").mkdir(parents=True)
    (tmp_path / "out" / "sub").write_bytes(b"")
    for name, colour in (("a.png", "navy"), ("b.png", "red"), ("sub/c.png", "green")):
        Image.new("RGB", (32, 24), colour).save(tmp_path / "in" / name)
    summary = faked(tmp_path / "in", tmp_path / "out", Recipe(sidecar="never"), overwrite=True)
    assert (1, 2) == (summary.done, summary.failed)
    assert {"b.png", "sub/c.png"} == {path for path, _ in summary.problems}
    assert all(str(tmp_path / "out" / path[:3]) in why for path, why in summary.problems)
    assert {"a.png", "b.png", "sub"} == {path.name for path in (tmp_path / "out").iterdir()}


def test_folder_named_like_an_image_is_the_folder_to_write_into(tmp_path: Path, image: Path) -> None:
    (tmp_path / "all.png").mkdir()
    assert 1 == faked(image, tmp_path / "all.png", Recipe(sidecar="never")).done
    assert ["shoe.png"] == [path.name for path in (tmp_path / "all.png").iterdir()]


def test_folder_that_another_run_takes_for_a_left_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking it: the other has it locked, or has removed it already."""
    real, locks = oneshot.tempfile.mkdtemp, []

    def make(**where: Any) -> str:
        made = real(**where)
        if len(locks) == 0:
            locks.append(os.open(made, os.O_RDONLY))
            fcntl.flock(locks[0], fcntl.LOCK_EX)
        elif len(locks) == 1:
            locks.append(-1)
            os.rmdir(made)
        return made

    monkeypatch.setattr(oneshot.tempfile, "mkdtemp", make)
    with oneshot.staging(tmp_path) as folder:
        assert folder.is_dir()
    assert 1 == len(list(tmp_path.iterdir()))
    os.close(locks[0])


def test_without_locks_nothing_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks no folders: nobody could tell whether another machine is at work there."""
    left = tmp_path / f"{oneshot.STAGING}left"
    left.mkdir()
    monkeypatch.setattr(oneshot.fcntl, "flock", Mock(side_effect=OSError(errno.EBADF, "no locks here")))
    with oneshot.staging(tmp_path) as folder:
        assert {left, folder} == set(tmp_path.iterdir())
    assert [left] == list(tmp_path.iterdir())


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts `rmbgd once` on more images than it gets through, and waits for its first cutout in `out`."""
    (tmp_path / "in").mkdir()
    for number in range(2000):
        Image.new("RGB", (64, 48), (number % 256, number // 256, 0)).save(tmp_path / "in" / f"{number:04}.png")
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rmbgd", "once", tmp_path / "in", tmp_path / "out", "--device", "cpu"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        while not list((tmp_path / "out").glob("*.png")):
            assert started[-1].poll() is None, started[-1].communicate()
            time.sleep(0.05)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_run_that_is_told_to_end_leaves_only_cutouts(
    number: signal.Signals, tmp_path: Path, endless: Callable[[], subprocess.Popen[str]]
) -> None:
    """Sent twice, as timeout(1) does."""
    process = endless()
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(number)
    _, err = process.communicate()
    assert (128 + number, "") == (process.returncode, err)
    assert [] == list((tmp_path / "out").glob(".*"))


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path, image: Path, endless: Callable[[], subprocess.Popen[str]]
) -> None:
    process = endless()
    (folder,) = (tmp_path / "out").glob(f"{oneshot.STAGING}*")
    faked(image, tmp_path / "out", Recipe())
    assert folder.is_dir()
    process.kill()
    process.communicate()
    assert folder.is_dir()
    faked(image, tmp_path / "out", Recipe())
    assert [] == list((tmp_path / "out").glob(".*"))


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_folder_through_the_real_engine(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 48), "navy").save(tmp_path / "in" / "a.jpg")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "in" / "sub" / "b.png")
    (tmp_path / "in" / "c.jpg").write_bytes(b"<?php system($_GET['c']); ?>")
    command = ["-m", "rmbgd", "once", tmp_path / "in", tmp_path / "out", "--device", "cpu"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stderr)
    assert "refused c.jpg: unidentified" in done.stdout
    assert {"a.png", "b.png"} == {path.name for path in (tmp_path / "out").rglob("*.png")}
    assert (tmp_path / "out" / "sub" / "b.png").is_file()
    with Image.open(tmp_path / "out" / "a.png") as cutout:
        assert ("RGBA", (64, 48)) == (cutout.mode, cutout.size)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_missing_model_is_reported_before_images_are_touched(
    tmp_path: Path, image: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "birefnet", "--models-dir", str(tmp_path), "--device", "cpu"]
    assert Exit.CONFIGURATION == cli.main(["once", str(image), str(tmp_path / "out"), *options])
    assert "rmbgd models fetch birefnet" in capfd.readouterr().err
    assert [] == list((tmp_path / "out").glob("*"))


@pytest.mark.integration
@pytest.mark.parametrize(("start", "said"), [("exit:3", "ended with status 3"), ("lost", "device is lost")])
def test_engine_that_cannot_start_ends_the_run(
    tmp_path: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    start: str,
    said: str,
) -> None:
    machine = wiring.Machine(
        gpus=lambda: VisibleGpus(0, "a test"), sensor=Mock(), fallback=Mock(),
        factory="rmbgd.testing.engine:create", options=lambda *_: {"start": start},
    )  # fmt: skip
    monkeypatch.setattr(wiring, "default_machine", lambda: machine)
    assert Exit.CONFIGURATION == cli.main(["once", str(image), str(tmp_path / "out"), "--device", "cpu"])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rmbgd once: the engine cannot be started: ")
    assert said in line
    assert [] == list((tmp_path / "out").glob("*"))


def test_engine_that_cannot_start_again_ends_the_run(tmp_path: Path, image: Path) -> None:
    starts = iter(["ok", "model", "model"])
    made = in_process(lambda context: FakeBackend(context.arena.block, script=["lost"], start=next(starts)))
    around = {"engine": EngineSettings(device="cpu"), "service": ServiceSettings(), "emit": Mock()}
    with pytest.raises(ConfigError, match="the engine cannot be started: the script says that the weights are damaged"):
        oneshot.once(image, tmp_path / "out", Recipe(), build_devices=made, **around)


@pytest.mark.integration
@pytest.mark.parametrize("closed", [".", "birefnet-lite", "birefnet-lite/model.safetensors"])
def test_weights_that_may_not_be_read_are_reported_before_an_engine_starts(
    tmp_path: Path, image: Path, closed: str
) -> None:
    """Somebody else's, at any level: one line that names what cannot be reached."""
    models = tmp_path / "models"
    weights = models / "birefnet-lite" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (models / closed).chmod(0o700)
    os.chown(models / closed, 65534, 65534)
    options = ["--model", "birefnet-lite", "--models-dir", models, "--device", "cpu"]
    command = [*without_override(), sys.executable, "-m", "rmbgd", "once", image, tmp_path / "out", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (Exit.CONFIGURATION, "") == (done.returncode, done.stdout)
    (line,) = done.stderr.splitlines()
    assert str(models / "birefnet-lite") in line
    assert "cannot be read: Permission denied" in line
