"""`rmbgd watch IN OUT`: serves one folder without a configuration to write; originals stay where they are."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rmbgd.cli.init import STATE_MODE, check_utf8, table
from rmbgd.errors import RmbgdError
from rmbgd.fs import atomic_write
from rmbgd.paths import user_places
from rmbgd.wording import printable

RECIPE = ("model", "format")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="drop images here, at any depth; they stay there")
    parser.add_argument("output", type=Path, metavar="OUT", help="cutouts; made when it is missing")
    parser.add_argument("--model", metavar="MODEL", help="a name of `rmbgd models list`, or a path (default: u2netp)")
    parser.add_argument("--format", metavar="FORMAT", help="of the cutouts: png, webp, ... (default: png)")
    parser.add_argument("--device", metavar="DEVICE", help='"auto", "cpu", "cuda" or "cuda:N" (default: auto)')


def run(options: argparse.Namespace) -> int:
    """Becomes `rmbgd run` with a configuration in the user's state directory, where every other command finds it."""
    source, output = _folders(options.source, options.output)
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, (source, output)))).hexdigest()[:12]
    places = user_places()
    state, runtime = places.state / "watch" / digest, places.runtime / f"watch-{digest}"
    rejected = state / "rejected"
    for own in (state, runtime, rejected):
        own.mkdir(mode=STATE_MODE, parents=True, exist_ok=True)
    recipe = {name: value for name in RECIPE if (value := getattr(options, name)) is not None}
    tables = [table("[service]", {"state_directory": state, "runtime_directory": runtime})]
    tables += [table("[engine]", {"device": options.device})] * (options.device is not None)
    tables += [table("[recipe.default]", recipe)] * bool(recipe)
    folder = {"name": "watch", "input": source, "output": output, "failed": rejected, "originals": "keep"}
    config = state / "rmbgd.toml"
    atomic_write(config, "\n".join([*tables, table("[[folder]]", folder)]).encode())
    print(printable(f"watching {source}; cutouts go to {output}, reasons for rejected images to {rejected}"))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *_program(sys.argv[:1]), "run", "--config", str(config)])  # noqa: S606
    raise AssertionError("unreachable")


def _folders(source: Path, output: Path) -> tuple[Path, Path]:
    """Both as real paths, OUT made. Raises OSError, and RmbgdError for two that cannot be used together."""
    source = Path(os.path.realpath(os.path.expanduser(source)))
    output = Path(os.path.realpath(os.path.expanduser(output)))
    check_utf8(source, output)
    os.listdir(source)
    if output == source:
        raise RmbgdError(f"{output}: IN and OUT are the same folder: cutouts would come in again; name another OUT")
    if source in output.parents:
        raise RmbgdError(f"{output}: OUT lies inside IN: cutouts would come in again; name another OUT")
    if output in source.parents:
        raise RmbgdError(f"{source}: IN lies inside OUT: files written there would come in again; name another OUT")
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(output))
    return source, output


def _program(called: Sequence[str]) -> list[str]:
    """How this program was started: by its script, or as a module."""
    return list(called) if called and os.path.basename(called[0]) == "rmbgd" else ["-m", "rmbgd"]
