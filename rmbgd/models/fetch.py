"""Fetches published weights into the models directory: from Hugging Face or a folder.

For commands only; the service and the loader never import it. Never fetches a pickle, and runs nothing of what it
fetches. A model appears in the directory whole and verified, or not at all.
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
from typing import Any

import rmbgd
from rmbgd.errors import ModelError, explain, missing_extra
from rmbgd.fs import make_readable_folder, place_folder, write_json
from rmbgd.models.checkpoint import CONVERTER, ProgressBar, read_header, require_published, sha256_of
from rmbgd.models.registry import ModelEntry
from rmbgd.models.store import AUTHOR_CODE, CONFIG, ORIGIN, TEXT_LIMIT, WEIGHTS, read_json

# Beside the weights, as text: the patch order (birefnet.py), what the author says of sizes, and the licence.
PUBLISHED_CONFIG = "config.published.json"
TEXTS = (CONFIG, PUBLISHED_CONFIG, AUTHOR_CODE, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_SPARE = 64 << 20  # bytes left free on the disk after a fetch
_TIMEOUT = 20.0  # seconds for the hub's first answer; below a person's patience, above a slow proxy's


@dataclass(frozen=True)
class Offer:
    """What a source has, known before the first byte of weights is fetched."""

    where: str  # for people: the address, or the folder
    revision: str | None  # commit at the hub
    weights_bytes: int
    sha256: str | None  # of the weights, as the source states it
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Fetched:
    folder: Path
    sha256: str
    brought: bool  # False: this very version was there already


def fetch(
    entry: ModelEntry,
    source: HubSource | FolderSource,
    models: Path,
    *,
    now: datetime,
    announce: Callable[[Offer], object],
    bar: ProgressBar,
    again: bool = False,
) -> Fetched:
    """Fetch `entry` into <models>/<name>; resumes interrupted downloads. `announce` is called before the download.

    Raises ModelError: no network, no such revision, no space, weights that are not what the registry or source says.
    """
    target = models / entry.name
    try:
        offer = source.offer(entry)
        announce(offer)
        present = read_json(target / ORIGIN)
        same = present.get("sha256") in [digest for digest in (offer.sha256, entry.sha256) if digest]
        if same and not again and (target / WEIGHTS).is_file():
            return Fetched(target, str(present["sha256"]), brought=False)
        staged = models / f".fetching-{entry.name}"
        make_readable_folder(models)
        make_readable_folder(staged)
        with _locked(staged, entry):
            for path in staged.iterdir():  # left by another version's interrupted fetch: its birefnet.py would decide
                if path.is_file() and path.name not in {WEIGHTS, *offer.texts}:
                    path.unlink()
            _check_space(staged, offer)
            source.bring(entry, offer, staged, bar)
            try:
                digest = _verified(entry, offer, present, staged / WEIGHTS, bar)
            except ModelError:
                shutil.rmtree(staged)  # resuming a wrong download would fail for ever
                raise
            _write_config(entry, staged)
            _write_origin(entry, offer, staged, digest, now)
            shutil.rmtree(staged / ".cache", ignore_errors=True)  # the hub client's notes on the download
            place_folder(staged, target)
    except OSError as error:
        raise ModelError(f"{entry.name}: cannot be placed in {models}: {explain(error)}") from error
    return Fetched(target, digest, brought=True)


class FolderSource:
    """A folder carried here: the weights in it, or in <folder>/<name>/ as a models directory has them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def offer(self, entry: ModelEntry) -> Offer:
        below = self._folder / entry.name
        folder = below if (below / WEIGHTS).is_file() else self._folder
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"{self._folder}: neither {WEIGHTS} nor {entry.name}/{WEIGHTS} is in this folder")
        known = read_json(folder / ORIGIN)
        if known.get("model", entry.name) != entry.name:
            raise ModelError(f"{folder}: holds {known['model']}, not {entry.name}")
        texts = tuple(n for n in TEXTS if (folder / n).is_file() and (folder / n).stat().st_size <= TEXT_LIMIT)
        size = (folder / WEIGHTS).stat().st_size
        return Offer(str(folder), known.get("revision"), size, known.get("sha256"), texts)

    def bring(self, entry: ModelEntry, offer: Offer, into: Path, bar: ProgressBar) -> None:
        folder = Path(offer.where)
        _check_fit(entry, folder / WEIGHTS)  # before copying a gigabyte
        for name in offer.texts:
            shutil.copyfile(folder / name, into / name)
        with (
            bar(f"copying {entry.name}", offer.weights_bytes) as done,
            (folder / WEIGHTS).open("rb", buffering=0) as read,
            (into / WEIGHTS).open("wb", buffering=0) as write,
        ):
            while sent := os.sendfile(write.fileno(), read.fileno(), None, 16 << 20):
                done(sent)


class HubSource:
    """Weights at the hub. `revision`: a commit, tag or branch instead of the registry's or the newest."""

    def __init__(self, revision: str | None = None, endpoint: str | None = None) -> None:
        """Raises ConfigError where huggingface_hub is not installed."""
        try:
            from huggingface_hub import HfApi, errors
        except ImportError as error:
            raise missing_extra("huggingface_hub", "fetch", "models fetch") from error
        self._revision = revision
        self._api = HfApi(endpoint=endpoint, library_name="rmbgd", library_version=rmbgd.__version__)
        # HTTPError is of httpx in huggingface_hub 1.x, of httpx2 in 2.x; the hub's own errors derive from it.
        http: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
        self._faults = (http, errors.XetDownloadError, errors.HFValidationError, OSError)

    def offer(self, entry: ModelEntry) -> Offer:
        """What the hub states of the weights, pinned to a commit. Raises ModelError."""
        if entry.hub_id is None:
            raise ModelError(f"{entry.name} ships inside the package; there is nothing to fetch")
        revision = self._revision or entry.revision
        try:
            facts = self._api.model_info(entry.hub_id, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        except self._faults as error:
            raise _hub_error(error, entry, revision) from error
        files = {f.rfilename: f for f in facts.siblings or ()}
        weights = files.get(WEIGHTS)
        if weights is None and entry.pickle in files:
            raise ModelError(
                f"{entry.name}: {entry.hub_id} has {entry.pickle} only, a pickle, which can run code when loaded: "
                f"rmbgd does not fetch it. Download it, convert it once (python {CONVERTER} {entry.pickle} "
                f"FOLDER/{WEIGHTS}), then: rmbgd models fetch {entry.name} --from FOLDER"
            )
        if weights is None:
            raise ModelError(
                f"{entry.name}: {entry.hub_id} at {revision or 'its newest revision'} has no {WEIGHTS}; "
                "name another one with --revision"
            )
        texts = tuple(n for n in TEXTS if n in files)
        sha256 = weights.lfs.sha256 if weights.lfs else None
        address = f"{self._api.endpoint}/{entry.hub_id}"
        return Offer(address, facts.sha, weights.size or entry.file_bytes, sha256, texts)

    def bring(self, entry: ModelEntry, offer: Offer, into: Path, bar: ProgressBar) -> None:
        """Download the named files of the pinned commit; huggingface_hub shows its own progress and resumes."""
        del bar
        for name in (*offer.texts, WEIGHTS):
            try:
                self._api.hf_hub_download(str(entry.hub_id), name, revision=offer.revision, local_dir=into)
            except self._faults as error:
                if isinstance(error, OSError) and error.errno and error.filename:  # the disk, not the network
                    raise
                raise _hub_error(error, entry, offer.revision) from error


def _hub_error(error: Exception, entry: ModelEntry, revision: str | None) -> ModelError:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{entry.hub_id}"
    offline = "on a machine with network fetch it, carry the folder here, and use --from FOLDER"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    texts: dict[type[Exception], str] = {
        errors.GatedRepoError: f"the hub wants you to accept the terms at {page} and to log in first "
        "(hf auth login, or HF_TOKEN)",
        errors.RevisionNotFoundError: f"{page} has no revision {revision}",
        errors.RepositoryNotFoundError: f"{page} is not there, or is private and you are not logged in",
        errors.OfflineModeIsEnabled: f"HF_HUB_OFFLINE forbids the network; unset it, or {offline}",
        errors.HfHubHTTPError: f"the hub refused: {said}",
        Exception: f"no network, or the hub cannot be reached ({said}); {offline}",
    }
    return ModelError(f"{entry.name}: {next(text for kind, text in texts.items() if isinstance(error, kind))}")


def _check_space(staged: Path, offer: Offer) -> None:
    here = sum(p.stat().st_size for p in staged.rglob("*") if p.is_file())  # an interrupted download is resumed
    needed = offer.weights_bytes - here + _SPARE
    free = shutil.disk_usage(staged).free
    if free < needed:
        raise ModelError(f"{staged.parent}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")


def _verified(entry: ModelEntry, offer: Offer, present: dict[str, Any], weights: Path, bar: ProgressBar) -> str:
    """The digest of the staged weights, once they are whole, fit the network and are those that were stated.

    What the first fetch of a commit recorded (`present`: of ORIGIN) holds for every later one of that commit.
    """
    _check_fit(entry, weights)
    with bar(f"verifying {entry.name}", weights.stat().st_size) as done:
        digest = sha256_of(weights, done)
    first = present.get("sha256") if offer.revision and offer.revision == present.get("revision") else None
    stated = {"the registry": entry.sha256, offer.where: offer.sha256, "the first fetch of this commit": first}
    for source, expected in stated.items():
        if expected and expected != digest:
            raise ModelError(f"{entry.name}: sha256 is {digest}, but {source} states {expected}; fetch it again")
    return digest


def _check_fit(entry: ModelEntry, weights: Path) -> None:
    header = read_header(weights)
    if entry.backbone:
        require_published(header.tensors, weights, entry.backbone)


def _write_config(entry: ModelEntry, staged: Path) -> None:
    """A config.json with which transformers opens the folder without remote code (`hf.py`); the published one, which
    names the author's code, is kept beside."""
    config = staged / CONFIG
    if read_json(config).get("model_type") == "birefnet":
        return  # saved by rmbgd
    if config.exists():
        config.rename(staged / PUBLISHED_CONFIG)
    facts = {"model_type": "birefnet", "backbone": entry.backbone, "input_size": list(entry.input_size)}
    write_json(config, {"architectures": ["BiRefNetForImageSegmentation"], **facts, "published_as": entry.name})


def _write_origin(entry: ModelEntry, offer: Offer, staged: Path, digest: str, now: datetime) -> None:
    for path in staged.iterdir():
        if path.is_file():
            path.chmod(0o644)  # text, not executable; readable for the service
    model = {"model": entry.name, "hub_id": entry.hub_id, "licence": entry.licence}
    weights = {"revision": offer.revision, "sha256": digest, "bytes": offer.weights_bytes}
    placed = {"placed_from": offer.where, "placed_at": now.isoformat(timespec="seconds")}
    write_json(staged / ORIGIN, model | weights | placed)


@contextlib.contextmanager
def _locked(staged: Path, entry: ModelEntry) -> Iterator[None]:
    """A lock on the staging folder, released with the process or the folder."""
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
