"""Where rmbgd's files lie: system-wide, or per user by the XDG base directories; and which configuration is meant.

Standard library only, as the exit recorder is. XDG Base Directory Specification 0.8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/rmbgd/rmbgd.toml")
DEFAULT_RUNTIME_DIRECTORY = Path("/run/rmbgd")
DEFAULT_STATE_DIRECTORY = Path("/var/lib/rmbgd")
DEFAULT_CACHE_DIRECTORY = Path("/var/cache/rmbgd")
CACHE_DIRECTORY_VARIABLE = "CACHE_DIRECTORY"  # in which systemd names the unit's (systemd.exec)
DIRECTORY_VARIABLES = {"state_directory": "STATE_DIRECTORY", "runtime_directory": "RUNTIME_DIRECTORY"}  # likewise
CONFIG_VARIABLE = "RMBGD_CONFIG"


@dataclass(frozen=True, slots=True)
class UserPlaces:
    """One user's directories and the configuration in them. Nothing is made here."""

    config: Path
    state: Path
    runtime: Path


def user_places(environ: Mapping[str, str] = os.environ) -> UserPlaces:
    home = Path(environ.get("HOME") or os.path.expanduser("~"))  # that stays ~ for a user without one
    config = _base(environ, "XDG_CONFIG_HOME", home / ".config")
    state = _base(environ, "XDG_STATE_HOME", home / ".local" / "state") / "rmbgd"
    # Without a session of logind there is no runtime directory, and nothing of ours is large or must be in memory.
    runtime = _base(environ, "XDG_RUNTIME_DIR", state) / ("rmbgd" if environ.get("XDG_RUNTIME_DIR") else "run")
    return UserPlaces(config / "rmbgd" / "rmbgd.toml", state, runtime)


LDCONFIG = Path("/sbin/ldconfig")
LIBCUDA = "libcuda.so.1"
LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib",
    "/usr/lib/aarch64-linux-gnu/nvidia", "/usr/local/nvidia/lib64", "/run/opengl-driver/lib",
)  # fmt: skip
"""Where distributions and containers put the driver's library."""


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Of what can be made again: the unit's, as systemd names it, or the user's."""
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    own = _base(environ, "XDG_CACHE_HOME", home / ".cache") / "rmbgd"
    return Path(environ.get(CACHE_DIRECTORY_VARIABLE, "").partition(":")[0] or own)


def unit_directories(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Settings of [service] that the unit decides where the configuration does not, for instances that share one."""
    found = {name: environ.get(variable, "").partition(":")[0] for name, variable in DIRECTORY_VARIABLES.items()}
    return {name: path for name, path in found.items() if os.path.isabs(path)}


def triton_places(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables by which Triton finds its places, but for those that are set: its compiled kernels, which it loads as
    libraries, so that the place may not forbid that; and the driver's library, for which it asks /sbin/ldconfig."""
    places = {"TRITON_CACHE_DIR": str(cache_directory(environ) / "kernels")}
    if not LDCONFIG.exists():
        folders = (*environ.get("LD_LIBRARY_PATH", "").split(":"), *LIBRARIES)
        found = [folder for folder in folders if os.path.isabs(folder) and os.path.exists(f"{folder}/{LIBCUDA}")]
        if found:
            places["TRITON_LIBCUDA_PATH"] = found[0]
    return {name: place for name, place in places.items() if name not in environ}


def _base(environ: Mapping[str, str], name: str, otherwise: Path) -> Path:
    """What the variable says; the specification has relative paths ignored."""
    path = Path(environ.get(name, ""))
    return path if path.is_absolute() else otherwise


def find_config(named: Path | None, *, serving: bool, environ: Mapping[str, str] = os.environ) -> Path:
    """The configuration that a command means; it may not exist.

    named    by --config, which decides; $RMBGD_CONFIG is next
    serving  the command starts or checks a service; others mean the service that runs, where one runs alone

    Then the user's own, if it is there, but for root, whose is /etc/rmbgd/rmbgd.toml.
    """
    if named is not None:
        return Path(os.path.expanduser(named))
    if given := environ.get(CONFIG_VARIABLE):
        return Path(os.path.expanduser(given)).absolute()
    if not serving and len(running := set(running_configs())) == 1:
        return running.pop()
    own = user_places(environ).config
    candidates = (DEFAULT_CONFIG, own) if os.geteuid() == 0 else (own, DEFAULT_CONFIG)
    return next((path for path in candidates if path.exists()), DEFAULT_CONFIG)


def running_configs(proc: Path = Path("/proc")) -> Iterator[Path]:
    """Configurations of the services that run as this user, or for root of all, as far as their processes say.

    Not of those in containers, whose paths mean other files.
    """
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):
            if os.geteuid() not in (0, process.stat().st_uid):
                continue
            words = [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0")]
            if (config := _config_of(words)) is None or not os.path.samefile(process / "root", "/"):
                continue
            if config:
                yield Path(os.path.realpath(process / "cwd")) / os.path.expanduser(config)
            else:
                lines = [os.fsdecode(line).partition("=") for line in (process / "environ").read_bytes().split(b"\0")]
                yield find_config(None, serving=True, environ={name: value for name, _, value in lines})


def _config_of(words: list[str]) -> str | None:
    """What `rmbgd run --config FILE` names, or nothing; None of another program."""
    program = next((place for place, word in enumerate(words[:3]) if os.path.basename(word) == "rmbgd"), None)
    if program is None and words[1:3] == ["-m", "rmbgd"]:
        program = 2
    if program is None or words[program + 1 : program + 2] != ["run"]:
        return None
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return words[place + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return ""
