"""What was loaded and who vouches for it: digest, licence, origin. For every runtime, so without torch."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmbgd.errors import ModelError
from rmbgd.models import licences
from rmbgd.models.checkpoint import CheckpointHeader, sha256_of
from rmbgd.models.store import ORIGIN, StoredModel, resolve


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What was loaded, and what states it: the facts of one event."""

    model: str  # the registry's name, else the path
    path: str
    sha256: str
    sha256_agrees_with: tuple[str, ...]  # the sources that state the same digest; empty: none states one
    verified: bool  # the registry or the operator is among them, not only the record of the first fetch
    licence: str  # SPDX identifier, "unknown" for weights that the registry does not know
    accepted_by: str  # who accepted a licence that restricts use; empty where none is needed
    architecture: str
    backbone: str = ""
    patch_order: str = ""
    patch_order_because: str = ""
    runtime: str  # "torch" or "openvino"
    runtime_version: str
    stored_precision: str  # of the file: "F32", "F16", "BF16", "mixed"
    precision: str  # of the network: "float32", ...
    device: str
    parameters: int
    input_size: tuple[int, int]  # (height, width) in pixels
    filter: str  # brings images to that size
    mapped_bytes: int  # pages of the file, reclaimable and shared with the page cache
    private_bytes: int  # copies: folded, cast, or on a device
    seconds: float  # until the module could compute

    def facts(self) -> dict[str, object]:
        return asdict(self)


class Claim:
    """Weights that are to be loaded: resolved, their licence accepted, their digest computed beside other work.

    sha256  what the file's digest must be, hex, beside what the registry and the record of its fetch state
    Raises ModelError for weights that are not there, or whose licence is not accepted.
    """

    def __init__(self, source: str | os.PathLike[str], models: Path, sha256: str | None) -> None:
        self.model = resolve(source, models)
        self._acceptance = licences.require(self.model.entry, models) if self.model.entry else None
        self._expected = sha256
        self._version = _file_version(self.model.weights)
        self._digest: Future[str] | None = None

    def hash(self) -> None:
        """Begin to read the whole file. It needs every byte and no interpreter, so it runs while the network is warmed
        up; begun earlier, it takes from the building what it gains: both want the memory's bandwidth."""
        hashing = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._digest = hashing.submit(sha256_of, self.model.weights)
        hashing.shutdown(wait=False)

    def provenance(self, header: CheckpointHeader, **facts: Any) -> Provenance:
        """Waits for the digest. Raises ModelError when a source states another one, or the file changed meanwhile."""
        weights, entry = self.model.weights, self.model.entry
        assert self._digest is not None
        try:
            found = self._digest.result()
        except OSError as error:
            raise ModelError(f"{weights}: cannot be read: {error.strerror}") from error
        if _file_version(weights) != self._version:
            raise ModelError(f"{weights}: was replaced or written to while it was read; load it again")
        agreeing = _agreement(self.model, found, self._expected)
        return Provenance(
            model=self.model.name,
            path=str(weights),
            sha256=found,
            sha256_agrees_with=agreeing,
            verified=any(source != ORIGIN for source in agreeing),
            licence=entry.licence if entry else "unknown",
            accepted_by=self._acceptance.accepted_by if self._acceptance else "",
            stored_precision=header.precision,
            parameters=header.parameters,
            input_size=self.model.input_size(),
            filter=self.model.filter().value,
            **facts,
        )


def _file_version(path: Path) -> tuple[int, ...]:
    try:
        facts = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _agreement(model: StoredModel, digest: str, expected: str | None) -> tuple[str, ...]:
    """The sources that state this digest. Raises ModelError when one states another."""
    stated = model.stated_sha256() | ({"the setting": expected.lower()} if expected else {})
    for source, value in stated.items():
        if value != digest:
            raise ModelError(
                f"{model.weights}: sha256 is {digest}, but {source} states {value}: the file was changed or damaged. "
                f"Fetch it again: rmbgd models fetch --again {model.name}"
            )
    return tuple(stated)
