"""Finds and verifies weights on disk, in <models>/<name>/ or any folder or file; without torch, without the network."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmbgd.errors import ModelError
from rmbgd.models import checkpoint, licences
from rmbgd.models.registry import REGISTRY, Architecture, ModelEntry, PatchOrder, lookup
from rmbgd.resampling import Filter

DEFAULT_MODELS = Path("/var/lib/rmbgd/models")
WEIGHTS = "model.safetensors"
AUTHOR_CODE = "birefnet.py"
CONFIG = "config.json"
ORIGIN = "origin.json"  # written by fetch: which model, which revision, which digest
EMBEDDED = Path(__file__).parent / "data" / "u2netp.safetensors"

UNVERIFIED = "no: rmbgd knows no digest of these weights, only what was recorded when they were first fetched"

TEXT_LIMIT = 1 << 20  # bytes of a text beside weights; the author's birefnet.py, the largest published one, has 90 kB


@dataclass(frozen=True)
class StoredModel:
    """One checkpoint on disk. `entry` is None for weights that the registry does not know."""

    weights: Path
    entry: ModelEntry | None
    name: str  # the registry's name, else the path
    origin: dict[str, Any]  # of ORIGIN beside the weights; empty when rmbgd did not fetch them

    def stated_sha256(self) -> dict[str, str]:
        """Who states a digest -> the digest: the registry, and what was verified when the weights were fetched."""
        stated = {"the registry": self.entry.sha256 if self.entry else None, ORIGIN: self.origin.get("sha256")}
        return {source: digest for source, digest in stated.items() if isinstance(digest, str)}

    def backbone(self, header: checkpoint.CheckpointHeader) -> str:
        """Raises ModelError unless every tensor of a published BiRefNet is there."""
        return checkpoint.require_published(header.tensors, self.weights, self.entry.backbone if self.entry else None)

    def patch_order(self, setting: PatchOrder | None = None) -> checkpoint.PatchChoice:
        """The order of image patches, and who states it. Raises ModelError when no source does, or two contradict."""
        saved = read_json(self.weights.with_name(CONFIG)).get("patch_order")
        return checkpoint.choose_patch_order(
            model=self.name,
            registry=self.entry.patch_order if self.entry else None,
            author_code=_small_text(self.weights.with_name(AUTHOR_CODE)),  # read, never run
            saved=PatchOrder(saved) if saved in list(PatchOrder) else None,
            setting=setting,
        )

    def input_size(self) -> tuple[int, int]:
        """(height, width) that the weights are meant for: the registry's, what was saved with them, or 1024x1024."""
        if self.entry:
            return self.entry.input_size
        match read_json(self.weights.with_name(CONFIG)).get("input_size"):
            case [int(height), int(width)] if height > 0 and width > 0 and height % 32 == width % 32 == 0:
                return height, width
        return 1024, 1024

    def filter(self) -> Filter:
        """What brings images to the input size."""
        return self.entry.filter if self.entry else Filter.BILINEAR


def resolve(source: str | os.PathLike[str], models: Path = DEFAULT_MODELS) -> StoredModel:
    """The checkpoint by registry name, which goes before a folder of that name here (write ./name), folder or file.

    Raises ModelError that says what is missing and how to get it, or what cannot be read.
    """
    try:
        return _find(source, models)
    except OSError as error:  # a folder on the way that this user may not enter
        why = f"cannot be read: {error.strerror}; let the user who runs this read it, or name another folder"
        raise ModelError(f"{error.filename}: {why}") from error


def _find(source: str | os.PathLike[str], models: Path) -> StoredModel:
    text = os.fspath(source)
    if text.lower() in REGISTRY:
        return installed(lookup(text), models)
    path = Path(text).expanduser()
    if not path.exists():
        if os.sep in text or path.suffix:
            raise ModelError(f"{path}: no such file or folder")
        lookup(text)  # raises, with the nearest names
    weights = _weights_in(path) if path.is_dir() else path
    checkpoint.refuse_pickle(weights)
    entry, origin = _identify(weights, models)
    return StoredModel(weights, entry, entry.name if entry else str(path), origin)


def installed(entry: ModelEntry, models: Path = DEFAULT_MODELS) -> StoredModel:
    """The weights of a registry model where `fetch` puts them. Raises ModelError when they are not there."""
    if entry.hub_id is None:
        return StoredModel(EMBEDDED, entry, entry.name, {})
    folder = models / entry.name
    if not folder.is_dir():
        raise ModelError(
            f"{entry.name}: no weights in {folder}. Get them with: rmbgd models fetch {entry.name} "
            f"(without a network: rmbgd models fetch {entry.name} --from FOLDER)"
        )
    return StoredModel(_weights_in(folder), entry, entry.name, read_json(folder / ORIGIN))


def _weights_in(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if weights.is_file():
        return weights
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from error
    tensors = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if Path(n).suffix.lower() in checkpoint.PICKLE_SUFFIXES]
    if f"{WEIGHTS}.index.json" in names:
        raise ModelError(f"{folder}: the checkpoint is split over several files; this program reads one {WEIGHTS}")
    if tensors:
        raise ModelError(f"{folder}: no {WEIGHTS} there, but {', '.join(tensors[:5])}: name the file itself")
    if pickles:
        raise ModelError(
            f"{folder}: no {WEIGHTS} there, only pickled weights ({', '.join(pickles[:5])}), which can run code when "
            f"loaded. Convert them once: python {checkpoint.CONVERTER} {folder / pickles[0]} {weights}"
        )
    raise ModelError(f"{folder}: no {WEIGHTS} there")


def _identify(weights: Path, models: Path) -> tuple[ModelEntry | None, dict[str, Any]]:
    """Which registry model a file on disk is, if anything says so: the licence follows the weights, not the path."""
    embedded = REGISTRY["u2netp"]
    with suppress(OSError):  # reading the header will say why it cannot be read
        if weights.resolve() == EMBEDDED.resolve() or (
            weights.stat().st_size == embedded.file_bytes and checkpoint.sha256_of(weights) == embedded.sha256
        ):
            return embedded, {}
    folder = weights.parent.resolve()
    origin = read_json(folder / ORIGIN)
    for entry in REGISTRY.values():
        if _belongs(entry, weights, folder, origin, models):
            return entry, origin
    # The front matter of the model card may name the licence.
    front = re.match(r"\s*---\n(.*?)\n---", _small_text(folder / "README.md") or "", re.DOTALL)
    bria = front and re.search(r"bria-rmbg-2|rmbg-2\.0", front[1], re.IGNORECASE)
    return REGISTRY["rmbg-2.0"] if bria else None, origin


def _belongs(entry: ModelEntry, weights: Path, folder: Path, origin: dict[str, Any], models: Path) -> bool:
    if entry.hub_id is None:
        return False
    if origin:
        return bool(origin.get("model") == entry.name)
    if folder == models.resolve() / entry.name:
        return True
    if f"models--{entry.hub_id.replace('/', '--')}" in folder.parts:  # the cache of huggingface_hub
        return True
    # For a licence that restricts use, weaker signs count too: names that people give to folders and files.
    names = {entry.name, entry.hub_id.rpartition("/")[2].lower()}
    config = read_json(folder / CONFIG)
    saved = config.get("published_as") == entry.name or config.get("_name_or_path") == entry.hub_id
    return entry.needs_consent and (saved or bool(names & {folder.name.lower(), weights.stem.lower()}))


def _small_text(path: Path) -> str | None:
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= TEXT_LIMIT:
            return path.read_text(encoding="utf-8", errors="replace")
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a small file; empty when there is none, or none that can be read."""
    with suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(_small_text(path) or "{}"), dict):
            return value
    return {}


@dataclass
class VerificationReport:
    """What was found. `problems`: the file is not right. `needs`: what the operator has to give before it loads."""

    name: str
    weights: Path
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def verify(
    model: StoredModel, models: Path, bar: checkpoint.ProgressBar, *, sha256: str | None = None
) -> VerificationReport:
    """Whether weights are whole, the published network's, and those that were stated (`sha256`: by the operator)."""
    report = VerificationReport(model.name, model.weights)
    entry = model.entry
    is_birefnet = entry is None or entry.architecture is Architecture.BIREFNET
    try:
        header = checkpoint.read_header(model.weights)
        report.facts |= {"bytes": header.file_bytes, "precision": header.precision}
        if is_birefnet:
            report.facts["backbone"] = model.backbone(header)
        report.facts["parameters"] = header.parameters
        with bar(f"verifying {model.name}", header.file_bytes) as done:
            digest = report.facts["sha256"] = checkpoint.sha256_of(model.weights, done)
    except ModelError as error:
        report.problems.append(str(error))
        return report
    except OSError as error:
        report.problems.append(f"{model.weights}: cannot be read: {error.strerror}")
        return report
    stated = model.stated_sha256() | ({"the operator": sha256} if sha256 else {})
    agreeing = report.facts["sha256_agrees_with"] = [source for source, value in stated.items() if value == digest]
    report.facts["verified"] = "yes" if any(source != ORIGIN for source in agreeing) else UNVERIFIED
    report.problems += [f"sha256 is {digest}, {s} states {value}" for s, value in stated.items() if value != digest]
    if is_birefnet:
        try:
            choice = model.patch_order()
            report.facts |= {"patch_order": choice.order.value, "patch_order_because": choice.reason}
        except ModelError as error:
            report.needs.append(str(error))
    try:
        if entry:
            licences.require(entry, models)
    except ModelError as error:
        report.needs.append(str(error))
    return report
