"""`rmbgd service install`: what is written beside what a package has installed."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from rmbgd.cli import service
from rmbgd.service import unit_files


@pytest.mark.parametrize("changed", ["", "# of another version\n"])
def test_units_of_a_package_are_not_hidden_by_copies(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, shipped = tmp_path / "etc/systemd/system/rmbgd.path", tmp_path / "usr/lib/systemd/system/rmbgd.path"
    shipped.parent.mkdir(parents=True)
    shipped.write_text(unit_files.text("rmbgd-hooks.path") + changed)
    monkeypatch.setattr(unit_files, "SYSTEM", {"rmbgd-hooks.path": str(place), "rmbgd.tmpfiles": str(tmp_path / "t")})
    monkeypatch.setattr(unit_files, "DROP_IN", str(tmp_path / "none.conf"))
    monkeypatch.setattr(service, "DEFAULT_CONFIG", tmp_path / "etc/rmbgd.toml")
    monkeypatch.setattr(service, "_call", Mock())
    said = service._system_files(Path("/opt/rmbgd/bin"), tmp_path / "none.toml")
    assert (f"unchanged {shipped}" in said, place.exists()) == (not changed, bool(changed))
