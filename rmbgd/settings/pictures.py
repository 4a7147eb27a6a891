"""What comes out, and between which folders.

A table: decides nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rmbgd.settings.basics import AbsolutePath, Colour, FileMode, Name, Settings, setting


class Recipe(Settings):
    """What comes out."""

    model: str = setting(
        "u2netp", reason="a name of `rmbgd models list`, a folder with model.safetensors, or a .safetensors file"
    )
    patch_order: Literal["auto", "channel_first", "tile_first"] = setting(
        "auto",
        reason="layout of the network's image patches, for weights of your own; auto reads it beside the weights",
    )
    model_sha256: str = setting(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        unit="hex digits",
        reason="what the model's file must hash to; empty trusts the registry's digest where there is one, and always logs it",
    )
    format: Literal["png", "webp", "tiff"] = setting("png", reason="every tool reads it; lossless")
    content: Literal["rgba", "mask", "colour"] = setting(
        "rgba", reason="rgba: transparent cutout; mask: alpha alone; colour: on a background colour"
    )
    mask_bits: Literal[8, 16] = setting(8, unit="bits", reason="16 keeps every step of a soft edge, in PNG and TIFF")
    background: Colour = setting("#ffffff", reason="used when content is colour; the background is exactly this value")
    edge_colours: Literal["clean", "keep"] = setting(
        "clean", reason="clean takes the old background out of half-transparent pixels; keep leaves the photo's"
    )
    hidden_colours: Literal["zero", "keep"] = setting(
        "zero", reason="colours under full transparency: nobody sees them, and they double the file"
    )
    png_level: int = setting(2, unit="level", ge=0, le=3, reason="ISA-L deflate; 3 is slower and no smaller")
    webp_quality: int = setting(80, unit="quality", ge=0, le=100, reason="used when webp_lossless is false")
    webp_lossless: bool = setting(True, reason="a cutout is usually worked on further")
    crop: bool = setting(False, reason="cut to the subject's box (alpha of 10 and more), with crop_margin around it")
    crop_margin: float = setting(
        0.05, unit="of the box's longer side", ge=0, le=0.5, reason="air that marketplaces ask for"
    )
    canvas: str = setting(
        "",
        pattern=r"^([1-9][0-9]{0,4}x[1-9][0-9]{0,4})?$",
        unit="pixels",
        reason='fit the picture into e.g. "2000x2000"; empty keeps its size',
    )
    metadata: list[Literal["copyright", "artist", "description", "software", "datetime"]] = setting(
        ["copyright"], reason="text fields that are carried over; profile and resolution always are, GPS never is"
    )
    animated: Literal["refuse", "first_frame"] = setting("refuse", reason="one frame of many is rarely what was meant")
    on_empty: Literal["publish", "refuse"] = setting(
        "publish",
        reason="publish: a fully transparent picture with the verdict 'empty'; refuse: the original goes to failed",
    )
    empty_below: float = setting(
        0.0005,
        unit="share of pixels",
        ge=0,
        le=1,
        reason="fewer pixels than this at alpha 0.5 or more: there is no subject",
    )
    sidecar: Literal["never", "notable", "always"] = setting(
        "notable", reason="a <output>.json with the facts; notable: only when the verdict is not 'ok'"
    )
    file_mode: FileMode = setting("0640", unit="octal", reason="group may read; nobody else")

    @model_validator(mode="after")
    def _formats_hold_what_is_asked(self) -> Recipe:
        if self.content == "mask" and self.mask_bits == 16 and self.format == "webp":
            raise ValueError('format "webp" holds 8 bits only; use "png" or "tiff" for a 16-bit mask')
        return self


class Folder(Settings):
    """One drop folder. Relative paths below `input` are mirrored below the others."""

    name: Name = setting(reason="appears in events and in the ledger; never reuse one for another folder")
    input: AbsolutePath = setting(reason="files are dropped here")
    output: AbsolutePath = setting(reason="finished cutouts appear here, whole or not at all")
    failed: AbsolutePath = setting(reason="refused originals, each with <name>.error.json")
    done: AbsolutePath | None = setting(None, reason="originals after success; needed when originals is archive")
    originals: Literal["archive", "delete", "keep"] = setting(
        "archive", reason="archive moves them to done; keep leaves them in the input and remembers them"
    )
    recipe: Name = setting("default", reason="a [recipe.NAME] table")
    recursive: bool = setting(True, reason="sub-folders are watched and mirrored")
    priority: int = setting(
        50, unit="0..100", ge=0, le=100, reason="higher goes first; waiting raises it by one each ten seconds"
    )
    latency: Literal["bulk", "realtime"] = setting(
        "bulk", reason="realtime pictures go first and alone, so that none waits for a batch"
    )
    latency_target: float = setting(
        0.13,
        unit="s",
        ge=0.005,
        le=3600,
        reason="of the engine: a batch takes half of it at most, as a picture may just miss one and be in the next; "
        "raise it where only the rate counts",
    )
    watch: Literal["auto", "events", "poll"] = setting("auto", reason="auto polls where events do not arrive")
    require_mount: bool = setting(
        False, reason="a removable disk: while nothing is mounted at input, wait and write nothing there"
    )
    ignore: list[str] = setting(
        [], unit="patterns", reason="more names to leave alone, besides those of half-finished uploads"
    )

    @model_validator(mode="after")
    def _archive_has_a_place(self) -> Folder:
        if self.originals == "archive" and self.done is None:
            raise ValueError('originals = "archive" needs a `done` folder; give one, or say "delete" or "keep"')
        return self
