"""The unit, its drop-ins, and the files for sysusers, tmpfiles and logrotate, as the package carries them."""

from __future__ import annotations

from importlib import resources


def text(name: str) -> str:
    """Of the file `name` below systemd/, such as "rmbgd.service" or "drop-ins/20-folders.conf"."""
    return resources.files("rmbgd.service").joinpath("units", name).read_text(encoding="utf-8")
