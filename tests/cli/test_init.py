"""From nothing to a service of one's own: init, watch, service install."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.cli import watch
from rmbgd.config.load import load
from rmbgd.paths import running_configs, user_places
from tests.support.images import sample_image
from tests.support.service import ServiceUnderTest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "RMBGD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["shop", "my shop", 'o"the\\r', "Möbel", "~/shop", "a\x7fb", "..."])
def test_init_makes_folders_and_nine_lines_that_check_accepts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", name]) == 0
    said, path = capsys.readouterr().out, user_places().config
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line]) == 9
    root = Path(os.path.abspath(os.path.expanduser(name)))
    (folder,) = load(path).folder
    assert (folder.input, folder.failed) == (root / "in", root / "failed")
    assert all((root / each).is_dir() for each in ("in", "out", "done", "failed"))
    assert "next: rmbgd run, and drop images into" in said
    assert cli.main(["check"]) == 0


def test_init_adds_a_folder_only_when_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "a/shop"]) == 0
    before = user_places().config.read_bytes()
    assert cli.main(["init", "b/shop"]) == 1
    assert "`rmbgd init --add b/shop` adds this folder to it" in capsys.readouterr().err
    assert user_places().config.read_bytes() == before
    assert cli.main(["init", "--add", "b/shop"]) == 0
    assert [folder.name for folder in load(user_places().config).folder] == ["shop", "shop-2"]
    assert cli.main(["init", "--add", "a/shop/in/deep"]) == 78
    assert not Path("a/shop/in/deep").exists()


def test_init_elsewhere_says_how_to_run_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "shop", "--config", "mine.toml"]) == 0
    assert f"next: rmbgd run --config {Path('mine.toml').absolute()}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "said"),
    [("file", "this is a file; name a folder"), ("/proc/shop", "/proc/shop"), ("b\udcff", "is not UTF-8")],
)
def test_init_refuses_in_one_line(folder: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert cli.main(["init", folder]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not user_places().config.exists()


def test_init_does_not_touch_a_broken_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    user_places().config.parent.mkdir(parents=True)
    user_places().config.write_text("[folder")
    assert cli.main(["init", "--add", "shop"]) == 78
    assert f"{user_places().config}:1: not TOML" in capsys.readouterr().err
    assert user_places().config.read_text() == "[folder"


@pytest.mark.parametrize(
    ("content", "said"), [(b"# \xff", "not UTF-8 at byte 2"), (b"folder = []", "under a [[folder]]")]
)
def test_init_adds_nothing_to_what_it_cannot_extend(
    content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user_places().config.parent.mkdir(parents=True)
    user_places().config.write_bytes(content)
    assert cli.main(["init", "--add", "shop"]) == 78
    assert said in capsys.readouterr().err
    assert user_places().config.read_bytes() == content


class Executed(Exception):
    pass


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    words: list[str] = []

    def execv(_: str, arguments: list[str]) -> None:
        words.extend(arguments)
        raise Executed

    monkeypatch.setattr(watch.os, "execv", execv)
    return words


def test_watch_runs_the_service_with_a_configuration_of_its_own(executed: list[str]) -> None:
    Path("in").mkdir()
    options = cli.build_parser("watch").parse_args(["watch", "in", "new/out", "--format", "webp", "--device", "cpu"])
    with pytest.raises(Executed):
        watch.run(options)
    assert executed[-3:-1] == ["run", "--config"]
    config = load(Path(executed[-1]))
    (folder,) = config.folder
    assert (folder.input, folder.originals) == (Path("in").resolve(), "keep")
    assert Path("new/out").is_dir()
    assert (config.recipe["default"].format, config.engine.device) == ("webp", "cpu")
    assert folder.failed.is_relative_to(user_places().state)


@pytest.mark.parametrize(
    ("source", "output", "said"),
    [
        ("none", "out", "none: No such file or directory"),
        ("file", "out", "file: Not a directory"),
        ("in", "in", "the same folder"),
        ("in", "in/out", "OUT lies inside IN"),
        ("in/deep", "in", "IN lies inside OUT"),
        ("in", "file", "file: File exists"),
        ("in", "/proc/out", "/proc/out"),
        ("b\udcff", "out", "is not UTF-8"),
    ],
)
def test_watch_refuses_in_one_line_before_anything_starts(
    source: str, output: str, said: str, executed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/deep").mkdir(parents=True)
    Path("file").touch()
    Path(os.fsdecode(b"b\xff")).mkdir()
    assert cli.main(["watch", source, output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rmbgd watch: ")
    assert said in line
    assert not executed


@pytest.mark.integration
def test_watch_serves_and_is_found_by_status(tmp_path: Path, home: Path) -> None:
    """In a process of its own; another command finds the service without being told of its configuration."""
    Path("in").mkdir()
    Path("in/a.png").write_bytes(sample_image(1))
    command = [sys.executable, "-m", "rmbgd", "watch", "in", "out", "--device", "cpu"]
    environ = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as process:
        try:
            ServiceUnderTest(tmp_path / "unused").wait(Path("out/a.png").exists, "the cutout", alive=False)
            (running,) = (path for path in running_configs() if home in path.parents)
            assert tomllib.loads(running.read_text())["folder"][0]["name"] == "watch"
        finally:
            process.terminate()
    assert process.returncode == 0
    assert Path("in/a.png").exists()
