"""Errors by who is at fault, reasons for rejecting an image, and exit statuses.

RmbgdError
├── ConfigError          the operator: a setting, a layout, a model that cannot be used -> exit 78
│   └── ModelError       the operator: weights missing, of another architecture, licence not accepted
├── ImageError           the image: carries a Reason -> quarantine
├── EngineFault          the device: the image is retried, on another device where there is one
│   ├── EngineLost       the engine process died, hung or cannot be started
│   ├── EngineMemory     out of device memory; the process itself still works
│   └── EngineNonsense   an impossible answer (non-finite alpha, another shape)
└── StorageFault         the disk: full, read-only, broken -> wait, resume by itself
    └── LedgerFault      the same of the ledger's file: refused, or damaged
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum, StrEnum
from typing import Self


class Reason(StrEnum):
    """Why an image was rejected, and that in words. Events, sidecars and the ledger carry the value."""

    text: str

    def __new__(cls, value: str, text: str = "") -> Self:
        reason = str.__new__(cls, value)
        reason._value_, reason.text = value, text
        return reason

    EMPTY = "empty", "the file has no bytes"
    UNIDENTIFIED = "unidentified", "no allowed decoder recognises the content, whatever the file name says"
    FORMAT_NOT_ALLOWED = "format_not_allowed", "the content is an image in a format that is not allowed"
    UNSUPPORTED_MODE = "unsupported_mode", "the pixel layout cannot be converted without guessing"
    TRUNCATED = "truncated", "the file ends before the image does, and was not completed in time"
    CORRUPT = "corrupt", "the decoder found damaged data"
    TOO_LARGE = "too_large", "more pixels, or a longer side, than the limits allow; found before memory was allocated"
    TOO_MANY_BYTES = "too_many_bytes", "the file is larger than the limits allow"
    ANIMATED = "animated", "the image has more than one frame, and the recipe does not ask for the first"
    TOO_LONG = "too_long", "a film of more seconds or frames than the limits allow"
    TOO_MANY_STREAMS = "too_many_streams", "a film of more streams than the limits allow"
    NO_FRAMES = "no_frames", "a film without a single frame to show"
    SIZE_CHANGES = "size_changes", "a film whose frames change their size; convert it to one size first"
    DECODER_FAILED = "decoder_failed", "the process that reads the film died of it, or hung, twice"
    METADATA_BOMB = "metadata_bomb", "a text or profile chunk unpacks to more than its limit"
    NOT_REGULAR = "not_regular", "a link, directory, pipe, socket or device instead of a regular file"
    HARDLINK = "hardlink", "the file has other names outside the folder (more than one hard link)"
    NAME_TOO_LONG = "name_too_long", "the output name derived from the input name would be too long"
    OUTPUT_TOO_LARGE = "output_too_large", "the result is larger than the output format allows"
    OUTPUT_TAKEN = (
        "output_taken",
        "files of others stand where its output belongs, under both of its names",
    )
    IO_ERROR = "io_error", "reading the file failed three times"
    NO_SUBJECT = "no_subject", 'no foreground was found, and the recipe says on_empty = "refuse"'
    VANISHED = "vanished", "the claimed file was removed from the claim folder before it was read"
    NEEDS_REVIEW = (
        "needs_review",
        "a person should look at the result, and `rmbgd once` has no review folder to put it into",
    )
    REJECTED_IN_REVIEW = "rejected_in_review", "a person looked at the result and rejected it"
    CRASH_LOOP = "crash_loop", "the service crashed three times while it processed this file"
    POISON = "poison", "the engine fails on this image even when it runs alone, and not on others"
    EXHAUSTS_MEMORY = (
        "exhausts_memory",
        (
            "the engine was killed from outside three times with this image alone, most likely for want of memory; "
            "give the machine more memory or a smaller image, then put it back"
        ),
    )


REASON_TEXT = {reason: reason.text for reason in Reason}


class Exit(IntEnum):
    """Exit statuses of `rmbgd`, for scripts and for systemd."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3  # as systemctl status and the LSB say it
    INTERNAL = 70  # EX_SOFTWARE of sysexits.h
    CONFIGURATION = 78  # EX_CONFIG
    HUNG_UP = 129  # 128 + SIGHUP, as shells say it
    INTERRUPTED = 130  # 128 + SIGINT
    TERMINATED = 143  # 128 + SIGTERM


class RmbgdError(Exception):
    """Base of all errors that rmbgd raises on purpose. `exit` is the status of a command that one of them ends."""

    exit = Exit.FAILED


class ConfigProblem(str):
    """One problem in a file, in one line: `FILE:LINE: TABLE: SETTING: PROBLEM`.

    parts    those of the line, and `column`; line and column count from 1, and are None where there is no such place
    excerpt  the line of the file and carets below it; or nothing
    """

    __slots__ = ("excerpt", "parts")
    parts: dict[str, str | int | None]
    excerpt: tuple[str, ...]

    def __new__(cls, parts: dict[str, str | int | None], excerpt: tuple[str, ...] = ()) -> Self:
        where = f"{parts['file']}:{parts['line']}" if parts["line"] else str(parts["file"])
        words = [where, *(str(parts[key]) for key in ("table", "setting", "problem") if parts[key])]
        self = str.__new__(cls, ": ".join(words))
        self.parts, self.excerpt = parts, excerpt
        return self


class ConfigError(RmbgdError):
    """The operator can fix this. `problems` holds every finding, each with a hint; raised once for all of them."""

    exit = Exit.CONFIGURATION

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("; ".join(self.problems))


class ModelError(ConfigError):
    """Weights that are missing, not what they claim to be, or whose licence is not accepted."""


def missing_extra(package: str, extra: str, what: str) -> ConfigError:
    """For an optional library that `what` needs."""
    return ConfigError(f"{what} needs {package}: pip install 'rmbgd[{extra}]'")


class ImageError(RmbgdError):
    """The image is at fault.

    `maybe_incomplete` marks damage that an unfinished upload would also show (a missing tail): such a file gets time to
    be completed before it is rejected.
    """

    def __init__(self, reason: Reason, detail: str, *, maybe_incomplete: bool = False) -> None:
        self.reason = reason
        self.detail = detail
        self.maybe_incomplete = maybe_incomplete
        super().__init__(f"{reason}: {detail}")


class EngineFault(RmbgdError):
    """The device is at fault. After a `sticky` fault the engine process is not used again."""

    sticky = True


KILLED_FROM_OUTSIDE = "killed_from_outside"
UNCLEAN_CAPTURE = "unclean_capture"


class EngineLost(EngineFault):
    """The engine process died, hung past its deadline, or could not be started.

    `cause` is empty, or one of: no_device (nothing answers under the device's name), unkillable (the process outlived
    SIGKILL and was abandoned: it is stuck inside the driver), killed_from_outside (by a signal that is not ours, and
    that no program earns by itself), unclean_capture (a CUDA graph could not be captured, and its process no longer
    manages device memory: a fresh one may run without graphs).
    """

    def __init__(self, detail: str, *, cause: str = "") -> None:
        self.cause = cause
        super().__init__(detail)


class EngineMemory(EngineFault):
    """Out of memory. The process still works: on a CPU smaller batches may pass; of a GPU a fresh one plans anew."""

    sticky = False


class EngineNonsense(EngineFault):
    """An impossible answer: non-finite alpha, a wrong count, a wrong image."""


class StorageFault(RmbgdError):
    """The disk is at fault. `kind` is one of: disk_full, quota, read_only, io_error, denied, missing, ledger."""

    def __init__(self, kind: str, detail: str, *, path: str = "") -> None:
        self.kind = kind
        self.detail = detail
        self.path = path
        super().__init__(f"{kind}: {detail}" + (f" ({path})" if path else ""))


class LedgerFault(StorageFault):
    """The ledger cannot be used. A full disk keeps its own kind; with kind `ledger`, `cause` says why.

    cause  read_only, denied, missing, descriptors, io_error; damaged: waiting does not help
    """

    def __init__(self, cause: str, detail: str, *, path: str) -> None:
        super().__init__(cause if cause in ("disk_full", "quota") else "ledger", detail, path=path)
        self.cause = cause

    @property
    def damaged(self) -> bool:
        return self.cause == "damaged"


REMEDIES = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "run the command as a user who may do that (sudo), or name another path"
    ),
    errno.ENOENT: "make it, or name another path",
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another path",
    errno.EROFS: "mount it writable, or name another path",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or name a path on another disk"),
}


def explain(error: OSError) -> str:
    """What the operating system refused: where, why, what to do. For paths that the operator named."""
    path = error.filename if error.filename2 is None else error.filename2
    where = "" if path is None else f"{os.fsdecode(path) if isinstance(path, bytes) else path}: "
    return f"{where}{error.strerror or error}; {REMEDIES.get(error.errno or 0, 'name another path')}"


EXIT_TEXT: dict[Exit, str] = {
    Exit.OK: "success; `run`: stopped on request",
    Exit.FAILED: "failure: an image was rejected, the service hangs or cannot be seen, a requirement is not met, or a "
    "path cannot be used",
    Exit.USAGE: "invalid command line",
    Exit.NOT_RUNNING: "the service is not running",
    Exit.INTERNAL: "internal error; systemd restarts the service",
    Exit.CONFIGURATION: "the configuration, the folder layout or a model cannot be used; systemd does not restart it",
    Exit.HUNG_UP: "its terminal was closed (SIGHUP)",
    Exit.INTERRUPTED: "interrupted from the keyboard",
    Exit.TERMINATED: "ended by SIGTERM; `run` stops in good order then, with 0",
}
