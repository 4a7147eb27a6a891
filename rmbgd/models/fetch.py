"""Bring published weights into the models directory: from the hub, or from a folder where there is no network.

Only commands call this; the service never does, and loading never imports it. Brings safetensors and small texts, never
a pickle, and runs nothing of what it brings. A model appears in the directory whole and verified, or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rmbgd.errors import ModelError
from rmbgd.fs import make_readable_folder as open_folder
from rmbgd.fs import place_folder, write_json
from rmbgd.models.checkpoint import Bar, read_header, require, sha256_of
from rmbgd.models.registry import ModelEntry
from rmbgd.models.store import AUTHOR_CODE, CONFIG, ORIGIN, WEIGHTS, read_config, read_origin

# Beside the weights, as text: the patch order (birefnet.py), what the author says of sizes, and the licence.
PUBLISHED_CONFIG = "config.published.json"
TEXTS = (CONFIG, PUBLISHED_CONFIG, AUTHOR_CODE, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_TEXT_LIMIT = 1 << 20  # bytes; the largest published one has 90 kB
_SPARE = 64 << 20  # bytes left free on the disk after a fetch


@dataclass(frozen=True)
class Offer:
    """What a source has, known before the first byte of weights is brought."""

    where: str  # for people: the address, or the folder
    revision: str | None  # commit at the hub
    weights_bytes: int
    sha256: str | None  # of the weights, as the source states it
    texts: tuple[str, ...]


class Source(Protocol):
    """Somewhere weights come from. The two kinds: `HubSource`, `FolderSource`."""

    def offer(self, entry: ModelEntry) -> Offer: ...

    def bring(self, entry: ModelEntry, offer: Offer, into: Path, bar: Bar) -> None: ...


@dataclass(frozen=True)
class Fetched:
    folder: Path
    sha256: str
    revision: str | None
    brought: bool  # False: this very version was there already


def fetch(
    entry: ModelEntry,
    source: Source,
    models: Path,
    *,
    now: datetime,
    announce: Callable[[Offer], object],
    bar: Bar,
    again: bool = False,
) -> Fetched:
    """Bring `entry` into <models>/<name>; `announce` is called with size and origin before the download begins.

    `again` brings it even when the same version is there. Interrupted downloads go on where they stopped. Raises
    ModelError: no network, no such revision, no room, weights that are not what the registry or the source says.
    """
    target = models / entry.name
    try:
        offer = source.offer(entry)
        announce(offer)
        present = read_origin(target)
        same = present.get("sha256") in {offer.sha256, entry.sha256} - {None}
        if same and not again and (target / WEIGHTS).is_file():
            return Fetched(target, str(present["sha256"]), offer.revision, brought=False)
        staged = models / f".fetching-{entry.name}"
        open_folder(models)
        open_folder(staged)
        with _alone(staged, entry):
            _forget_strangers(staged, offer)
            _check_room(staged, offer)
            source.bring(entry, offer, staged, bar)
            digest = _verified(entry, offer, staged, bar)
            _write_config(entry, staged)
            _write_origin(entry, offer, staged, digest, now)
            shutil.rmtree(staged / ".cache", ignore_errors=True)  # the hub client's notes on the download
            place_folder(staged, target)
    except OSError as error:
        raise ModelError(f"{entry.name}: cannot be placed in {models}: {error.strerror or error}") from error
    return Fetched(target, digest, offer.revision, brought=True)


class FolderSource:
    """A folder that somebody carried here: the weights in it, or in <folder>/<name>/ as a models directory has them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _of(self, entry: ModelEntry) -> Path:
        below = self._folder / entry.name
        folder = below if (below / WEIGHTS).is_file() else self._folder
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"{self._folder}: neither {WEIGHTS} nor {entry.name}/{WEIGHTS} is in this folder")
        return folder

    def offer(self, entry: ModelEntry) -> Offer:
        folder = self._of(entry)
        known = read_origin(folder)
        if known.get("model", entry.name) != entry.name:
            raise ModelError(f"{folder}: holds {known['model']}, not {entry.name}")
        texts = tuple(n for n in TEXTS if (folder / n).is_file() and (folder / n).stat().st_size <= _TEXT_LIMIT)
        size = (folder / WEIGHTS).stat().st_size
        return Offer(str(folder), known.get("revision"), size, known.get("sha256"), texts)

    def bring(self, entry: ModelEntry, offer: Offer, into: Path, bar: Bar) -> None:
        folder = self._of(entry)
        _check_fit(entry, folder / WEIGHTS)  # before copying a gigabyte
        for name in offer.texts:
            shutil.copyfile(folder / name, into / name)
        with bar(f"copying {entry.name}", offer.weights_bytes) as done:
            _copy(folder / WEIGHTS, into / WEIGHTS, done)


def _copy(source: Path, target: Path, done: Callable[[int], object]) -> None:
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        while sent := os.sendfile(write.fileno(), read.fileno(), None, 16 << 20):
            done(sent)


def _forget_strangers(staged: Path, offer: Offer) -> None:
    """Take away what an interrupted fetch of another version left: its birefnet.py would speak for these weights."""
    for path in staged.iterdir():
        if path.is_file() and path.name not in {WEIGHTS, *offer.texts}:
            path.unlink()


def _check_room(staged: Path, offer: Offer) -> None:
    here = sum(p.stat().st_size for p in staged.rglob("*") if p.is_file())  # an interrupted download goes on
    needed = offer.weights_bytes - here + _SPARE
    free = shutil.disk_usage(staged).free
    if free < needed:
        raise ModelError(f"{staged.parent}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")


def _verified(entry: ModelEntry, offer: Offer, staged: Path, bar: Bar) -> str:
    """The digest of the staged weights, once they are whole, fit the network and are those that were stated.

    What fails is deleted: going on with a wrong download would fail for ever.
    """
    weights = staged / WEIGHTS
    try:
        _check_fit(entry, weights)
        with bar(f"verifying {entry.name}", weights.stat().st_size) as done:
            digest = sha256_of(weights, done)
        _compare(entry, digest, {"the registry": entry.sha256, offer.where: offer.sha256})
    except ModelError:
        shutil.rmtree(staged)
        raise
    return digest


def _check_fit(entry: ModelEntry, weights: Path) -> None:
    header = read_header(weights)
    if entry.backbone:
        require(header.tensors, weights, entry.backbone)


def _compare(entry: ModelEntry, digest: str, stated: dict[str, str | None]) -> None:
    for voice, expected in stated.items():
        if expected and expected != digest:
            raise ModelError(f"{entry.name}: sha256 is {digest}, but {voice} states {expected}; fetch it again")


def _write_config(entry: ModelEntry, staged: Path) -> None:
    """A config.json with which transformers opens the folder without remote code (`interop.py`).

    The published one names the author's code instead; it is kept beside. One that rmbgd saved stays as it is.
    """
    config = staged / CONFIG
    if read_config(staged).get("model_type") == "birefnet":
        return
    if config.exists():
        config.rename(staged / PUBLISHED_CONFIG)
    facts = {"model_type": "birefnet", "backbone": entry.backbone, "input_size": list(entry.input_size)}
    write_json(config, {"architectures": ["BiRefNetForImageSegmentation"], **facts, "published_as": entry.name})


def _write_origin(entry: ModelEntry, offer: Offer, staged: Path, digest: str, now: datetime) -> None:
    for path in staged.iterdir():
        if path.is_file():
            path.chmod(0o644)  # text, whatever it was; readable for the service
    write_json(
        staged / ORIGIN,
        {
            "model": entry.name,
            "hub_id": entry.hub_id,
            "licence": entry.licence,
            "revision": offer.revision,
            "sha256": digest,
            "bytes": offer.weights_bytes,
            "placed_from": offer.where,
            "placed_at": now.isoformat(timespec="seconds"),
        },
    )


@contextlib.contextmanager
def _alone(staged: Path, entry: ModelEntry) -> Iterator[None]:
    """One fetch of a model at a time: a lock on the staging folder, gone with the process or the folder."""
    descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ModelError(f"{entry.name}: another fetch of it is running") from None
    try:
        if not os.path.samestat(os.fstat(descriptor), staged.stat()):
            raise ModelError(f"{entry.name}: another fetch of it has just ended")
        yield
    finally:
        os.close(descriptor)
