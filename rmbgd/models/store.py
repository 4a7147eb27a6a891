"""Where weights lie: <models>/<name>/model.safetensors, or any folder or file the operator names.

Finds the file and what lies beside it; does not judge its tensors, and never goes to the network.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmbgd.errors import ModelError
from rmbgd.models import checkpoint as patches
from rmbgd.models import licences as consent
from rmbgd.models.checkpoint import CONVERTER, PICKLE_SUFFIXES, Bar, read_header, refuse_pickle, require, sha256_of
from rmbgd.models.registry import REGISTRY, Architecture, ModelEntry, PatchOrder, lookup

DEFAULT_MODELS = Path("/var/lib/rmbgd/models")
WEIGHTS = "model.safetensors"
AUTHOR_CODE = "birefnet.py"
CONFIG = "config.json"
ORIGIN = "origin.json"  # written by fetch: which model, which revision, which digest
EMBEDDED = Path(__file__).parent / "data" / "u2netp.safetensors"

_TEXT_LIMIT = 1 << 20  # the author's birefnet.py has 90 kB


@dataclass(frozen=True)
class Place:
    """One checkpoint on disk. `entry` is None for weights that the registry does not know."""

    weights: Path
    entry: ModelEntry | None
    called: str  # what the log calls it
    origin: dict[str, Any]  # of ORIGIN beside the weights; empty when they were not fetched by rmbgd

    def stated_sha256(self) -> dict[str, str]:
        """Who states a digest -> the digest: the registry, and what was verified when the weights were fetched."""
        voices = {"the registry": self.entry.sha256 if self.entry else None, ORIGIN: self.origin.get("sha256")}
        return {voice: value for voice, value in voices.items() if isinstance(value, str)}

    def author_code(self) -> str | None:
        """Text of the author's birefnet.py beside the weights, None where there is none. Text only; nobody runs it."""
        return _small_text(self.weights.with_name(AUTHOR_CODE))

    def input_size(self) -> tuple[int, int]:
        """(height, width) that the weights are meant for: the registry's, what was saved with them, or 1024x1024."""
        if self.entry:
            return self.entry.input_size
        saved = _json(self.weights.with_name(CONFIG)).get("input_size")
        match saved:
            case [int(height), int(width)] if height > 0 and width > 0 and height % 32 == width % 32 == 0:
                return height, width
        return 1024, 1024

    def saved_patch_order(self) -> PatchOrder | None:
        """What rmbgd wrote into config.json when it saved these weights."""
        value = _json(self.weights.with_name(CONFIG)).get("patch_order")
        return PatchOrder(value) if value in set(PatchOrder) else None


def resolve(source: str | os.PathLike[str], models: Path = DEFAULT_MODELS) -> Place:
    """A registry name, a folder or a file -> the checkpoint.

    A name that is also a folder here means the registry's model; write ./name for the folder. Raises ModelError that
    says what is missing and how to get it.
    """
    text = os.fspath(source)
    if text.lower() in REGISTRY:
        return installed(lookup(text), models)
    path = Path(text).expanduser()
    if not path.exists():
        if os.sep in text or path.suffix:
            raise ModelError(f"{path}: no such file or folder")
        lookup(text)  # raises, with the nearest names
    weights = _weights_in(path) if path.is_dir() else path
    refuse_pickle(weights)
    entry, origin = _identify(weights, models)
    return Place(weights, entry, entry.name if entry else str(path), origin)


def installed(entry: ModelEntry, models: Path = DEFAULT_MODELS) -> Place:
    """The weights of a registry model where `fetch` puts them. Raises ModelError when they are not there."""
    if entry.hub_id is None:
        return Place(EMBEDDED, entry, entry.name, {})
    folder = models / entry.name
    if not folder.is_dir():
        raise ModelError(
            f"{entry.name}: no weights in {folder}. Get them with: rmbgd models fetch {entry.name} "
            f"(without a network: rmbgd models fetch {entry.name} --from FOLDER)"
        )
    weights = _weights_in(folder)
    return Place(weights, entry, entry.name, read_origin(folder))


def read_origin(folder: Path) -> dict[str, Any]:
    """What fetch wrote beside the weights of a folder; empty when it did not bring them."""
    return _json(folder / ORIGIN)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json beside the weights; empty when there is none, or none that can be read."""
    return _json(folder / CONFIG)


def _weights_in(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if weights.is_file():
        return weights
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from error
    tensors = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if Path(n).suffix.lower() in PICKLE_SUFFIXES]
    if f"{WEIGHTS}.index.json" in names:
        raise ModelError(f"{folder}: the checkpoint is split over several files; this program reads one {WEIGHTS}")
    if tensors:
        raise ModelError(f"{folder}: no {WEIGHTS} there, but {', '.join(tensors[:5])}: name the file itself")
    if pickles:
        raise ModelError(
            f"{folder}: no {WEIGHTS} there, only pickled weights ({', '.join(pickles[:5])}), which can run code when "
            f"loaded. Convert them once: python {CONVERTER} {folder / pickles[0]} {weights}"
        )
    raise ModelError(f"{folder}: no {WEIGHTS} there")


def _identify(weights: Path, models: Path) -> tuple[ModelEntry | None, dict[str, Any]]:
    """Which registry model a file on disk is, if anything says so: the licence follows the weights, not the path."""
    if _is_embedded(weights):
        return REGISTRY["u2netp"], {}
    folder = weights.parent.resolve()
    origin = read_origin(folder)
    for entry in REGISTRY.values():
        if _belongs(entry, weights, folder, origin, models):
            return entry, origin
    return _by_model_card(folder), origin


def _is_embedded(weights: Path) -> bool:
    """The weights of the package, or a copy of them under whatever name."""
    try:
        return weights.resolve() == EMBEDDED.resolve() or (
            weights.stat().st_size == EMBEDDED.stat().st_size and sha256_of(weights) == sha256_of(EMBEDDED)
        )
    except OSError:
        return False  # whoever reads it will say why it cannot be read


def _belongs(entry: ModelEntry, weights: Path, folder: Path, origin: dict[str, Any], models: Path) -> bool:
    if entry.hub_id is None:
        return False
    if origin:
        return bool(origin.get("model") == entry.name)
    if folder == models.resolve() / entry.name:
        return True
    if f"models--{entry.hub_id.replace('/', '--')}" in folder.parts:  # the cache of huggingface_hub
        return True
    # A licence that binds is looked for with weaker signs too: names that people give to folders and files.
    names = {entry.name, entry.hub_id.rpartition("/")[2].lower()}
    said = {folder.name.lower(), weights.stem.lower()}
    config = _json(folder / CONFIG)
    saved = config.get("published_as") == entry.name or config.get("_name_or_path") == entry.hub_id
    return entry.needs_consent and (saved or bool(names & said))


def _by_model_card(folder: Path) -> ModelEntry | None:
    """A non-commercial entry whose licence the model card (README.md's front matter) names."""
    card = _small_text(folder / "README.md") or ""
    front = re.match(r"\s*---\n(.*?)\n---", card, re.DOTALL)
    if front and re.search(r"bria-rmbg-2|rmbg-2\.0", front.group(1), re.IGNORECASE):
        return REGISTRY["rmbg-2.0"]
    return None


def _small_text(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > _TEXT_LIMIT:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_small_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


# Whether weights on this disk are whole, the published network's, and the very ones that were stated. Without torch.


@dataclass
class Report:
    """What was found. `problems`: the file is not right. `needs`: what the operator has to give before it loads."""

    name: str
    weights: Path
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def verify(place: Place, models: Path, bar: Bar, *, sha256: str | None = None) -> Report:
    """Read the whole file once and judge it. `sha256`: what the operator expects, beside what is on record."""
    report = Report(place.called, place.weights)
    entry = place.entry
    is_birefnet = entry is None or entry.architecture is Architecture.BIREFNET
    try:
        header = read_header(place.weights)
        report.facts |= {"bytes": header.file_bytes, "precision": header.precision}
        if is_birefnet:
            report.facts["backbone"] = require(header.tensors, place.weights, entry.backbone if entry else None)
        report.facts["parameters"] = sum(t.elements for t in header.tensors.values() if t.floating)
        with bar(f"verifying {place.called}", header.file_bytes) as done:
            digest = report.facts["sha256"] = sha256_of(place.weights, done)
    except ModelError as error:
        report.problems.append(str(error))
        return report
    except OSError as error:
        report.problems.append(f"{place.weights}: cannot be read: {error.strerror}")
        return report
    stated = place.stated_sha256() | ({"the operator": sha256} if sha256 else {})
    report.facts["sha256_agrees_with"] = [voice for voice, value in stated.items() if value == digest]
    report.problems += [f"sha256 is {digest}, {v} states {value}" for v, value in stated.items() if value != digest]
    if is_birefnet:
        _patch_order(place, report)
    if entry:
        try:
            consent.require(entry, models)
        except ModelError as error:
            report.needs.append(str(error))
    return report


def _patch_order(place: Place, report: Report) -> None:
    registry = place.entry.patch_order if place.entry else None
    code, saved = place.author_code(), place.saved_patch_order()
    try:
        choice = patches.choose(model=place.called, registry=registry, author_code=code, saved=saved)
    except ModelError as error:
        report.needs.append(str(error))
    else:
        report.facts |= {"patch_order": choice.order.value, "patch_order_because": choice.reason}
