"""Which configuration a command means."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from unittest.mock import Mock

import pytest

from rmbgd import paths


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def own(home: dict[str, str]) -> Path:
    path = paths.user_places(home).config
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def process(proc: Path, number: int, cwd: Path, *words: str, root: Path = Path("/"), **environ: str) -> None:
    (proc / str(number)).mkdir(parents=True)
    (proc / str(number) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (proc / str(number) / "cwd").symlink_to(cwd)
    (proc / str(number) / "root").symlink_to(root)
    (proc / str(number) / "environ").write_text("".join(f"{name}={value}\0" for name, value in environ.items()))


@pytest.mark.parametrize("root", [False, True])
def test_own_configuration_goes_first_but_for_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: dict[str, str], *, root: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(paths, "DEFAULT_CONFIG", tmp_path / "etc.toml")
    assert paths.find_config(None, serving=True, environ=home) == tmp_path / "etc.toml"
    mine = own(home)
    assert paths.find_config(None, serving=True, environ=home) == mine
    (tmp_path / "etc.toml").touch()
    assert paths.find_config(None, serving=True, environ=home) == (tmp_path / "etc.toml" if root else mine)


def test_what_is_named_wins(tmp_path: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    own(home)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = home | {"RMBGD_CONFIG": "~/given.toml"}
    assert paths.find_config(None, serving=False, environ=given) == tmp_path / "given.toml"
    assert paths.find_config(Path("~/named.toml"), serving=False, environ=given) == tmp_path / "named.toml"


def test_places_follow_the_xdg_variables_unless_they_are_relative(home: dict[str, str], tmp_path: Path) -> None:
    places = paths.user_places(home | {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "state"})
    assert places.runtime == Path("/run/user/7/rmbgd")
    assert places.state == tmp_path / ".local/state/rmbgd"
    assert paths.user_places(home).runtime == places.state / "run"


def test_running_services_are_found_by_their_processes(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    process(proc, 1, tmp_path, "/usr/bin/python3", "/opt/bin/rmbgd", "run", "--config", "/etc/a.toml")
    process(proc, 2, tmp_path, "python", "-m", "rmbgd", "run", "--config=b.toml")
    process(proc, 3, tmp_path, "python", "-m", "rmbgd", "status", "--config", "c.toml")
    process(proc, 4, tmp_path, "vi", "rmbgd", "d.toml")
    process(proc, 5, tmp_path, "rmbgd", "run", RMBGD_CONFIG="/etc/e.toml")
    (proc / "6").mkdir()
    assert set(paths.running_configs(proc)) == {Path("/etc/a.toml"), tmp_path / "b.toml", Path("/etc/e.toml")}


def test_a_service_in_a_container_is_not_meant(tmp_path: Path) -> None:
    process(tmp_path / "proc", 1, tmp_path, "rmbgd", "run", "--config", "/etc/rmbgd/rmbgd.toml", root=tmp_path)
    assert not list(paths.running_configs(tmp_path / "proc"))


def test_a_service_on_its_users_own_configuration_is_found(tmp_path: Path, home: dict[str, str]) -> None:
    mine = own(home)
    process(tmp_path / "proc", 1, tmp_path, "rmbgd", "run", **home)
    assert list(paths.running_configs(tmp_path / "proc")) == [mine]


def test_a_user_without_a_home_has_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", Mock(side_effect=KeyError))
    assert paths.find_config(None, serving=True, environ={}) == paths.DEFAULT_CONFIG


@pytest.mark.parametrize("count", [1, 2])
def test_a_service_that_runs_alone_is_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: dict[str, str], count: int
) -> None:
    there = [tmp_path / f"{number}.toml" for number in range(count)]
    monkeypatch.setattr(paths, "running_configs", lambda: iter(there))
    mine = own(home)
    monkeypatch.setattr(paths, "DEFAULT_CONFIG", tmp_path / "etc.toml")
    assert paths.find_config(None, serving=False, environ=home) == (there[0] if count == 1 else mine)
    assert paths.find_config(None, serving=True, environ=home) == mine


@pytest.mark.parametrize(
    ("variables", "kernels"),
    [
        ({}, "~/.cache/rmbgd/kernels"),
        ({"XDG_CACHE_HOME": "/scratch"}, "/scratch/rmbgd/kernels"),
        ({"CACHE_DIRECTORY": "/var/cache/rmbgd"}, "/var/cache/rmbgd/kernels"),  # by the unit
        ({"CACHE_DIRECTORY": "/var/cache/rmbgd:/var/cache/other"}, "/var/cache/rmbgd/kernels"),
        ({"TRITON_CACHE_DIR": "/elsewhere"}, None),  # the operator's
    ],
)
def test_compiled_kernels_lie_in_the_cache(
    home: dict[str, str], variables: dict[str, str], kernels: str | None
) -> None:
    """Not beside the weights, where the unit lets nothing be executed."""
    found = paths.triton_places(home | variables).get("TRITON_CACHE_DIR")
    assert found == (kernels and kernels.replace("~", home["HOME"]))


def test_the_driver_s_library_is_found_where_triton_cannot_ask(
    home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    environ = home | {"LD_LIBRARY_PATH": f"relative:/nowhere:{folder}"}
    monkeypatch.setattr(paths, "LIBRARIES", ())
    monkeypatch.setattr(paths, "LDCONFIG", tmp_path / "ldconfig")
    assert "TRITON_LIBCUDA_PATH" not in paths.triton_places(environ)
    (folder / "libcuda.so.1").touch()
    assert paths.triton_places(environ)["TRITON_LIBCUDA_PATH"] == str(folder)
    (tmp_path / "ldconfig").touch()
    assert "TRITON_LIBCUDA_PATH" not in paths.triton_places(environ)
