"""Writes man pages: rmbgd(1), rmbgd-VERB(1) for each command, rmbgd.toml(5), from the parser and the settings."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from argparse_manpage.manpage import Manpage
from pydantic_core import PydanticUndefined

from rmbgd import __version__
from rmbgd.cli.main import COMMANDS, build_parser
from rmbgd.errors import EXIT_TEXT
from tools import gen_reference

SETTINGS = "rmbgd.toml.5"
FILES = {
    "/etc/rmbgd/rmbgd.toml": "the configuration of the system service",
    "~/.config/rmbgd/rmbgd.toml": "a user's own",
    "/run/rmbgd/status.json": "what rmbgd status shows",
    "/var/lib/rmbgd": "ledger, its copies, fetched models",
}


def pages() -> Iterator[tuple[str, str]]:
    """(file name, roff) of every page."""
    program = build_parser()
    top = argparse.ArgumentParser(prog="rmbgd", usage=program.format_usage().removeprefix("usage: ").strip())
    top.add_argument("-V", "--version", action="version", help="show the version and exit")
    top.description = f"{program.description} Each command has a page of its own, rmbgd-VERB(1)."
    sections = {
        "commands": [_item(f"rmbgd {name}", text) for name, text in COMMANDS.items()],
        "exit status": [_item(str(int(status)), text) for status, text in EXIT_TEXT.items()],
        "files": [_item(path, text) for path, text in FILES.items()],
    }
    see_also = [f".BR rmbgd\\-{name} (1)," for name in COMMANDS] + [".BR rmbgd.toml (5)"]
    yield "rmbgd.1", _page(top, "remove the background of every image dropped into a folder", sections, see_also)
    for name, text in COMMANDS.items():
        parser = gen_reference.subcommands(build_parser(name))[name]
        notes, parser.epilog = _paragraphs(parser.epilog or ""), None
        also = [".BR rmbgd (1),", ".BR rmbgd.toml (5)"]
        yield f"rmbgd-{name}.1", _page(parser, text, {"notes": notes} if notes else {}, also)
    yield SETTINGS, _settings()


def _page(parser: argparse.ArgumentParser, text: str, sections: dict[str, list[str]], see_also: list[str]) -> str:
    page = Manpage(parser, {"project_name": "rmbgd", "version": __version__, "manual_title": "rmbgd"})
    page.prog, page.description = parser.prog.replace(" ", "-"), text
    for heading, lines in (sections | {"see also": see_also}).items():
        page.add_section(heading, ">", "\n".join(lines))
    # argparse-manpage leaves a word of the text that begins a line with a dot or an apostrophe as it is.
    return re.sub(r"^(?=\.(?![A-Z]{1,2}\b|nf$|fi$)|')", r"\&", str(page), flags=re.MULTILINE)


def _settings() -> str:
    lines = [f'.TH RMBGD.TOML "5" "" "rmbgd {__version__}" "rmbgd"', ".SH NAME"]
    lines += ["rmbgd.toml \\- configuration of rmbgd", ".SH DESCRIPTION"]
    lines += [*_paragraphs("\n".join(gen_reference.HEADER)), *_paragraphs("Tables and settings, with their defaults:")]
    for _, heading, model in gen_reference.sections():
        lines += [f".SH {_roff(heading)}", _roff(gen_reference.first_paragraph(model))]
        for setting, field in model.model_fields.items():
            default = field.default
            shown = f" = {gen_reference.toml_value(default)}" if default not in (None, PydanticUndefined) else ""
            bounds = gen_reference.unit_and_bounds(field)
            lines.append(_item(setting + shown, f"{field.description}" + (f" [{bounds}]" if bounds else "")))
    return "\n".join([*lines, ".SH SEE ALSO", ".BR rmbgd (1),", ".BR rmbgd\\-check (1)"]) + "\n"


def _item(head: str, text: str) -> str:
    return f".TP\n\\fB{_roff(head)}\\fR\n{_roff(text)}"


def _paragraphs(text: str) -> list[str]:
    """Prose is filled; a paragraph with an indented line keeps its lines."""
    lines = []
    for paragraph in filter(None, text.strip("\n").split("\n\n")):
        kept = re.search(r"^\s", paragraph, re.MULTILINE)
        lines += [".PP", *([".nf"] if kept else []), *map(_roff, paragraph.splitlines()), *([".fi"] if kept else [])]
    return lines


def _roff(text: str) -> str:
    return re.sub(r"^(?=[.'])", r"\\&", text.replace("\\", "\\e").replace("-", "\\-"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.man", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to; it is made")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
