"""The unit files of the package, for wherever this installation lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.errors import RmbgdError
from rmbgd.service import unit_files

SYSTEMD = Path(__file__).parents[2] / "systemd"


@pytest.mark.parametrize("name", [path.name for path in SYSTEMD.iterdir() if path.is_file()])
def test_the_package_holds_what_the_repository_shows(name: str) -> None:
    assert unit_files.text(name) == (SYSTEMD / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["rmbgd.service", unit_files.USER_UNIT])
def test_a_unit_names_this_installation_and_configuration(name: str) -> None:
    text = unit_files.unit(name, Path("/home/ada/venv/bin"), Path("/home/ada/rmbgd.toml"))
    assert "ExecStart=/home/ada/venv/bin/rmbgd run --config /home/ada/rmbgd.toml\n" in text
    assert "ExecStopPost=-/home/ada/venv/bin/rmbgd-record-exit --config /home/ada/rmbgd.toml\n" in text
    assert "/opt/rmbgd" not in text


def test_a_path_that_a_unit_cannot_hold_is_named() -> None:
    with pytest.raises(RmbgdError, match="/my shop/bin: systemd takes no such path"):
        unit_files.unit("rmbgd.service", Path("/my shop/bin"), Path("/etc/rmbgd.toml"))


def test_what_was_changed_by_hand_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rmbgd.service"
    assert [unit_files.put(path, "new"), unit_files.put(path, "new")] == [f"wrote {path}", f"unchanged {path}"]
    path.write_bytes(b"by hand: \xfc")
    assert f"replaced {path}" in unit_files.put(path, "new")
    assert (path.read_bytes(), path.with_name("rmbgd.service~").read_bytes()) == (b"new", b"by hand: \xfc")
