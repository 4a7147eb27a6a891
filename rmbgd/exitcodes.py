"""The exit statuses of `rmbgd` and what they mean to a script or to systemd. A leaf: decides nothing."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    INTERNAL = 70  # EX_SOFTWARE of sysexits.h
    CONFIGURATION = 78  # EX_CONFIG
    INTERRUPTED = 130  # 128 + SIGINT, as shells say it


EXIT_TEXT: dict[Exit, str] = {
    Exit.OK: "done; for `run`: stopped because it was asked to",
    Exit.FAILED: "something did not work out: a picture was refused, the service is not running, a need is not met",
    Exit.USAGE: "the command line was wrong",
    Exit.INTERNAL: "a part of rmbgd broke; systemd starts the service again",
    Exit.CONFIGURATION: "the configuration, a folder layout or a model cannot be used; systemd does not start it again",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}
