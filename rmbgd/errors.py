"""Every error of rmbgd, drawn by who is at fault, and the closed list of reasons an image can be refused for.

Does not decide what to do about an error: the stages and the failover policy do.

RmbgdError
├── ConfigError          the operator: a setting, a layout, a model that cannot be used -> exit 78
│   └── ModelError       the operator: weights missing, of another architecture, not accepted
├── ImageError           the image: carries a Reason -> quarantine
├── EngineFault          the device: the image is innocent -> run again elsewhere
│   ├── EngineLost       the child died, hung or cannot be started
│   ├── EngineMemory     out of device memory; the engine itself is still well
│   └── EngineNonsense   an answer that cannot be (non-finite alpha, another shape)
└── StorageFault         the disk: full, read-only, broken -> wait, resume by itself
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Reason(StrEnum):
    """Why an image was refused. The value is what events, sidecars and the ledger carry; README lists them all."""

    EMPTY = "empty"
    UNIDENTIFIED = "unidentified"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    UNSUPPORTED_MODE = "unsupported_mode"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_MANY_BYTES = "too_many_bytes"
    ANIMATED = "animated"
    METADATA_BOMB = "metadata_bomb"
    NOT_REGULAR = "not_regular"
    HARDLINK = "hardlink"
    NAME_TOO_LONG = "name_too_long"
    OUTPUT_TOO_LARGE = "output_too_large"
    IO_ERROR = "io_error"
    NO_SUBJECT = "no_subject"
    CRASH_LOOP = "crash_loop"
    POISON = "poison"


REASON_TEXT: dict[Reason, str] = {
    Reason.EMPTY: "the file has no bytes",
    Reason.UNIDENTIFIED: "the content is no image that any allowed decoder knows, whatever its name says",
    Reason.FORMAT_NOT_ALLOWED: "the content is an image of a format that is not on the allow-list",
    Reason.UNSUPPORTED_MODE: "the pixels have a layout that cannot be converted without guessing",
    Reason.TRUNCATED: "the file ends before the image does and nobody completed it in time",
    Reason.CORRUPT: "the decoder found damaged data",
    Reason.TOO_LARGE: "more pixels, or a longer side, than limits allow; found before any memory was taken",
    Reason.TOO_MANY_BYTES: "the file is larger than limits allow",
    Reason.ANIMATED: "more than one frame, and the recipe does not say to take the first",
    Reason.METADATA_BOMB: "a text or profile chunk that unpacks beyond its limit",
    Reason.NOT_REGULAR: "a link, directory, pipe, socket or device where an image should be",
    Reason.HARDLINK: "the file has other names outside the folder (more than one hard link)",
    Reason.NAME_TOO_LONG: "no output name of legal length can be derived from the input's",
    Reason.OUTPUT_TOO_LARGE: "the result exceeds what the output format can hold",
    Reason.IO_ERROR: "the storage could not read the file, three times",
    Reason.NO_SUBJECT: 'nothing stands out, and the recipe says on_empty = "refuse"',
    Reason.CRASH_LOOP: "the service died three times with this file in hand",
    Reason.POISON: "the engine died or answered nonsense with this image alone, again and again, and not with others",
}


class RmbgdError(Exception):
    """Base of every error that rmbgd raises on purpose."""


class ConfigError(RmbgdError):
    """The operator can mend this. `problems` holds every finding, each with a hint; raised once for all of them."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("; ".join(self.problems))


class ModelError(ConfigError):
    """Weights that are missing, not what they claim to be, or not accepted."""


class ImageError(RmbgdError):
    """The image is at fault.

    `maybe_incomplete` marks damage that an unfinished upload would also show (a missing tail): such a file is waited
    for before it is refused.
    """

    def __init__(self, reason: Reason, detail: str, *, maybe_incomplete: bool = False) -> None:
        self.reason = reason
        self.detail = detail
        self.maybe_incomplete = maybe_incomplete
        super().__init__(f"{reason}: {detail}")


class EngineFault(RmbgdError):
    """The device is at fault. `sticky` faults poison the process that met them: it is never used again."""

    sticky = True


class EngineLost(EngineFault):
    """The engine's process died, hung past its deadline, or could not be started.

    `cause` is empty, or one of: no_device (nothing answers under the device's name), unkillable (the process outlived
    SIGKILL and was abandoned: it is stuck inside the driver).
    """

    def __init__(self, detail: str, *, cause: str = "") -> None:
        self.cause = cause
        super().__init__(detail)


class EngineMemory(EngineFault):
    """Out of device memory. Smaller batches may pass; the process is well."""

    sticky = False


class EngineNonsense(EngineFault):
    """An answer that cannot be: non-finite alpha, a wrong count, a wrong image."""


class StorageFault(RmbgdError):
    """The disk is at fault. `kind` is one of: disk_full, quota, read_only, io_error, denied, missing."""

    def __init__(self, kind: str, detail: str, *, path: str = "") -> None:
        self.kind = kind
        self.detail = detail
        self.path = path
        super().__init__(f"{kind}: {detail}" + (f" ({path})" if path else ""))


# --- The exit statuses of `rmbgd` and what they mean to a script or to systemd. A leaf: decides nothing.


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    INTERNAL = 70  # EX_SOFTWARE of sysexits.h
    CONFIGURATION = 78  # EX_CONFIG
    INTERRUPTED = 130  # 128 + SIGINT, as shells say it


EXIT_TEXT: dict[Exit, str] = {
    Exit.OK: "done; for `run`: stopped because it was asked to",
    Exit.FAILED: "something did not work out: an image was refused, the service is not running, a need is not met",
    Exit.USAGE: "the command line was wrong",
    Exit.INTERNAL: "a part of rmbgd broke; systemd starts the service again",
    Exit.CONFIGURATION: "the configuration, a folder layout or a model cannot be used; systemd does not start it again",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}
