"""What a wheel and an sdist hold, and that an installed wheel works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from rmbgd.service import unit_files

REPOSITORY = Path(__file__).parents[1]
BUILD = "from setuptools import build_meta; import sys; build_meta.{}(sys.argv[1])"
INSIDE = ("rmbgd/py.typed", "rmbgd/config/default.toml", "rmbgd/models/data/u2netp.safetensors")
DOCUMENTS = (
    *("LICENSE", "README.md", "docs/operations.md", "docs/install.md"),
    *("docs/schema/event.schema.json", "contrib/README.md", "contrib/grafana/rmbgd.json"),
)
SHOWN = (
    "from rmbgd.service import unit_files; import rmbgd; "
    "print(rmbgd.__file__); print(unit_files.text('rmbgd.service'), end='')"
)


def test_unit_files_are_read_by_their_names() -> None:
    for path in (each for each in (REPOSITORY / "systemd").rglob("*") if each.is_file()):
        assert path.read_text() == unit_files.text(str(path.relative_to(REPOSITORY / "systemd")))


@pytest.mark.integration
def test_wheel_made_from_the_sdist_is_whole_and_works_where_there_is_no_checkout(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("rmbgd", "systemd", "config", "contrib", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run([sys.executable, "-c", BUILD.format("build_sdist"), tmp_path], cwd=source, check=True)
    with tarfile.open(next(tmp_path.glob("rmbgd-*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    shutil.rmtree(source)
    unpacked = next((tmp_path / "unpacked").iterdir())
    subprocess.run([sys.executable, "-c", BUILD.format("build_wheel"), tmp_path], cwd=unpacked, check=True)
    wheel = next(tmp_path.glob("rmbgd-*.whl"))
    shutil.rmtree(tmp_path / "unpacked")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    units = [path.relative_to(REPOSITORY / "systemd") for path in (REPOSITORY / "systemd").rglob("*.*")]
    expected = [*INSIDE, *(f"rmbgd/service/units/{path}" for path in units)]
    expected += [f"{wheel.stem.partition('-py3')[0]}.dist-info/licenses/LICENSE"]
    expected += [f"{wheel.stem.partition('-py3')[0]}.data/data/share/doc/rmbgd/{name}" for name in DOCUMENTS]
    assert [] == [name for name in expected if name not in names]
    assert [] == [name for name in names if name.startswith(("tests/", "tools/"))]

    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def out(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    rmbgd = place / "bin/rmbgd"
    assert out(rmbgd, "--version").startswith("rmbgd ")
    assert (REPOSITORY / "config/rmbgd.toml").read_text() == out(rmbgd, "check", "--print-default")
    where, _, unit = out(place / "bin/python", "-c", SHOWN).partition("\n")
    assert where.startswith(str(packages))
    assert (REPOSITORY / "systemd/rmbgd.service").read_text() == unit
    assert [] == [name for name in DOCUMENTS if not (place / "share/doc/rmbgd" / name).is_file()]
