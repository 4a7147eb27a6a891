"""From nothing to a service of one's own: init, watch, service install."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.cli import service, watch
from rmbgd.config.load import load
from rmbgd.errors import RmbgdError
from rmbgd.paths import running_configs, user_places
from rmbgd.service import unit_files
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


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What root's `service install` has systemd do; its files go below tmp_path, its programs lie in /opt/rmbgd."""
    calls: list[str] = []
    etc = tmp_path / "etc"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(service, "_call", lambda words: calls.append(" ".join(words)))
    monkeypatch.setattr(service, "systemctl", lambda *_: "inactive\n")
    monkeypatch.setattr(service, "HIDDEN", (tmp_path / "home",))
    monkeypatch.setattr(unit_files, "programs", lambda: Path(unit_files.PROGRAMS))
    monkeypatch.setattr(unit_files, "PACKAGED", str(tmp_path / "package.service"))
    monkeypatch.setattr(unit_files, "DROP_IN", str(etc / "50-folders.conf"))
    monkeypatch.setattr(unit_files, "SYSTEM", {name: str(etc / name) for name in unit_files.SYSTEM})
    for module in ("rmbgd.paths", "rmbgd.cli.service"):
        monkeypatch.setattr(f"{module}.DEFAULT_CONFIG", etc / "rmbgd.toml")
    return calls


def test_what_the_machine_was_given_is_taken_away_again(
    tmp_path: Path, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["service", "install"]) == 0
    first = capsys.readouterr().out
    assert all(f"wrote {place}" in first for place in unit_files.SYSTEM.values())
    assert cli.main(["service", "install"]) == 0
    assert "wrote" not in (again := capsys.readouterr().out)
    assert "replaced" not in again
    del called[:]
    assert cli.main(["service", "uninstall"]) == 0
    assert called == [
        "systemctl disable --now rmbgd.service",
        "systemctl stop rmbgd-hooks.path",
        "systemctl daemon-reload",
    ]
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["rmbgd.toml"]


@pytest.mark.parametrize(
    ("state", "changes", "now", "said", "calls"),
    [
        ("inactive", True, False, "next: systemctl enable --now rmbgd", []),
        ("active", True, False, "next: systemctl restart rmbgd", []),
        ("active", False, False, "unchanged", []),
        ("active", True, True, "is enabled and runs", ["enable", "restart"]),
        ("active", False, True, "is enabled and runs", ["enable", "start"]),
    ],
)
def test_what_is_next_depends_on_what_runs_and_what_changed(
    state: str, changes: bool, now: bool, said: str, calls: list[str],
    called: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "systemctl", lambda *_: f"{state}\n")
    assert changes or cli.main(["service", "install"]) == 0
    del called[:]
    assert cli.main(["service", "install", *["--now"] * now]) == 0
    assert said in capsys.readouterr().out.splitlines()[-1]
    assert [f"systemctl {word} rmbgd.service" for word in calls] == called[3:]


@pytest.mark.integration
def test_user_without_a_session_is_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2; exit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RmbgdError, match="log in as this user"):
        service._call(["systemctl", "--user", "daemon-reload"])


def test_service_of_the_debian_package_keeps_its_unit(
    tmp_path: Path, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(unit_files.PACKAGED).touch()
    (tmp_path / "etc").mkdir()
    text = (Path(__file__).parents[2] / "config/rmbgd.toml").read_text()
    (tmp_path / "etc/rmbgd.toml").write_text(text.replace("/srv/rmbgd/", "/data/shop/"))
    assert cli.main(["service", "install"]) == 0
    assert f"unchanged {unit_files.PACKAGED}, of the Debian package" in capsys.readouterr().out
    assert {"rmbgd.toml", "50-folders.conf"} == {path.name for path in (tmp_path / "etc").iterdir()}
    assert cli.main(["service", "uninstall"]) == 1
    assert "that of the Debian package goes with `dpkg -r rmbgd`" in capsys.readouterr().err
    (tmp_path / "other.toml").write_text(text)
    assert cli.main(["service", "install", "--config", "other.toml"]) == 1
    assert "remove it first (dpkg -r rmbgd)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "status", "said"),
    [("typo.toml", 78, "there is no such configuration"), ("home/mine.toml", 1, "cannot see files below")],
)
def test_configuration_that_the_machines_service_cannot_have_is_refused(
    config: str, status: int, said: str, tmp_path: Path, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["service", "install", "--config", config]) == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "etc").exists()
    assert not called


def test_configuration_of_the_machines_service_is_named_in_full(tmp_path: Path, called: list[str]) -> None:
    (tmp_path / "other.toml").write_bytes((Path(__file__).parents[2] / "config/rmbgd.toml").read_bytes())
    assert cli.main(["service", "install", "--config", "other.toml"]) == 0
    assert f"rmbgd run --config {tmp_path}/other.toml\n" in Path(unit_files.SYSTEM["rmbgd.service"]).read_text()
    assert called


def test_a_service_that_runs_does_not_decide_what_is_installed(
    tmp_path: Path, called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, say."""
    (tmp_path / "ida.toml").write_bytes((Path(__file__).parents[2] / "config/rmbgd.toml").read_bytes())
    monkeypatch.setattr("rmbgd.paths.running_configs", lambda: iter([tmp_path / "ida.toml"]))
    assert cli.main(["service", "install"]) == 0
    assert "ida.toml" not in Path(unit_files.SYSTEM["rmbgd.service"]).read_text()
    assert called
