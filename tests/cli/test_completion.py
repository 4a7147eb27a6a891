"""Shell completion, as a real bash completes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.errors import Exit

# What bash does at the tab key: sets the words, calls the function, reads COMPREPLY.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p rmbgd | sed 's/.* -F \\([^ ]*\\) .*/\\1/') rmbgd "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "rmbgd"
    done = subprocess.run([sys.executable, "-m", "rmbgd", "completion", "bash"], capture_output=True, check=True)
    path.write_bytes(done.stdout)
    return path


@pytest.mark.integration
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("st", {"status"}),
        ("models f", {"fetch"}),
        ("ledger ", {"check", "backup", "restore"}),
        ("once --form", {"--format"}),
        ("once --format ", {"png", "webp", "tiff"}),
        ("models fetch --ag", {"--again"}),
        ("ledger backup @/fi", {"@/file.toml", "@/files"}),
        ("status --config @/fi", {"@/file.toml", "@/files"}),
        ("models list --models-dir @/fi", {"@/files"}),
    ],
)
def test_bash_completes_verbs_options_choices_and_paths(
    typed: str, offered: set[str], script: Path, tmp_path: Path
) -> None:
    (tmp_path / "file.toml").touch()
    (tmp_path / "files").mkdir()
    words = ["rmbgd", *typed.replace("@", str(tmp_path)).split(" ")]
    done = subprocess.run(["bash", "-c", ASK, "bash", script, *words], capture_output=True, text=True, check=True)
    shown = {word.rstrip("/ ") for word in done.stdout.splitlines()}
    expected = {word.replace("@", str(tmp_path)) for word in offered}
    assert ("", expected) == (done.stderr, shown & expected)
    assert all(word.startswith(words[-1]) for word in shown)


@pytest.mark.integration
def test_every_verb_is_offered(script: Path) -> None:
    done = subprocess.run(["bash", "-c", ASK, "bash", script, "rmbgd", ""], capture_output=True, text=True, check=True)
    assert set(cli.COMMANDS) <= set(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert Exit.OK == cli.main(["completion", shell])
    assert "models" in capsys.readouterr().out


def test_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert Exit.CONFIGURATION == cli.main(["completion", "bash"])
    said = "rmbgd completion: completion needs shtab: pip install 'rmbgd[completion]'\n"
    assert ("", said) == capsys.readouterr()
