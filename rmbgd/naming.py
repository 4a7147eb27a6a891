"""POLICY: every derived file name: outputs, their versions, claimed files, temporaries, reason files.

Text with surrogateescape for bytes that are no UTF-8.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import string
from collections.abc import Iterator
from datetime import date

NAME_MAXIMUM = 255  # bytes of one path component, on every local file system of Linux
CLAIM_FOLDER = ".rmbgd"
"""Inside each drop folder: claimed files. Ours alone; neither watched nor scanned."""

SIDECARS = (".xmp", ".json", ".aae", ".pp3", ".dop", ".md5", ".sha1", ".sha256", ".sha512", ".sfv", ".asc", ".sig")
"""What other programs write about an image, behind its name or its stem."""

EXTENSIONS = {"png": ".png", "webp": ".webp", "tiff": ".tif", "jpeg": ".jpg"}
"""Of outputs, by the recipe's format."""

FILM_EXTENSIONS = {"prores4444": ".mov", "vp9": ".webm", "h264": ".mp4", "png": ".zip"}
"""Of films, by the recipe's `film`."""

PLAIN = frozenset({*EXTENSIONS.values(), *FILM_EXTENSIONS.values()})
"""Slots of the one output of a recipe that lists none."""

FILMS = (".mp4", ".mov", ".mkv", ".webm", ".m4v")
"""Suffixes of films that are read."""

FILM_FORMATS = {suffix: form for form, suffix in FILM_EXTENSIONS.items()}
"""Of the suffixes that an output may be named with."""

PREVIEW = ".review.jpg"
"""Extension of the preview of an image that waits for review; it stands beside its files, and is none of them."""

FORMATS = {".png": "png", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""Of the suffixes that a template may end in."""

FIELDS = ("dir", "stem", "name", "date", "subject", "size")
"""Of templates for files of a set."""

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


def is_film(path: str) -> bool:
    """By its suffix."""
    return posixpath.splitext(path)[1].lower() in FILMS


def output_names(relative_path: str, extension: str) -> tuple[str, str]:
    """The name that an image's output has, and the one it has when another image of the same stem came first.

    `extension` with its dot: s/a.jpg, .png -> s/a.png, s/a_jpg.png
    """
    folder, name = posixpath.split(relative_path)
    stem, own = posixpath.splitext(name)
    later = f"{stem}_{own[1:]}" if len(own) > 1 else f"{stem}_"
    return posixpath.join(folder, fit(stem + extension)), posixpath.join(folder, fit(later + extension))


def fields_of(template: str) -> list[str]:
    """The fields of a template, in order. Raises ValueError where it is none."""
    return [field for _, field, _, _ in _parts(template) if field is not None]


def format_of(template: str) -> str:
    """The format that the suffix of a template says, or ""."""
    return FORMATS.get(posixpath.splitext(template)[1].lower(), "")


def check_template(template: str) -> str:
    """The template, of a path below the output that no image's name can lead out of it. Raises ValueError."""
    fields = fields_of(template)
    if unknown := [field for field in fields if field not in FIELDS]:
        raise ValueError(f"{template!r}: no field {{{unknown[0]}}}; there are {', '.join(f'{{{f}}}' for f in FIELDS)}")
    if not {"stem", "name"} & set(fields):
        raise ValueError(f"{template!r} gives all images one name; put {{stem}} or {{name}} into it")
    if template.startswith("/") or "\0" in template:
        raise ValueError(f"{template!r} is no path below the output; begin it with {{dir}} or a folder's name")
    shown = _filled(template, "dir/photo.png", False, date(2026, 1, 31), "1", "1x1").split("/")
    if any(part in ("", ".", "..") for part in shown):
        raise ValueError(f"{template!r} has a folder that is empty, '.' or '..'; it must stay below the output")
    if any(part.startswith(".") for part in shown):
        raise ValueError(f"{template!r} would be hidden: a name begins with a dot; leave it out")
    suffix = posixpath.splitext(shown[-1])[1].lower()
    if suffix in SIDECARS or suffix == _TEMPORARY_SUFFIX:
        raise ValueError(f"{template!r} ends in {suffix}, which is not an image's suffix; leave it out")
    return template


def expand(
    template: str,
    relative_path: str,
    extension: str,
    *,
    when: date,
    subject: int | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[str, str]:
    """Paths that a template gives for an image: plain, and later, where another image came first (as `output_names`).

    extension  with its dot; added unless the template ends in a suffix of its own
    size       width and height of the file, px
    """
    sized = "" if size is None else f"{size[0]}x{size[1]}"
    ending = "" if format_of(template) else extension

    def named(*, later: bool) -> str:
        filled = _filled(template, relative_path, later, when, "" if subject is None else str(subject), sized)
        return posixpath.join(*(fit(part) for part in (filled + ending).split("/")))

    return named(later=False), named(later=True)


def may_be_equal(one: str, form: str, other: str, other_form: str) -> bool:
    """Do two templates give one path for some image? {size} is taken for equal, as two files may have one."""

    def sample(template: str, form: str) -> set[str]:
        day = date(2026, 1, 31)
        return {
            expand(template, "dir/photo.tga", EXTENSIONS[form], when=day, subject=subject, size=(1, 1))[0]
            for subject in (1, 2)
        }

    return not sample(one, form).isdisjoint(sample(other, other_form))


def _parts(template: str) -> list[tuple[str, str | None, str, str | None]]:
    try:
        parts = [(text, field, spec or "", how) for text, field, spec, how in string.Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template: {str(error).lower()}; write {{{{ for a brace") from None
    for _, field, spec, how in parts:
        if how is not None or (spec and field != "date") or "{" in spec:
            raise ValueError(f"{template!r}: only {{date:...}} takes more than its name, like {{date:%Y-%m-%d}}")
    return parts


def _filled(template: str, relative_path: str, later: bool, when: date, subject: str, size: str) -> str:
    folder, name = posixpath.split(relative_path)
    stem, own = posixpath.splitext(name)
    values = {"dir": folder, "stem": stem, "name": name, "subject": subject, "size": size}
    if later:
        values["stem"] = f"{stem}_{own[1:]}"
    return "".join(
        text + ("" if field is None else when.strftime(spec or "%Y-%m-%d") if field == "date" else values[field])
        for text, field, spec, _ in _parts(template)
    )


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
