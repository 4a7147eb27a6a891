"""The page of `rmbgd report`: what became of the last images, each beside its cutout, failures first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rmbgd import page
from rmbgd.config.load import Config, Folder, LimitSettings
from rmbgd.errors import REASON_TEXT, ImageError, Reason
from rmbgd.imaging.pillow import configure_opencv, configure_pillow
from rmbgd.report.thumbnails import Thumbnail, of_original, of_output
from rmbgd.store.reading import Ending
from rmbgd.wording import VERDICTS, printable

KINDS = {  # in the order of the page: heading, and the badge of each image
    "failed": ("Rejected", "rejected"),
    "review": ("Waiting for review", VERDICTS["review"]),
    "empty": ("Without a subject", VERDICTS["empty"]),
    "full": ("Filling the frame", VERDICTS["full"]),
    "done": ("Published", ""),
}
HINTS = {
    "failed": "The original is in the failed folder, with a file that gives the reason.",
    "review": "`rmbgd review list` says why; `rmbgd review approve` publishes it.",
    "empty": "No foreground was found, so the cutout is transparent.",
    "full": "No background was found, so nothing was removed.",
    "done": "The newest first.",
}


@dataclass(frozen=True, slots=True)
class ImageCard:
    """One image on the page. A side is a thumbnail, or words for why there is none; `detail` may be empty."""

    name: str
    folder: str
    kind: str
    badge: str
    detail: str
    facts: list[str]
    sides: dict[str, Thumbnail | str]


def prepare(limits: LimitSettings) -> None:
    """Of the process, before any thumbnail."""
    configure_pillow(limits)
    configure_opencv()


def template() -> Any:
    """Raises ConfigError where jinja2 is not installed."""
    return page.template("rmbgd.report", "images.html.j2", {"number": format})


def cards(images: Iterable[Ending], config: Config) -> Iterator[ImageCard]:
    """One by one: of each image only its thumbnails stay in memory."""
    folders = {folder.name: folder for folder in config.folder}
    for image in images:
        folder = folders.get(image.folder)  # None: it is not configured any more
        reason, detail = image.reason or "", image.detail or ""
        with suppress(ValueError):
            detail = f"{REASON_TEXT[Reason(reason)]}: {detail}" if detail else REASON_TEXT[Reason(reason)]
        yield ImageCard(
            name=printable(image.path),
            folder=image.folder if len(folders) > 1 else "",
            kind=image.kind,
            badge=reason or KINDS[image.kind][1],
            detail=printable(detail),
            facts=list(_facts(image)),
            sides=_sides(image, folder, config.limits),
        )


def _facts(image: Ending) -> Iterator[str]:
    if image.width and image.height:
        yield f"{image.width} × {image.height} px"
    if image.seconds is not None:
        yield f"{image.seconds:.1f} s"
    if image.device:
        yield image.device
    yield f"{moment(image.ended_at):%d %b %H:%M}".lstrip("0")


def _sides(image: Ending, folder: Folder | None, limits: LimitSettings) -> dict[str, Thumbnail | str]:
    if folder is None:
        return {"original": "its folder is not configured any more"}
    sides: dict[str, Thumbnail | str] = {"original": _side(of_original, image, folder, limits)}
    if image.output is not None and image.state == "done":
        sides["cutout"] = _side(of_output, image, folder, limits)
        if folder.originals == "delete" and isinstance(sides["original"], str):
            del sides["original"]
    return sides


def _side(
    make: Callable[[Ending, Folder, LimitSettings], Thumbnail | None],
    image: Ending,
    folder: Folder,
    limits: LimitSettings,
) -> Thumbnail | str:
    try:
        return make(image, folder, limits) or "not there any more"
    except ImageError as error:
        return "too large to be shown" if error.reason is Reason.TOO_LARGE else "cannot be shown"
    except PermissionError:
        return "this user may not read it"
    except OSError as error:
        return error.strerror or "cannot be read"


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def render(counts: Mapping[str, int], shown: list[ImageCard], title: Mapping[str, str]) -> str:
    """`counts` by kind, of all images; `title`: place, begin and end. Raises ConfigError where jinja2 is missing."""
    groups = {kind: [card for card in shown if card.kind == kind] for kind in KINDS}
    text = template().render(
        title=title, counts=counts, total=sum(counts.values()), groups=groups, kinds=KINDS, hints=HINTS
    )
    return str(text)
