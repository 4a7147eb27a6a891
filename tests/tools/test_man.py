"""Man pages: one for each command and one for the settings, which man formats without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rmbgd.cli import main as cli

pytest.importorskip("argparse_manpage")

from tools import gen_reference, man


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("man") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["man", str(place)])
        assert 0 == man.main()
    return place


def test_each_command_and_the_settings_have_a_page(folder: Path) -> None:
    names = {"rmbgd.1", man.SETTINGS, *(f"rmbgd-{name}.1" for name in cli.COMMANDS)}
    assert names == {path.name for path in folder.iterdir()}
    text = (folder / man.SETTINGS).read_text()
    for name, _, model in gen_reference.sections():
        assert all(f"\\fB{setting}" in text for setting in model.model_fields), name


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("man") is None, reason="man-db is not installed")
@pytest.mark.parametrize("name", ["rmbgd", *(f"rmbgd-{name}" for name in cli.COMMANDS), "rmbgd.toml"])
def test_man_formats_the_page_without_a_warning(name: str, folder: Path) -> None:
    """As lintian asks it to."""
    (path,) = folder.glob(f"{name}.[15]")
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(path)]
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "" == done.stderr
    plain = re.sub(".\b", "", done.stdout).replace("\N{HYPHEN}\n", "")  # bold is a letter struck twice
    shown = " ".join(plain.split())
    assert f"NAME {name} - " in shown
    assert name != "rmbgd-once" or "--format {png,webp,tiff" in shown
