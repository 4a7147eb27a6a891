"""POLICY: every derived file name: outputs, their versions, claimed files, temporaries, reason files.

Text with surrogateescape for bytes that are no UTF-8.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator

NAME_MAXIMUM = 255  # bytes of one path component, on every local file system of Linux
CLAIM_FOLDER = ".rmbgd"
"""Inside each drop folder: claimed files. Ours alone; neither watched nor scanned."""

SIDECARS = (".xmp", ".json", ".aae", ".pp3", ".dop", ".md5", ".sha1", ".sha256", ".sha512", ".sfv", ".asc", ".sig")
"""What other programs write about an image, behind its name or its stem."""

EXTENSIONS = {"png": ".png", "webp": ".webp", "tiff": ".tif", "jpeg": ".jpg"}
"""Of outputs, by the recipe's format."""

_LATER = re.compile(r"(?<=[^/])_(jpe?g|png|webp|tiff?|bmp|gif|avif|hei[cf])?$", re.IGNORECASE)
"""What output_names adds to a stem that is taken, of suffixes that images have."""

_TEMPORARY_PREFIX, _TEMPORARY_SUFFIX = ".rmbgd-", ".tmp"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def fit(name: str, limit: int = NAME_MAXIMUM) -> str:
    """`name`, cut to `limit` bytes when it is longer: the stem is cut, and a hash of the whole keeps it unique."""
    if len(_bytes(name)) <= limit:
        return name
    stem, extension = posixpath.splitext(name)
    if len(_bytes(extension)) > 32:  # no extension, but a name with a dot in it
        stem, extension = name, ""
    mark = "~" + hashlib.sha256(_bytes(name)).hexdigest()[:8]
    space = limit - len(_bytes(mark + extension))
    while len(_bytes(stem)) > space:
        stem = stem[: -max(1, (len(_bytes(stem)) - space) // 4)]
    return stem + mark + extension


def output_names(relative_path: str, extension: str) -> tuple[str, str]:
    """The name that an image's output has, and the one it has when another image of the same stem came first.

    `extension` with its dot: s/a.jpg, .png -> s/a.png, s/a_jpg.png
    """
    folder, name = posixpath.split(relative_path)
    stem, own = posixpath.splitext(name)
    later = f"{stem}_{own[1:]}" if len(own) > 1 else f"{stem}_"
    return posixpath.join(folder, fit(stem + extension)), posixpath.join(folder, fit(later + extension))


def version_of(path: str, number: int) -> str:
    """The `number`th name for a file that should be at `path`: a.png, a~2.png, a~3.png ...; for when one is taken."""
    if number == 1:
        return path
    folder, name = posixpath.split(path)
    stem, extension = posixpath.splitext(name)
    return posixpath.join(folder, fit(f"{stem}~{number}{extension}"))


def without_versions(folder: str) -> str:
    """A folder's path as it would be if none of its names had been taken: s~2.x/t -> s.x/t"""
    return "/".join(re.sub(r"(?<=.)~[1-9][0-9]*(?=(\.[^.]*)?$)", "", part) for part in folder.split("/"))


def sources_of(output: str) -> list[str]:
    """Paths without suffix that an output of this path may have been made from, the likeliest first.

    The inverse of output_names and version_of: s/a_jpg~2.png -> s/a_jpg~2, s/a_jpg, s/a
    """
    stem = posixpath.splitext(output)[0]
    plain = re.sub(r"(?<=[^/])~[1-9][0-9]*$", "", stem)
    return list(dict.fromkeys((stem, plain, _LATER.sub("", plain))))


def versions(path: str) -> Iterator[str]:
    return (version_of(path, number) for number in range(1, 1 << 30))


def sidecar_name(output: str) -> str:
    return _beside(output, ".json")


def sidecars_of_others(original: str) -> list[str]:
    """The names that sidecars of an original may have: a.jpg.xmp, a.xmp, ..."""
    return [base + suffix for suffix in SIDECARS for base in (original, posixpath.splitext(original)[0])]


def reason_name(original: str) -> str:
    """The file that says why `original` was refused."""
    return _beside(original, ".error.json")


def _beside(path: str, suffix: str) -> str:
    folder, name = posixpath.split(path)
    return posixpath.join(folder, fit(name, NAME_MAXIMUM - len(suffix)) + suffix)


def temporary_name(job_id: int, kind: str = "") -> str:
    """Of a file that becomes an output; `kind` tells several of one job apart. Short whatever the image is called."""
    return f"{_TEMPORARY_PREFIX}{job_id}{kind}{_TEMPORARY_SUFFIX}"


def is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY_PREFIX) and name.endswith(_TEMPORARY_SUFFIX)


def claimed_name(job_id: int, relative_path: str) -> str:
    """Inside the claim folder. Holds the whole relative path where it fits, so that a file can be put back without the
    ledger."""
    escaped = relative_path.replace("%", "%25").replace("/", "%2F")
    name = f"{job_id}__{escaped}"
    return name if len(_bytes(name)) <= NAME_MAXIMUM else f"{job_id}__{fit(posixpath.basename(escaped), 220)}"


def unclaimed_path(name: str) -> tuple[int, str] | None:
    """(job number, relative path) of a claimed name, or None when it is none of ours."""
    number, separator, escaped = name.partition("__")
    if not separator or not number.isascii() or not number.isdigit() or not escaped:
        return None
    path = escaped.replace("%2F", "/").replace("%25", "%")
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        return None
    return int(number), path
