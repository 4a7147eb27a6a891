"""Pillow: global settings, safe opening with errors as ImageError, and headers of TIFF, BMP, GIF, AVIF, HEIF.

Only formats that formats.sniff names are ever opened, so no plugin that starts a program (EPS) or parses markup is
reachable.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, features

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.completeness import TIFF_PIXELS, bmp_end, box_length
from rmbgd.imaging.formats import Coded, Header, PixelStream, check_size, cut_short, damaged
from rmbgd.imaging.metadata import TEXT_TAGS, clean_text, sensible_dpi
from rmbgd.imaging.png import PixelReader
from rmbgd.imaging.zero_runs import SECTOR

_SUB_FILE, _BITS, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG = 254, 258, 330, 339, 50706  # tags of a TIFF
_PLANES, _TILES, _FAX, _JPEG = 284, 324, (2, 3, 4), 7
_COMPRESSION, _LZW, _DEFLATE, _PACK_BITS = 259, 5, (8, 32946, 34925, 50000), 32773
_PREVIEW = 1  # value of _SUB_FILE


def configure_pillow(limits: LimitSettings) -> None:
    """Set what Pillow and its plugins keep per process. Called once by the composition root, before any thread starts.

    Second line of defence behind the headers' checks: no decoder allocates more than twice limits.pixels. Warnings of
    Pillow are silenced: what they say is found and noted by our own readers.
    """
    Image.MAX_IMAGE_PIXELS = limits.pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )


def configure_opencv() -> None:
    """One thread per call, as the parallelism is across images; nothing on stderr. Called like configure_pillow."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_pillow(data: bytes, form: str, limits: LimitSettings) -> Header:
    """Header of a TIFF, BMP, GIF, AVIF or HEIF. See formats.Reader."""
    if form == "HEIF" and "HEIF" not in Image.OPEN:
        raise ImageError(Reason.FORMAT_NOT_ALLOWED, "HEIC needs the package pillow-heif: pip install 'rmbgd[heif]'")
    if form == "AVIF" and not features.check("avif"):
        raise ImageError(Reason.FORMAT_NOT_ALLOWED, "this build of Pillow has no AVIF decoder")
    if form == "BMP":
        _check_bmp(data, limits)
    elif form == "GIF":
        check_size((int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")), limits)
    with opened(data, form) as image:
        check_size(image.size, limits)
        header = Header(form, image.mode, image.size, bool(image.has_transparency_data), dpi=_dpi(image))
        if profile := image.info.get("icc_profile"):
            header.take_profile(profile, limits)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _read_tiff(data, image, header)
        else:
            header.coded = _coded(data, form, image)
            header.exif, header.xmp = image.info.get("exif"), image.info.get("xmp")
        if getattr(image, "is_animated", False):
            header.frames = 2 if form in ("TIFF", "GIF") else int(getattr(image, "n_frames", 2))
            # Several images in a HEIF are a collection, with one of them primary.
            header.animated = form != "HEIF" and not _only_smaller_copies(image)
        return header


@contextmanager
def opened(data: bytes, form: str, stream: PixelStream | None = None) -> Iterator[ImageFile.ImageFile]:
    """The image in Pillow's hands, not yet decoded; whatever goes wrong inside the block becomes an ImageError.

    Decoders meet hostile bytes here and raise nearly anything, so this one place catches nearly anything.
    """
    source: Any = io.BytesIO(data) if stream is None else PixelReader(data, stream)
    try:
        with Image.open(source, formats=[form]) as image:
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise _unopened(data, form, source) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_LARGE, "more pixels than limits.pixels allows, inside the file") from error
    except MemoryError as error:
        raise ImageError(Reason.TOO_LARGE, "the decoder asked for more memory than there is") from error
    except Exception as error:
        detail = _wording(error, form)
        if _is_cut(data, form, detail):
            raise cut_short(detail) from error
        raise damaged(data, detail) from error


def _unopened(data: bytes, form: str, source: Any) -> ImageError:
    """Why a plugin did not open what carries its signature: Image.open does not say, the plugin does."""
    source.seek(0)
    try:
        Image.OPEN[form][0](source, "").close()
    except Exception as error:  # noqa: BLE001, for the reason given in `opened`
        detail = _wording(error, form)
        if "pixel mode" in detail:
            return ImageError(Reason.UNSUPPORTED_MODE, detail)
    else:
        detail = f"{form}: the header makes no sense"
    return cut_short(detail) if _is_cut(data, form, detail) else damaged(data, detail)


def _wording(error: Exception, form: str) -> str:
    return f"{form}: {str(error)[:200] or type(error).__name__}"


def _is_cut(data: bytes, form: str, detail: str) -> bool:
    """Whether a missing tail explains the error. PNG and WebP are measured before they get here."""
    if form == "JPEG":
        return "truncated" in detail
    if form == "GIF":
        return not data.rstrip(b"\x00").endswith(b";")
    if form in ("AVIF", "HEIF"):
        return _boxes_incomplete(data)
    if form == "TIFF":
        first = int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
        return b"+" not in data[2:4] and len(data) < first < 1 << 31
    return False


def _boxes_incomplete(data: bytes) -> bool:
    """Whether top-level boxes of an ISO media file reach beyond its end, or the one with the directory is missing."""
    at, described = 0, False
    while at + 8 <= len(data):
        header = data[at : at + 16]
        described |= header[4:8] == b"meta"
        length = box_length(header)
        if length < 8:
            break
        at += length
    return at > len(data) or not described


def _check_bmp(data: bytes, limits: LimitSettings) -> None:
    """Size, and whether the rows of an uncompressed BMP fit into the file: Pillow would say so only after decoding."""
    if int.from_bytes(data[14:18], "little") < 40 or len(data) < 34:  # length of the header
        return
    width = int.from_bytes(data[18:22], "little")  # a negative one is as good as a huge one
    height = abs(int.from_bytes(data[22:26], "little", signed=True))
    check_size((width, height), limits)
    end = bmp_end(data)
    if end is not None and end > len(data) + 3:  # writers leave out the padding of the last row
        raise cut_short(f"the rows end at byte {end}, the file at {len(data)}")


def _coded(data: bytes, form: str, image: ImageFile.ImageFile) -> list[Coded]:
    """What makes pixels of a format that is none of strips."""
    if form == "BMP":
        start, bits = int.from_bytes(data[10:14], "little"), int.from_bytes(data[28:30], "little")
        compressed = int.from_bytes(data[30:34], "little") not in (0, 3)
        row = 0 if compressed else (image.width * bits + 31) // 32 * 4
        return [Coded(min(start, len(data)), len(data), None, row)]
    if form == "GIF":  # blocks of 255 bytes, each behind its length; two tables of 768 colours may be black
        return [Coded(0, len(data.rstrip(b"\0")), 3 * SECTOR)]
    # HEVC and AV1 code an even area with next to nothing. Text and EXIF, which may have padding, lie among the pixels.
    zeros, parts, at = SECTOR + image.width * image.height // 1024, list[Coded](), 0
    while (length := box_length(data[at : at + 16]) or len(data) - at) >= 8 and at < len(data):
        if data[at + 4 : at + 8] == b"mdat":
            parts.append(Coded(at + 8, min(at + length, len(data)), zeros))
        at += length
    for text in (image.info.get("exif"), image.info.get("xmp")):
        block = (text or b"").removeprefix(b"Exif\0\0")
        place = data.find(block) if block else -1
        parts = [piece for part in parts for piece in _without(part, place, place + len(block))]
    return parts


def _without(part: Coded, start: int, end: int) -> list[Coded]:
    """`part`, but for the bytes from `start` to before `end` where they lie in it."""
    if not part.start <= start < end <= part.end:
        return [part]
    return [Coded(part.start, start, part.zeros), Coded(end, part.end, part.zeros)]


def _strips(data: bytes, image: TiffImagePlugin.TiffImageFile, spans: list[tuple[int, int]]) -> list[Coded]:
    """Strips or tiles, from spans of bytes, as few parts as possible. Deflate packs 1,030 equal bytes into one."""
    tags = image.tag_v2
    parts: list[Coded] = []
    compression, bits = tags.get(_COMPRESSION, 1), sum(_integers(tags.get(_BITS))) or 1
    row = (image.width * bits + 7) // 8
    in_rows = compression == 1 and tags.get(_PLANES, 1) == 1 and _TILES not in tags
    zeros = dict.fromkeys((_LZW, _PACK_BITS, *_FAX), SECTOR) | {_JPEG: SECTOR + row * image.height // 64}
    zeros |= dict.fromkeys(_DEFLATE, SECTOR + row * image.height // 1024)
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if parts and start <= parts[-1].end:
            former = parts.pop()
            start, end = former.start, max(end, former.end)  # noqa: PLW2901
        parts.append(Coded(start, min(end, len(data)), zeros.get(compression), row if in_rows else 0))
    return parts


def _dpi(image: ImageFile.ImageFile) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    try:
        return sensible_dpi(float(dpi[0]), float(dpi[1])) if dpi else None
    except (TypeError, ValueError, ZeroDivisionError, IndexError, OverflowError):
        return None


def _read_tiff(data: bytes, image: TiffImagePlugin.TiffImageFile, header: Header) -> None:
    """Refuse previews, find a missing tail, and take text. Pillow has applied the orientation to the size already."""
    tags = image.tag_v2
    if _DNG in tags or (tags.get(_SUB_FILE) == _PREVIEW and _SUB_DIRECTORIES in tags):
        raise ImageError(Reason.FORMAT_NOT_ALLOWED, "camera raw (DNG, NEF, ARW): its first image is only a preview")
    spans = []
    for offsets, lengths in TIFF_PIXELS:
        pairs = zip(_integers(tags.get(offsets)), _integers(tags.get(lengths)), strict=False)
        spans += [(offset, offset + length) for offset, length in pairs]
        end = max((end for _, end in spans), default=0)
        if len(data) < end < 1 << 32:
            raise cut_short(f"image data ends at byte {end}, the file at {len(data)}")
    header.coded = _strips(data, image, spans)
    if image.mode.startswith("I"):
        signed = 2 in _integers(tags.get(_SAMPLE_FORMAT))
        header.maximum = (1 << (_integers(tags.get(_BITS))[0] - signed)) - 1
    for word, tag in TEXT_TAGS.items():
        value = tags.get(tag)
        if isinstance(value, str) and (text := clean_text(value.encode("latin-1", "replace"))):  # UTF-8 mostly
            header.metadata[word] = text
    orientation = tags.get(0x0112)
    if isinstance(orientation, int):
        header.orientation = orientation


def _integers(value: object) -> list[int]:
    values = value if isinstance(value, tuple) else (value,)
    return [number for number in values if isinstance(number, int)]


def _only_smaller_copies(image: ImageFile.ImageFile) -> bool:
    """Whether the second page of a TIFF is a reduced copy of the first, as image editors and scanners write."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    try:
        image.seek(1)
    except (EOFError, OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error):
        return True  # there is no second page that anything could read
    return bool(_integers(image.tag_v2.get(_SUB_FILE)) and image.tag_v2[_SUB_FILE] & 1)
