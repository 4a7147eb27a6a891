"""The documents say what the source says, and the repository holds nothing that must not be in it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from rmbgd.cli.completion import actions_of
from rmbgd.config import load
from rmbgd.events import EVENTS
from tools import gen_reference

REPOSITORY = Path(__file__).parents[1]
LARGEST = 6 << 20  # bytes; the embedded model has 4.6 MB
# Paths of the machines on which it was made; put together here, so that this file does not hold them.
STRANGE_PATHS = ["/" + "work/", "/root/" + ".pyenv", "/home/" + "user"]
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
CONFIGURATION = [REPOSITORY / "config" / "rmbgd.toml", *sorted((REPOSITORY / "systemd").glob("**/*.*"))]
CONFIGURATION += sorted(path for path in (REPOSITORY / "contrib").rglob("*") if path.is_file())
# Of rsync and of tools/gpu_check.sh, which the pages name before.
OPTIONS_OF_OTHERS = {"--extra-index-url", "--append", "--append-verify", "--chmod", "--inplace", "--perms"}
OPTIONS_OF_OTHERS |= {"--budget", "--checkpoint", "--only"}
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
PLAIN = [*PAGES, *CONFIGURATION]
# An image is rejected, a person retries it; refusing is what a disk, a ledger or a kernel does.
REPLACED = ("pictures?", "refused", "at fault", "anew", "shall")


def test_generated_files_are_up_to_date() -> None:
    """Renew them with `python -m tools.gen_reference`. The package carries the shipped configuration with it."""
    assert [] == gen_reference.outdated()
    inside = Path(load.__file__).with_name("default.toml")
    assert inside.read_bytes() == (REPOSITORY / "config" / "rmbgd.toml").read_bytes()


@pytest.mark.parametrize("name", gen_reference.FILES)
def test_outdated_file_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check exits 1 with the file, old or missing, and the command that renews it, and writes nothing."""
    assert gen_reference.main([], tmp_path) == gen_reference.main(["--check"], tmp_path) == 0
    for spoil in (lambda path: path.write_text("old"), Path.unlink):
        spoil(tmp_path / name)
        assert gen_reference.main(["--check"], tmp_path) == 1
        assert f"{name} is out of date: run `python -m tools.gen_reference`" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def code_of(page: Path) -> Iterator[str]:
    """Lines of code blocks and units, and code within prose, without comments; continued lines as one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    if page.suffix == ".md":
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            yield from (line.partition(" #")[0] for line in block.splitlines() if not line.startswith("#"))
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    else:
        yield from re.findall(r"^Exec\w+=.*", text, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", text)


def commands_of(page: Path) -> list[str]:
    """What a page or a unit calls of rmbgd, a command line each, without prompts and what a shell does with it."""
    parts = (part.strip() for line in code_of(page) for part in re.split(r"[|;&<>()\[]", line))
    found = (re.search(r"(?:^|[\s/])rmbgd ((?:--[a-z]|-V|[a-z][a-z-]*(?=\s|$)).*)", part) for part in parts)
    return [match[1].removesuffix(" ...") for match in found if match]


@pytest.mark.parametrize("page", [*PAGES, *CONFIGURATION], ids=lambda page: page.name)
def test_commands_in_documents_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the real parser; a command that is only mentioned may lack what it works on."""
    refused = []
    for command in commands_of(page):
        words = shlex.split(command)
        try:
            cli.build_parser(words[0]).parse_args(words)
        except SystemExit as leaving:
            if leaving.code and ": missing: " not in (told := capsys.readouterr().err):
                refused.append((command, told))
    assert [] == refused


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_documents_exist(page: Path) -> None:
    """Those that stand alone in prose; options of other programs stand behind these programs' names."""
    alone = [match[1] for code in code_of(page) if (match := re.match(r"(--?[a-z][\w-]*)", code))]
    known = {word for action in actions_of(cli.build_parser(*cli.COMMANDS)) for word in action.option_strings}
    assert set() == set(alone) - known - OPTIONS_OF_OTHERS


def test_commands_are_found_in_documents(tmp_path: Path) -> None:
    found = {page.name: commands_of(page) for page in [*PAGES, *CONFIGURATION]}
    assert "models fetch birefnet-lite" in found["operations.md"]
    assert "run --config /etc/rmbgd/rmbgd.toml" in found["rmbgd.service"]
    assert "check --config FILE" in found["rmbgd.toml"]
    page = tmp_path / "page.md"
    page.write_text(
        "`sudo /opt/rmbgd/bin/rmbgd a`\n```sh\nx | rmbgd b -c | y && rmbgd d \\\n  e  # f\n```\n`rmbgd --g`\n"
    )
    assert sorted(["a", "b -c", "d   e", "--g"]) == sorted(commands_of(page))


def test_every_command_is_in_the_readme_or_on_the_operations_page() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8") + OPERATIONS
    assert [] == [command for command in cli.COMMANDS if f"`rmbgd {command}" not in text]


@pytest.mark.parametrize("words", REPLACED)
@pytest.mark.parametrize("page", [page for page in PLAIN if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_one_thing_has_one_word(page: Path, words: str) -> None:
    """Names of options, settings, keys and functions stay as they are."""
    text = re.sub(r"--pictures|trial_pictures|`pictures`|`image\.\w+`", "", page.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if re.search(rf"\b({words})\b", line, re.IGNORECASE)]
    assert [] == lines


def test_help_texts_use_the_same_words() -> None:
    parser = cli.build_parser(*cli.COMMANDS)
    texts = [str(action.help) for action in actions_of(parser)]
    texts += [str(sub.epilog) for sub in gen_reference.subcommands(parser).values()]
    assert len(texts) > 60
    assert [] == [text for text in texts if re.search(rf"\b({'|'.join(REPLACED)})\b", text, re.IGNORECASE)]


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
