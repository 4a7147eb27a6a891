"""The Hugging Face hub as a source of weights: what it has, and downloading it with huggingface_hub."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

import rmbgd
from rmbgd.errors import ModelError
from rmbgd.models.checkpoint import Bar
from rmbgd.models.fetch import TEXTS, Offer
from rmbgd.models.registry import ModelEntry
from rmbgd.models.store import WEIGHTS

# Of httpx in huggingface_hub 1.x, of httpx2 in 2.x; the hub's own errors derive from it.
_HTTPError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
_TIMEOUT = 20.0  # seconds for the first answer; below a person's patience, above a slow proxy's


class HubSource:
    """Weights at the hub. `revision`: a commit, tag or branch instead of the registry's or the newest."""

    def __init__(self, revision: str | None = None, endpoint: str | None = None) -> None:
        self._revision = revision
        self._api = huggingface_hub.HfApi(endpoint=endpoint, library_name="rmbgd", library_version=rmbgd.__version__)

    def offer(self, entry: ModelEntry) -> Offer:
        """What the hub states of the weights, pinned to a commit. Raises ModelError in one line."""
        if entry.hub_id is None:
            raise ModelError(f"{entry.name} ships inside the package; there is nothing to fetch")
        revision = self._revision or entry.revision
        try:
            facts = self._api.model_info(entry.hub_id, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        except (_HTTPError, errors.HFValidationError, OSError) as error:
            raise _in_one_line(error, entry, revision) from error
        files = {f.rfilename: f for f in facts.siblings or ()}
        weights = files.get(WEIGHTS)
        if weights is None:
            raise ModelError(
                f"{entry.name}: {entry.hub_id} at {revision or 'its newest revision'} has no {WEIGHTS}; "
                "name another one with --revision"
            )
        texts = tuple(n for n in TEXTS if n in files)
        sha256 = weights.lfs.sha256 if weights.lfs else None
        address = f"{self._api.endpoint}/{entry.hub_id}"
        return Offer(address, facts.sha, weights.size or entry.file_bytes, sha256, texts)

    def bring(self, entry: ModelEntry, offer: Offer, into: Path, bar: Bar) -> None:
        """Download the named files of the pinned commit; huggingface_hub shows its own progress and resumes."""
        del bar
        for name in (*offer.texts, WEIGHTS):
            try:
                self._api.hf_hub_download(str(entry.hub_id), name, revision=offer.revision, local_dir=into)
            except (_HTTPError, errors.XetDownloadError, OSError) as error:
                if isinstance(error, OSError) and error.errno and error.filename:  # the disk, not the network
                    raise
                raise _in_one_line(error, entry, offer.revision) from error


def _in_one_line(error: Exception, entry: ModelEntry, revision: str | None) -> ModelError:
    """What went wrong with the hub, and what to do, as one line."""
    page = f"https://huggingface.co/{entry.hub_id}"
    offline = "on a machine with network fetch it, carry the folder here, and use --from FOLDER"
    if isinstance(error, errors.GatedRepoError):
        text = f"the hub wants you to accept the terms at {page} and to log in first (hf auth login, or HF_TOKEN)"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"{page} has no revision {revision}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = f"{page} is not there, or is private and you are not logged in"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        text = f"HF_HUB_OFFLINE forbids the network; unset it, or {offline}"
    elif isinstance(error, errors.HfHubHTTPError):
        text = f"the hub refused: {_first_line(error)}"
    else:
        text = f"no network, or the hub cannot be reached ({_first_line(error)}); {offline}"
    return ModelError(f"{entry.name}: {text}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno and not lines else text
