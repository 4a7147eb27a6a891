"""The documents say what the source says, and the repository holds nothing that must not be in it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.config import load
from rmbgd.events import EVENTS
from tools import gen_reference

REPOSITORY = Path(__file__).parents[1]
LARGEST = 6 << 20  # bytes; the embedded model has 4.6 MB
# Paths of the machines on which it was made; put together here, so that this file does not hold them.
STRANGE_PATHS = ["/" + "work/", "/root/" + ".pyenv", "/home/" + "user"]
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
CONFIGURATION = [REPOSITORY / "config" / "rmbgd.toml", *sorted((REPOSITORY / "systemd").glob("**/*.*"))]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])


def test_generated_files_are_up_to_date() -> None:
    """Renew them with `python tools/gen_reference.py`. The package carries the shipped configuration with it."""
    assert [] == gen_reference.outdated()
    inside = Path(load.__file__).with_name("default.toml")
    assert inside.read_bytes() == (REPOSITORY / "config" / "rmbgd.toml").read_bytes()


@pytest.mark.parametrize("name", gen_reference.FILES)
def test_outdated_file_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check exits 1 with the file, old or missing, and the command that renews it, and writes nothing."""
    for each in gen_reference.FILES:
        (tmp_path / each).parent.mkdir()
    assert gen_reference.main([], tmp_path) == gen_reference.main(["--check"], tmp_path) == 0
    for spoil in (lambda path: path.write_text("old"), Path.unlink):
        spoil(tmp_path / name)
        assert gen_reference.main(["--check"], tmp_path) == 1
        assert f"{name} is out of date: run `python tools/gen_reference.py`" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def commands_of(page: Path) -> list[str]:
    """What the code of a page, or a unit, calls of rmbgd, a command line each, without prompts, comments and pipes."""
    text = page.read_text(encoding="utf-8")
    code = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    code += re.findall(r"^Exec\w+=.*", text, re.MULTILINE)
    code += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [re.search(r"(?:^|\s|/)rmbgd( [a-z][^#|&;<(\[]*)$", line.partition("#")[0].strip()) for line in code]
    return [match[1].strip() for match in found if match]


@pytest.mark.parametrize("page", [*PAGES, *CONFIGURATION], ids=lambda page: page.name)
def test_commands_in_documents_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the real parser; a command that is only mentioned may lack what it works on."""
    refused = []
    for command in commands_of(page):
        words = shlex.split(command)
        try:
            cli.build_parser(words[0]).parse_args(words)
        except SystemExit:
            if "arguments are required" not in (told := capsys.readouterr().err):
                refused.append((command, told))
    assert [] == refused


def test_commands_are_found_in_documents() -> None:
    found = {page.name: commands_of(page) for page in [*PAGES, *CONFIGURATION]}
    assert "models fetch birefnet-lite" in found["operations.md"]
    assert "run --config /etc/rmbgd/rmbgd.toml" in found["rmbgd.service"]
    assert "check --config FILE" in found["rmbgd.toml"]


def test_every_command_is_in_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert [] == [command for command in cli.COMMANDS if f"`rmbgd {command}" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [] == [link for link in links if not (page.parent / link).exists()]


def test_operations_page_names_every_drop_in_and_no_other() -> None:
    there = {path.name for path in (REPOSITORY / "systemd" / "drop-ins").iterdir()}
    assert there == set(re.findall(r"`(\d\d-[a-z-]+\.conf)`", OPERATIONS))


def test_operators_find_what_to_do_at_every_event() -> None:
    """A row for each event of the vocabulary, in its order, and for no other."""
    table = OPERATIONS.partition("## Every event, and what to do\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|$", table, re.MULTILINE)
    assert [event for event, _ in rows] == list(EVENTS)
    assert all(action for _, action in rows)


def test_the_tree_on_the_architecture_page_is_the_tree() -> None:
    """One entry for each module, under its package, and for no other."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown, folder = set(), ""
    for line in page.partition("## Files")[2].splitlines():
        if re.match(r"rmbgd/[\w/]*$", line):
            folder = line
        shown |= {folder + name for name in re.findall(r"(?:^  | {2,})(\w+\.py) ", line)}
    there = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "rmbgd").rglob("*.py")}
    assert shown == {path for path in there if not path.endswith("__init__.py") and path != "rmbgd/mtbf/__main__.py"}


@pytest.mark.integration
def test_no_path_of_a_machine_and_no_large_file_is_in_the_tree() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in done.stdout.decode().split("\0")]
    data = {path: path.read_bytes() for path in paths if path.is_file()}
    assert [] == [path for path, found in data.items() if len(found) > LARGEST]
    assert [] == [path for path, found in data.items() if any(strange.encode() in found for strange in STRANGE_PATHS)]
