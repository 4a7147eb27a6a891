"""systemd, the unit and the notify library. Asks systemctl, and changes nothing."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator

from rmbgd import config
from rmbgd.clock import SystemClock
from rmbgd.doctor.findings import Finding, ok, warn
from rmbgd.health.crashloop import CrashLoop

UNIT = "rmbgd.service"
USER = "rmbgd"
OLDEST = 249  # systemd of Ubuntu 22.04 and JetPack 6; the unit uses nothing newer
PATIENCE = 10.0  # s


def examine(settings: config.Config) -> Iterator[Finding]:
    yield systemd()
    yield starts(settings)
    yield notify_library()
    yield user()


def systemd() -> Finding:
    if not os.path.isdir("/run/systemd/system"):
        return warn("systemd", "not the init system here", "start `rmbgd run` otherwise, and again whenever it ends")
    version = _systemctl("--version").split()
    number = int(version[1]) if len(version) > 1 and version[1].isdigit() else 0
    if number < OLDEST:
        return warn("systemd", f"version {number} is older than {OLDEST}", "the unit may use settings it does not know")
    properties = _systemctl("show", UNIT, "-p", "LoadState,ActiveState,SubState")
    shown = dict(line.partition("=")[::2] for line in properties.splitlines())
    if shown.get("LoadState") != "loaded":
        return warn("systemd", f"version {number}; {UNIT} is not installed", "see 'Install' in README.md")
    return ok("systemd", f"version {number}; {UNIT} is {shown.get('ActiveState')} ({shown.get('SubState')})")


def _systemctl(*arguments: str) -> str:
    command = shutil.which("systemctl")
    if command is None:
        return ""
    try:
        done = subprocess.run([command, *arguments], capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode(errors="replace")


def starts(settings: config.Config) -> Finding:
    """Whether the service keeps dying, by the record that it and the exit recorder keep."""
    record = CrashLoop(settings, SystemClock())
    died = ", ".join(record.causes())
    if record.safe:
        return warn(
            "starts",
            f"the last ones died ({died}): the next is in safe mode, on the CPU with the embedded model",
            "`journalctl -u rmbgd` from before service.safe_mode says why; it leaves safe mode by itself",
        )
    if died:
        return warn("starts", f"died within {settings.service.safe_window:g} s: {died}", "see `journalctl -u rmbgd`")
    return ok("starts", "none died lately")


def notify_library() -> Finding:
    if not _installed("systemd.daemon"):
        return warn(
            "systemd-python",
            "missing: the service runs by hand, but refuses to start under systemd",
            "pip install 'rmbgd[systemd]'; needs libsystemd-dev, pkg-config and a C compiler",
        )
    return ok("systemd-python", "present")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def user() -> Finding:
    """Trials by root prove little: root may write everywhere, the service may not."""
    try:
        wanted = pwd.getpwnam(USER).pw_uid
    except KeyError:
        return warn("user", f"there is no user '{USER}'", "systemd-sysusers makes it from systemd/rmbgd.sysusers")
    if os.geteuid() != wanted:
        return warn(
            "user", f"tried as user {os.geteuid()}, the service runs as '{USER}'", f"runuser -u {USER} -- rmbgd doctor"
        )
    return ok("user", USER)
