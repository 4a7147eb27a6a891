"""The files that systemd needs for the service, from the package: unit, users, folders, log rotation."""

from __future__ import annotations

import sysconfig
from importlib import resources
from pathlib import Path

from rmbgd.errors import RmbgdError
from rmbgd.fs import atomic_write
from rmbgd.paths import DEFAULT_CONFIG

PROGRAMS = "/opt/rmbgd/bin"  # of the units as they are shipped
UNIT = "rmbgd.service"
SYSTEM = {  # file in the package -> where it belongs
    "rmbgd.service": "/etc/systemd/system/rmbgd.service",
    "rmbgd-gpu-prepare.service": "/etc/systemd/system/rmbgd-gpu-prepare.service",
    "rmbgd-hooks.path": "/etc/systemd/system/rmbgd-hooks.path",
    "rmbgd-hooks.service": "/etc/systemd/system/rmbgd-hooks.service",
    **{
        name: f"/etc/systemd/system/{name}"  # of a fleet; not enabled by anybody but the operator
        for name in (
            "rmbgd@.service",
            "rmbgd.slice",
            "rmbgd-announce.service",
            "rmbgd-sweep.service",
            "rmbgd-sweep.timer",
            "rmbgd-nats.service",
        )
    },
    "rmbgd.sysusers": "/etc/sysusers.d/rmbgd.conf",
    "rmbgd.tmpfiles": "/etc/tmpfiles.d/rmbgd.conf",
    "rmbgd.logrotate": "/etc/logrotate.d/rmbgd",
}
DROP_IN = "/etc/systemd/system/rmbgd.service.d/50-folders.conf"
USER_UNIT = "rmbgd-user.service"
PACKAGED = "/lib/systemd/system/rmbgd.service"  # of the Debian package, for PROGRAMS and DEFAULT_CONFIG


def text(name: str) -> str:
    """A file of the folder systemd/, such as "rmbgd.service" or "drop-ins/20-folders.conf"."""
    return resources.files("rmbgd.service").joinpath("units", name).read_text(encoding="utf-8")


def default_configuration() -> str:
    return resources.files("rmbgd.config").joinpath("default.toml").read_text(encoding="utf-8")


def programs() -> Path:
    """The directory with this installation's `rmbgd`. Raises RmbgdError where it has none."""
    found = Path(sysconfig.get_path("scripts"))
    for name in ("rmbgd", "rmbgd-record-exit"):
        if not (found / name).exists():
            raise RmbgdError(f"{found / name}: it is missing; install rmbgd with pip, pipx or uv")
    return found


def unit(name: str, bin_directory: Path, config: Path) -> str:
    """The unit, for an installation whose programs lie in `bin_directory`. Raises RmbgdError for odd paths."""
    for path in (bin_directory, config):
        if set(str(path)) & set(" \t\n\"'\\%$"):
            raise RmbgdError(f"{path}: systemd takes no such path for a program or its configuration; use another")
    shipped = text(name).replace(PROGRAMS, str(bin_directory))
    return shipped.replace(f"--config {DEFAULT_CONFIG}", f"--config {config}")


def put(path: Path, content: str, mode: int = 0o644) -> str:
    """Writes one file; what was there under its name and differs is kept with a ~. Answers what was done."""
    there = path.read_bytes() if path.exists() else None
    if there == content.encode():
        return f"unchanged {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = ""
    if there is not None:
        backup = path.with_name(f"{path.name}~")
        atomic_write(backup, there, mode=mode)
        kept = f", the former one is {backup}"
    atomic_write(path, content.encode(), mode=mode, durable=True)
    return f"{'wrote' if there is None else 'replaced'} {path}{kept}"
