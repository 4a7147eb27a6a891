"""`rmbgd service install`: writes the unit and what it needs from the package, for systemd or for a user's systemd."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rmbgd.cli.main import add_config
from rmbgd.config.load import load
from rmbgd.doctor import unit as unit_checks
from rmbgd.doctor.checks import systemctl
from rmbgd.errors import ConfigError, Exit, RmbgdError
from rmbgd.paths import DEFAULT_CONFIG, user_places
from rmbgd.service import unit_files
from rmbgd.service.unit_files import UNIT, put

HIDDEN = (*unit_checks.HOMES, *unit_checks.OWN_TMP)  # from the unit: programs and configuration cannot lie there
HOOKS = "rmbgd-hooks.path"  # started by the service, and goes on without it
NO_BUS = "log in as this user, by ssh or at the machine; su and sudo do not start the user's systemd"
MOVE_CONFIG = f"copy it to {DEFAULT_CONFIG}"
OWN_SERVICE = "or install a service of your own with --user"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    add_config(shared)
    whose = shared.add_mutually_exclusive_group()
    whose.add_argument("--system", action="store_true", help="for the machine, in a sandbox (default for root)")
    whose.add_argument("--user", action="store_true", help="for this user alone (default for all others)")
    verbs = "install | uninstall"
    commands = parser.add_subparsers(title="commands", dest="service_verb", required=True, metavar=verbs)

    def command(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=[shared])
        added.set_defaults(service_action=action)
        return added

    text = "write the unit, and what it needs; files of these names that differ are kept with a ~"
    now = "enable and start the service, too"
    command("install", text, _install).add_argument("--now", action="store_true", help=now)
    text = "stop the service and remove what install wrote; configuration, folders, ledger and log stay"
    command("uninstall", text, _uninstall)


def run(options: argparse.Namespace) -> int:
    options.user = options.user or (os.geteuid() != 0 and not options.system)
    if not options.user and os.geteuid() != 0:
        raise RmbgdError("only root may change the machine's services; run it with sudo, or with --user")
    return int(options.service_action(options))


def _install(options: argparse.Namespace) -> int:
    here = unit_files.programs()
    said = _user_files(here, options.config) if options.user else _system_files(here, options.config)
    for line in said:
        print(line)
    _systemctl(options, "daemon-reload")
    changed = any(not line.startswith("unchanged") for line in said)
    own = ["--user"] if options.user else []
    runs = systemctl(*own, "is-active", UNIT).strip() == "active"
    if options.now:
        _systemctl(options, "enable", UNIT)
        _systemctl(options, "restart" if changed else "start", UNIT)
        print(f"{UNIT} is enabled and runs")
    elif changed or not runs:
        what = "restart rmbgd, to have it take effect" if runs else "enable --now rmbgd"
        print(" ".join(["next: systemctl", *own, what]))
    if options.user:
        print("to keep it running while you are not logged in: loginctl enable-linger")
    return Exit.OK


def _user_files(here: Path, config: Path) -> list[str]:
    if not config.exists():
        raise ConfigError(f"{config}: there is no configuration; `rmbgd init FOLDER` makes one")
    load(config)
    unit = unit_files.unit(unit_files.USER_UNIT, here, config.absolute())
    return [put(_user_unit(), unit)]


def _system_files(here: Path, config: Path) -> list[str]:
    config = config.absolute()
    for path, cure in ((here, "install rmbgd into /opt/rmbgd (python3 -m venv /opt/rmbgd)"), (config, MOVE_CONFIG)):
        if hidden := next((each for each in HIDDEN if unit_checks.below(path, (each,))), None):
            raise RmbgdError(
                f"{path}: the service of the machine cannot see files below {hidden}; {cure}, {OWN_SERVICE}"
            )
    if not config.exists() and config != DEFAULT_CONFIG:
        raise ConfigError(f"{config}: there is no such configuration; without --config, {DEFAULT_CONFIG} is made")
    packaged = Path(unit_files.PACKAGED).exists()
    if packaged and (here, config) != (Path(unit_files.PROGRAMS), DEFAULT_CONFIG):
        raise RmbgdError(
            f"{unit_files.PACKAGED}: the service of the machine is that of the Debian package, with "
            f"{unit_files.PROGRAMS}/rmbgd and {DEFAULT_CONFIG}; remove it first (dpkg -r rmbgd), {OWN_SERVICE}"
        )
    drop_in = unit_checks.drop_in(load(config)) if config.exists() else ""  # before anything is written
    said = [] if config.exists() else [put(DEFAULT_CONFIG, unit_files.default_configuration())]
    if packaged:
        said.append(f"unchanged {unit_files.PACKAGED}, of the Debian package")
    for name, place in unit_files.SYSTEM.items() if not packaged else ():
        content = unit_files.unit(name, here, config) if name.endswith(".service") else unit_files.text(name)
        said.append(put(Path(place), content))
    if drop_in:
        said.append(put(Path(unit_files.DROP_IN), drop_in))
    elif Path(unit_files.DROP_IN).exists():
        os.unlink(unit_files.DROP_IN)
        said.append(f"removed {unit_files.DROP_IN}: no folder lies outside any more")
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create", "rmbgd.conf"]):
        _call(command)
    return said


def _uninstall(options: argparse.Namespace) -> int:
    system = [*map(Path, unit_files.SYSTEM.values()), Path(unit_files.DROP_IN)]
    places = [_user_unit()] if options.user else system
    if not places[0].exists():
        remedy = "say --user or --system for the other one"
        if Path(unit_files.PACKAGED).exists():
            remedy = "that of the Debian package goes with `dpkg -r rmbgd`"
        raise RmbgdError(f"{places[0]}: there is no such unit, so nothing is removed; {remedy}")
    _systemctl(options, "disable", "--now", UNIT)
    if not options.user:
        _systemctl(options, "stop", HOOKS)
    for path in (each for each in places if each.exists()):
        path.unlink()
        print(f"removed {path}")
    _systemctl(options, "daemon-reload")
    return Exit.OK


def _user_unit() -> Path:
    return user_places().config.parents[1] / "systemd" / "user" / UNIT


def _systemctl(options: argparse.Namespace, *words: str) -> None:
    _call(["systemctl", *(["--user"] if options.user else []), *words])


def _call(command: Sequence[str]) -> None:
    """Raises RmbgdError with what the program said; where it is not installed there is nothing to do."""
    if shutil.which(command[0]) is None:
        return
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
        cure = f"; {NO_BUS}" if "--user" in command and "Failed to connect to bus" in said else ""
        raise RmbgdError(f"{' '.join(command)}: {said}{cure}")
