"""`rmbgd init FOLDER`: makes the drop folders and a configuration of nine lines, for a service of one's own."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path

from rmbgd.config.layout import check_layout
from rmbgd.config.load import Config, load, parse
from rmbgd.errors import ConfigError, Exit, RmbgdError
from rmbgd.fs import atomic_write
from rmbgd.paths import CONFIG_VARIABLE, find_config, user_places

ROLES = {"input": "in", "output": "out", "done": "done", "failed": "failed"}
CONFIG_MODE = 0o644
STATE_MODE = 0o700


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "where to make the folders in, out, done and failed"
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--add", action="store_true", help="add these folders to the configuration that is there")
    text = "configuration to write (default: $RMBGD_CONFIG, or rmbgd/rmbgd.toml in ~/.config)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)


def run(options: argparse.Namespace) -> int:
    root, path = _root(options.folder), _config_path(options.config)
    places = user_places()
    if path.exists() and not options.add:
        add = f"rmbgd init --add {shlex.quote(str(options.folder))}"
        raise RmbgdError(f"{path}: there is a configuration already; `{add}` adds this folder to it")
    names: set[str] = set()
    before = ""
    if path.exists():
        names = {folder.name for folder in load(path).folder}
        before = path.read_text(encoding="utf-8-sig")
    folder = {role: root / name for role, name in ROLES.items()}
    name = _free_name(root.name, names)
    text = before.rstrip("\n") + "\n" * 2 * bool(before)
    if not before:
        text = table("[service]", {"state_directory": places.state, "runtime_directory": places.runtime}) + "\n"
    text += table("[[folder]]", {"name": name, **folder})
    config = _checked(text, path)
    made = [each for each in folder.values() if not each.is_dir()]
    for each in folder.values():
        each.mkdir(parents=True, exist_ok=True)
    for own in (config.service.state_directory, config.service.runtime_directory):
        own.mkdir(mode=STATE_MODE, parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode(), mode=CONFIG_MODE, durable=True)
    for each in made:
        print(f"made {each}")
    print(f"{'added to' if before else 'made'} {path}")
    named = "" if find_config(None, serving=True) == path else f" --config {shlex.quote(str(path))}"
    print(f"next: rmbgd run{named}, and drop images into {folder['input']}")
    print(f"or:   rmbgd service install --user{named}, and systemd starts it at each login")
    return Exit.OK


def _config_path(named: Path | None) -> Path:
    if named is not None or os.environ.get(CONFIG_VARIABLE):
        return find_config(named, serving=True).absolute()
    return user_places().config


def _root(folder: Path) -> Path:
    """Raises RmbgdError for a name that TOML cannot hold, and for a file where a folder shall be."""
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    check_utf8(root)
    for each in (root, *(root / name for name in ROLES.values())):
        if each.exists() and not each.is_dir():
            raise RmbgdError(f"{each}: this is a file; name a folder, or move the file away")
    return root


def check_utf8(*paths: Path) -> None:
    """Raises RmbgdError for a path that TOML cannot hold."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RmbgdError(f"{path}: this name is not UTF-8, which a configuration cannot hold; rename it") from None


def _free_name(wish: str, taken: set[str]) -> str:
    base = re.sub(r"[^\w.-]+", "-", wish).strip("-.") or "main"
    names = (base, *(f"{base}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def table(heading: str, values: Mapping[str, object]) -> str:
    """A table of texts, in TOML."""
    return "".join([f"{heading}\n", *(f"{key} = {quoted(str(value))}\n" for key, value in values.items())])


def quoted(text: str) -> str:
    """A basic string of TOML 1.0: JSON's, but that DEL is escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _checked(text: str, path: Path) -> Config:
    """Raises ConfigError for folders that cannot be used together, before any is made."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        heading = "write each folder under a [[folder]] of its own, instead of folder = [...]"
        raise ConfigError(f"{path}: nothing can be added to its folders; {heading}") from None
    config = parse(tables, origin=str(path))
    check_layout(config)
    return config
