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

import av
import PIL.Image
import pytest

from rmbgd.cli import main as cli
from rmbgd.cli import once
from rmbgd.config.load import Config
from rmbgd.config.settings import EngineSettings, Folder, Recipe, ServiceSettings
from rmbgd.engine import wiring
from rmbgd.engine.device_query import VisibleGpus
from rmbgd.errors import ConfigError, Exit
from rmbgd.service import oneshot
from rmbgd.service.destination import InputImage, RunPlan, Summary, plan
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.worker import in_process
from tests.support.films import film, pictures
from tests.support.images import sample_image
from tests.support.mounts import without_override


def parsed(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    once.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def faked(*paths: Path | str, recipe: Recipe | None = None, **options: Any) -> Summary:
    """What a run with a fake engine made of it; the last path is the output."""
    *sources, output = map(str, paths)
    around = {"engine": EngineSettings(device="cpu"), "service": ServiceSettings(), "emit": Mock()} | options
    made = in_process(lambda context: FakeBackend(context.arena.block))
    return oneshot.once(plan(sources, output), recipe or Recipe(sidecar="never"), build_devices=made, **around)


def recorded(*, terminal: bool = False) -> tuple[once.Words, io.StringIO]:
    text = io.StringIO()
    return once.Words(text, width=200, force_terminal=terminal), text


def asked_for(count: int) -> RunPlan:
    return RunPlan(
        [InputImage("/in", f"{n}.jpg", f"{n}.jpg", f"{n}.jpg") for n in range(count)],
        Path("out"),
        None,
        "out",
        None,
        [],
    )


def painted(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (32, 24), colour).save(path)
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "shoe.png"
    PIL.Image.new("RGB", (32, 24), "red").save(path)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the one-shot run was asked for. It refuses every file whose name begins with 'bad'."""
    calls: list[dict[str, Any]] = []

    def run(found: RunPlan, recipe: Recipe, **rest: Any) -> None:
        calls.append({"plan": found, "recipe": recipe} | rest)
        for image in found.images:
            if image.shown.startswith("bad"):
                rest["summary"].failed += 1
                rest["emit"]("image.failed", path=image.shown, reason="corrupt", detail="no")
            else:
                rest["summary"].done += 1
        rest["summary"].seconds = 0.5
        rest["emit"]("run.summary", done=1, failed=0, skipped=0, seconds=0.5)

    monkeypatch.setattr(oneshot, "once", run)
    return calls


def test_every_setting_of_the_recipe_is_an_option(image: Path) -> None:
    options = parsed(image, "out")
    assert {None} == {getattr(options, name) for name in once.SETTINGS}
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
    assert "rmbgd once: png_level: must be at most 3 (is 9)\n" == capsys.readouterr().err
    assert Exit.USAGE == once.run(parsed(image, "out", "--device", "g\udcffu"))  # as the shell hands over odd bytes
    assert capsys.readouterr().err.startswith("rmbgd once: engine.device: 'g\\udcffu' is no device; write")
    assert [] == asked


def test_all_done_is_exit_0(image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert Exit.OK == once.run(parsed(image, image.parent / "out", "--overwrite"))
    assert ("1 done; 0.5 s\n", "") == capfd.readouterr()
    (call,) = asked
    assert ([image.name], image.parent / "out", True) == (
        [each.path for each in call["plan"].images],
        call["plan"].place,
        call["overwrite"],
    )


def test_one_refused_file_is_exit_1(
    tmp_path: Path, image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    assert Exit.FAILED == once.run(parsed(tmp_path, tmp_path / "out"))
    assert "rejected bad.png: corrupt (no)\n1 done, 1 rejected; 0.5 s\n" == capfd.readouterr().out


def test_json_is_one_event_a_line(image: Path, asked: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]) -> None:
    assert Exit.OK == once.run(parsed(image, "out", "--json"))
    (line,) = capfd.readouterr().out.splitlines()
    assert "run.summary" == json.loads(line)["event"]


def test_existing_output_is_skipped_and_counted() -> None:
    console, text = recorded()
    once.sum_up(console, Summary(skipped=2, seconds=0.1))
    assert text.getvalue().startswith("0 done, 2 skipped, as their output exists (--overwrite")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["wall.jpg"], "3 done (1 without a subject: wall.jpg); 4.3 s, 0.7 a second\n"),
        (["a", "b", "c", "d", "e\n"], "3 done (5 without a subject: a, b, c, and 2 more); 4.3 s, 0.7 a second\n"),
    ],
)
def test_images_without_a_subject_are_counted_and_named(names: list[str], said: str) -> None:
    console, text = recorded()
    once.sum_up(console, Summary(done=3, seconds=4.3, empty=names))
    assert said == text.getvalue()


DONE = {
    "path": "shoe [1].jpg", "output": "shoe.png", "width": 1280, "height": 960, "model": "u2netp", "device": "cpu",
    "milliseconds": {"wait": 9000.0, "total": 10_200.0}, "verdict": "ok",
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "keys", "said"),
    [
        ("image.done", {}, "shoe [1].jpg -> out/shoe.png (1280x960, u2netp on cpu, 1.2 s)"),
        (
            "image.done",
            {"verdict": "empty"},
            "shoe [1].jpg -> out/shoe.png (1280x960, u2netp on cpu, 1.2 s): no subject",
        ),
        ("image.done", {"verdict": "full"}, "1.2 s): fills the frame"),
        ("image.done", {"milliseconds": {"wait": 9e3, "queue": 8e3, "total": 18e3}}, "cpu, 1.0 s)"),
        (
            "image.failed",
            {"reason": "truncated", "detail": "cut [off]"},
            "rejected shoe [1].jpg: truncated (cut [off])",
        ),
        ("image.postponed", {"why": "storage", "detail": "EACCES: no"}, "rejected shoe [1].jpg: EACCES: no"),
        ("image.done", {"path": "a\nb\udcff:smile:"}, "a\\nb\\udcff:smile: -> out/shoe.png"),
    ],
)
def test_each_result_is_a_line(event: str, keys: dict[str, Any], said: str) -> None:
    console, text = recorded()
    with once.progress(console, asked_for(2)) as emit:
        emit(event, **DONE | keys)
    (line,) = text.getvalue().splitlines()
    assert said in line


def test_quiet_leaves_out_what_went_well() -> None:
    console, text = recorded(terminal=True)
    with once.progress(console, asked_for(2), quiet=True) as emit:
        emit("image.done", **DONE)
        emit("image.failed", path="b.jpg", reason="corrupt", detail="no")
    assert "b.jpg" in text.getvalue()
    assert "shoe" not in text.getvalue()


def test_fault_of_the_engine_is_shown_at_once() -> None:
    console, text = recorded()
    with once.progress(console, asked_for(2)) as emit:
        emit("engine.fault", device="cuda:0", kind="lost", detail="[died]", images=1, restarts=1)
        assert "engine.fault: device cuda:0, kind lost, detail [died], images 1, restarts 1" in text.getvalue()


def test_bar_follows_the_images() -> None:
    console, text = recorded(terminal=True)
    with once.progress(console, asked_for(3)) as emit:
        for event in ("engine.started", "image.done", "image.failed", "service.reload"):
            emit(event, **DONE, reason="corrupt", detail="no")
    assert "2/3" in text.getvalue().rpartition("on cpu")[2]


@pytest.mark.parametrize("links", [True, False])
def test_equal_images_have_an_output_each(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed once: the second is a copy of an output that has been moved to its place by then."""
    if not links:
        monkeypatch.setattr(oneshot.os, "link", Mock(side_effect=OSError(errno.EPERM, "no links here")))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        PIL.Image.new("RGB", (32, 24), "navy").save(tmp_path / "in" / name)
    summary = faked(tmp_path / "in", tmp_path / "out", recipe=Recipe(sidecar="always"))

    assert (3, 0, []) == (summary.done, summary.failed, summary.problems)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert ["a.png", "a.png.json", "b.png", "b.png.json", "sub/c.png", "sub/c.png.json"] == found
    assert 1 == len({(tmp_path / "out" / name).read_bytes() for name in ("a.png", "b.png", "sub/c.png")})


def test_equal_images_that_fail_a_rule_are_all_told_to_need_review(tmp_path: Path) -> None:
    source, output, told = tmp_path / "in", tmp_path / "out", Mock()
    source.mkdir()
    for name in "abcdef":
        PIL.Image.new("RGB", (64, 64), "white").save(source / f"{name}.png")
    ended = faked(source, output, recipe=Recipe(preset="amazon-main"), emit=told)
    failed = [call.kwargs for call in told.call_args_list if call.args == ("image.failed",)]
    assert (ended.done, ended.failed) == (0, 6)
    assert {keys["path"] for keys in failed} == {f"{name}.png" for name in "abcdef"}
    assert {keys["reason"] for keys in failed} == {"needs_review"}
    assert not [*output.iterdir()]


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_cannot_take_its_place_is_refused_and_the_others_done(tmp_path: Path, *, overwrite: bool) -> None:
    """A folder stands under the name of one cutout, and a file under that of a sub-folder."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "b.png").mkdir(parents=True)
    (tmp_path / "out" / "sub").write_bytes(b"")
    for name, colour in (("a.png", "navy"), ("b.png", "red"), ("sub/c.png", "green")):
        PIL.Image.new("RGB", (32, 24), colour).save(tmp_path / "in" / name)
    heard = Mock()
    summary = faked(tmp_path / "in", tmp_path / "out", overwrite=overwrite, emit=heard)
    assert (1, 2, 0) == (summary.done, summary.failed, summary.left)
    told = {
        each.kwargs["path"]: each.kwargs["detail"] for each in heard.mock_calls if each.args == ("image.postponed",)
    }
    assert {"b.png", "sub/c.png"} == set(told)
    assert all(str(tmp_path / "out" / path[:3]) in why for path, why in told.items())
    assert {"a.png", "b.png", "sub"} == {path.name for path in (tmp_path / "out").iterdir()}


def test_inputs_of_one_stem_have_an_output_each_and_keep_it(tmp_path: Path) -> None:
    for name, colour in (("in/a.jpg", "navy"), ("in/a.png", "red"), ("more/a.jpg", "green")):
        painted(tmp_path / name, colour)
    paths = tmp_path / "in", tmp_path / "more" / "a.jpg", tmp_path / "out"
    recipe = Recipe(sidecar="never", hidden_colours="keep")
    assert 3 == faked(*paths, recipe=recipe).done
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_below(tmp_path / "out")}
    assert {"a.png", "in/a.png", "in/a_png.png"} == set(before)
    assert 3 == len(set(before.values()))

    (tmp_path / "out" / "in" / "a_png.png").unlink()
    heard = Mock()
    summary = faked(*paths, recipe=recipe, emit=heard)
    assert (1, 2, 0) == (summary.done, summary.skipped, summary.failed)
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in files_below(tmp_path / "out")}
    (done,) = [each.kwargs for each in heard.mock_calls if each.args == ("image.done",)]
    named = done["folder"], done["path"], done["output"]
    assert ("once", str(tmp_path / "in" / "a.png"), "in/a_png.png") == named


def test_event_and_sidecar_name_the_output_as_it_was_named(tmp_path: Path, image: Path) -> None:
    heard = Mock()
    faked(image, tmp_path / "x.tiff", recipe=Recipe(format="tiff", sidecar="always"), emit=heard)
    (done,) = [each.kwargs for each in heard.mock_calls if each.args == ("image.done",)]
    story = json.loads((tmp_path / "x.tiff.json").read_text())
    assert {("once", "shoe.png", "x.tiff")} == {
        (each["folder"], each["path"], each["output"]) for each in (done, story)
    }


def test_what_ends_after_an_interruption_is_neither_published_nor_counted(tmp_path: Path, image: Path) -> None:
    """A finish thread that had the image in hand, and goes on while the main thread leaves."""
    found = plan([str(image)], str(tmp_path / "out"))
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "shoe.png").write_bytes(b"x")
    folder = Folder(name="once", input=tmp_path, output=tmp_path / "staged", failed=tmp_path, originals="keep")
    summary, heard = Summary(total=1), Mock()
    moving = oneshot._MovingEmit(Config(folder=[folder]), found.place, found.outputs(".png"), heard, summary)
    with moving:
        pass
    moving("image.done", folder="once", path="shoe.png", output="shoe.png", verdict="ok")
    assert ([], 0, 1) == (heard.mock_calls, summary.done, summary.left)
    assert not (tmp_path / "out").exists()


def test_interrupted_run_says_what_is_left(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneshot, "run_pipeline", Mock(side_effect=KeyboardInterrupt))
    heard, summary = Mock(), Summary()
    with pytest.raises(KeyboardInterrupt):
        faked(image, painted(tmp_path / "b.png"), tmp_path / "out", emit=heard, summary=summary)
    heard.assert_called_once_with("run.summary", done=0, failed=0, skipped=0, empty=0, left=2, seconds=summary.seconds)
    assert [] == list((tmp_path / "out").iterdir())


def test_interrupted_run_counts_what_was_rejected(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, summary: Summary, **__: object) -> None:
        summary.total, summary.done, summary.failed = 9, 3, 2
        raise KeyboardInterrupt

    monkeypatch.setattr(oneshot, "once", interrupted)
    assert Exit.INTERRUPTED == cli.main(["once", str(image), str(tmp_path / "out")])
    assert "interrupted: 3 done, 2 rejected, 4 left; run it again to go on\n" == capfd.readouterr().out


def test_folder_named_like_an_image_is_the_folder_to_write_into(tmp_path: Path, image: Path) -> None:
    (tmp_path / "all.png").mkdir()
    assert 1 == faked(image, tmp_path / "all.png").done
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
        PIL.Image.new("RGB", (64, 48), (number % 256, number // 256, 0)).save(tmp_path / "in" / f"{number:04}.png")
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
    out, err = process.communicate()
    assert (128 + number, "") == (process.returncode, err)
    assert [] == list((tmp_path / "out").glob(".*"))
    done = len(list((tmp_path / "out").glob("*.png")))
    assert f"interrupted: {done} done, {2000 - done} left; run it again to go on" == out.splitlines()[-1]


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path, image: Path, endless: Callable[[], subprocess.Popen[str]]
) -> None:
    process = endless()
    (folder,) = (tmp_path / "out").glob(f"{oneshot.STAGING}*")
    faked(image, tmp_path / "out")
    assert folder.is_dir()
    process.kill()
    process.communicate()
    assert folder.is_dir()
    faked(image, tmp_path / "out")
    assert [] == list((tmp_path / "out").glob(".*"))


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_folder_through_the_real_engine(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    PIL.Image.new("RGB", (64, 48), "navy").save(tmp_path / "in" / "a.jpg")
    PIL.Image.new("RGB", (64, 48), "red").save(tmp_path / "in" / "sub" / "b.png")
    (tmp_path / "in" / "c.jpg").write_bytes(b"<?php system($_GET['c']); ?>")
    command = ["-m", "rmbgd", "once", tmp_path / "in", tmp_path / "out", "--device", "cpu"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stderr)
    assert f"a.jpg -> {tmp_path}/out/a.png (64x48, u2netp on cpu, " in done.stdout
    assert "rejected c.jpg: unidentified (" in done.stdout
    assert "2 done (2 without a subject: a.jpg, sub/b.png), 1 rejected; " in done.stdout.splitlines()[-1]
    assert {"a.png", "b.png"} == {path.name for path in (tmp_path / "out").rglob("*.png")}
    assert (tmp_path / "out" / "sub" / "b.png").is_file()
    with PIL.Image.open(tmp_path / "out" / "a.png") as cutout:
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
        oneshot.once(plan([str(image)], str(tmp_path / "out")), Recipe(), build_devices=made, **around)


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


# ---------------------------------------------------------------------------------------------------- films


@pytest.mark.integration
def test_films_and_images_beside_each_other(tmp_path: Path) -> None:
    (source := tmp_path / "in").mkdir()
    (source / "take.mp4").write_bytes(film(frames=6, sound="aac"))
    (source / "take.mov").write_bytes(film("mov", frames=4))
    (source / "take.png").write_bytes(sample_image(1))
    summary = faked(source, out := tmp_path / "out")
    assert (summary.done, summary.failed, summary.problems) == (3, 0, [])
    assert sorted(os.listdir(out)) == ["take.mov", "take.png", "take_mp4.mov"]
    assert [len(pictures((out / name).read_bytes())) for name in ("take.mov", "take_mp4.mov")] == [4, 6]
    again = faked(source, out)
    assert (again.done, again.skipped) == (0, 3)


@pytest.mark.integration
def test_the_suffix_of_out_says_what_a_film_becomes(tmp_path: Path) -> None:
    (source := tmp_path / "take.mp4").write_bytes(film(frames=3))
    for name, codec in (("a.webm", "vp9"), ("b.mp4", "h264"), ("c.mov", "prores")):
        found = plan([str(source)], str(tmp_path / name))
        config, recipe = once.settings(parsed(source, tmp_path / name), found.format, found.film)
        summary = faked(source, tmp_path / name, recipe=recipe)
        assert (summary.done, config.recipe["default"].film) == (1, recipe.film)
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].codec_context.name == codec


@pytest.mark.integration
def test_a_film_that_cannot_be_made_is_refused_and_the_images_done(tmp_path: Path) -> None:
    (source := tmp_path / "in").mkdir()
    data = film(frames=30)
    (source / "half.mp4").write_bytes(data[: len(data) // 2])
    (source / "a.png").write_bytes(sample_image(1))
    emit = Mock()
    summary = faked(source, out := tmp_path / "out", emit=emit)
    assert (summary.done, summary.failed, os.listdir(out)) == (1, 1, ["a.png"])
    [failed] = [each.kwargs for each in emit.call_args_list if each.args == ("image.failed",)]
    assert (failed["path"], failed["reason"]) == ("half.mp4", "truncated")


def test_films_cannot_be_cropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (source := tmp_path / "take.mp4").write_bytes(film(frames=1))
    assert cli.main(["once", str(source), str(tmp_path / "out"), "--crop"]) == Exit.USAGE
    assert "films cannot have crop" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_library_a_film_is_refused_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source := tmp_path / "take.mp4").write_bytes(film(frames=1))
    monkeypatch.setattr(oneshot, "is_installed", lambda _module: False)
    emit = Mock()
    assert faked(source, tmp_path / "out", emit=emit).failed == 1
    [failed] = [each.kwargs for each in emit.call_args_list if each.args == ("image.failed",)]
    assert "rmbgd[video]" in failed["detail"]


def test_a_film_has_a_bar_of_its_own_with_the_time_left() -> None:
    console, text = recorded(terminal=True)
    with once.progress(console, asked_for(1)) as emit:
        emit("film.started", job=1, path="take.mp4", frames=200)
        emit("film.progress", job=1, frames=50)
        emit("image.failed", job=1, path="take.mp4", reason="corrupt", detail="x")
    shown = text.getvalue()
    assert "take.mp4" in shown
    assert "50/200" in shown
