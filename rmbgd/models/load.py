"""From a name, a folder or a file to a network that is ready: checked, mapped, folded, on its device, with provenance.

The one path by which weights are loaded. Never goes to the network, never unpickles, never runs code that lies beside
weights, and writes no events: what was loaded and why is returned, for whoever does.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rmbgd.errors import ModelError
from rmbgd.models import checkpoint as patches
from rmbgd.models import licences as consent
from rmbgd.models.checkpoint import BACKBONES, Header, read_header, require, sha256_of
from rmbgd.models.convert import BiRefNetConfig, assemble
from rmbgd.models.registry import Architecture, PatchOrder
from rmbgd.models.store import DEFAULT_MODELS, Place, resolve
from rmbgd.models.u2net import build_u2netp

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """What was loaded, and how we know: the facts of one log line.

    Sizes are bytes; `input_size` is (height, width) in pixels. `mapped_bytes` of the network's tensors are pages of the
    file, reclaimable and shared with the page cache; `private_bytes` are copies (folded, cast, or on a device).
    """

    model: str  # the registry's name, else the path
    path: str
    sha256: str
    sha256_agrees_with: tuple[str, ...]  # who stated the same digest; empty: nobody stated one
    licence: str  # SPDX identifier, "unknown" for weights that the registry does not know
    accepted_by: str  # who accepted a licence that restricts use; empty where none is needed
    architecture: str
    backbone: str
    patch_order: str
    patch_order_because: str
    stored_precision: str  # of the file: "F32", "F16", "BF16", "mixed"
    precision: str  # of the network: "float32", ...
    device: str
    parameters: int
    input_size: tuple[int, int]
    mapped_bytes: int
    private_bytes: int
    seconds: float  # until the module could compute

    def facts(self) -> dict[str, object]:
        """As JSON takes it."""
        return asdict(self)


class LoadedModel:
    """`module` maps normalised images [B,3,H,W] to logits [B,1,H,W]; alpha = sigmoid(logits).

    `input_size` is the (height, width) that the weights are meant for, known without waiting for the digest.
    """

    def __init__(self, module: nn.Module, input_size: tuple[int, int], settle: Callable[[], Provenance]) -> None:
        self.module = module
        self.input_size = input_size
        self._settle = settle

    @cached_property
    def provenance(self) -> Provenance:
        """What was loaded. Waits for the file's digest, which is computed meanwhile.

        Raises ModelError when somebody stated another digest. Until this has returned, what the module computes comes
        from weights that nobody has checked.
        """
        return self._settle()


def load(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    models: Path = DEFAULT_MODELS,
    patch_order: PatchOrder | str | None = None,
    sha256: str | None = None,
) -> nn.Module:
    """The module of `load_model`, its digest checked; for those who do not log."""
    loaded = load_model(source, device=device, dtype=dtype, models=models, patch_order=patch_order, sha256=sha256)
    logger.info("loaded %s", loaded.provenance.facts())
    return loaded.module


def load_model(
    source: str | os.PathLike[str],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    models: Path = DEFAULT_MODELS,
    patch_order: PatchOrder | str | None = None,
    sha256: str | None = None,
) -> LoadedModel:
    """A network in eval mode, without gradients, on `device` in `dtype`, with what is known of its weights.

    source       a name of the registry (below `models`), a folder with model.safetensors, or a safetensors file
    patch_order  the operator's setting, for weights that say nothing themselves; None or "auto": not set
    sha256       what the file's digest must be, hex, beside what the registry and the record of its fetch state

    Returns as soon as the module can compute; read `.provenance` before anything it computed is used. An engine
    warms up in between, so the digest costs no time.

    Raises ModelError, an operator's error, in one line that says what is wrong and what to do: weights that are not
    there, damaged, pickled, of another network or digest, whose licence nobody accepted, whose patch order is unknown.
    """
    started = time.monotonic()
    place = resolve(source, models)
    record = consent.require(place.entry, models) if place.entry else None
    seen = _identity(place.weights)
    with _no_collecting():
        header = read_header(place.weights)
        built = _build(place, header, torch.device(device), dtype, _order(patch_order))
    seconds = round(time.monotonic() - started, 3)
    # The digest needs every byte and no interpreter: it is computed while the network is warmed up. Begun earlier, it
    # takes from the building what it gains: both want the memory's bandwidth.
    hashing = ThreadPoolExecutor(1, thread_name_prefix="sha256")
    digest = hashing.submit(_digest, place)
    hashing.shutdown(wait=False)

    def settle() -> Provenance:
        digest.result()
        if _identity(place.weights) != seen:
            raise ModelError(f"{place.weights}: was replaced or written to while it was read; load it again")
        tensors = [*built.module.parameters(), *built.module.buffers()]
        mapped = sum(t.nbytes for t in tensors if t.data_ptr() in built.mapped)
        return Provenance(
            model=place.called,
            path=str(place.weights),
            sha256=digest.result(),
            sha256_agrees_with=_agreement(place, digest.result(), sha256),
            licence=place.entry.licence if place.entry else "unknown",
            accepted_by=record.accepted_by if record else "",
            architecture=built.architecture.value,
            backbone=built.backbone,
            patch_order=built.choice.order.value if built.choice else "",
            patch_order_because=built.choice.reason if built.choice else "",
            stored_precision=header.precision,
            precision=str(dtype).removeprefix("torch."),
            device=str(device),
            parameters=sum(t.elements for t in header.tensors.values() if t.floating),
            input_size=place.input_size(),
            mapped_bytes=mapped,
            private_bytes=sum(t.nbytes for t in tensors) - mapped,
            seconds=seconds,
        )

    return LoadedModel(built.module, place.input_size(), settle)


@dataclass(frozen=True)
class _Built:
    module: nn.Module
    architecture: Architecture
    backbone: str
    choice: patches.PatchChoice | None
    mapped: frozenset[int]  # addresses inside the mapped file


def _build(
    place: Place, header: Header, device: torch.device, dtype: torch.dtype, setting: PatchOrder | None
) -> _Built:
    entry = place.entry
    if entry and entry.architecture is Architecture.U2NETP:
        return _Built(build_u2netp(device=device, dtype=dtype), entry.architecture, "", None, frozenset())
    backbone = require(header.tensors, place.weights, entry.backbone if entry else None)
    choice = patches.choose(
        model=place.called,
        registry=entry.patch_order if entry else None,
        author_code=place.author_code(),
        saved=place.saved_patch_order(),
        setting=setting,
    )
    get, mapped = _mapped(place.weights)
    config = BiRefNetConfig(BACKBONES[backbone], choice.order)
    module = assemble(config, get, device=device, dtype=dtype)
    return _Built(module, Architecture.BIREFNET, backbone, choice, frozenset(mapped))


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Without the cyclic garbage collector: a network makes no garbage and enough objects to set off a full pass over
    everything that was imported, which took as long as building it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _mapped(weights: Path) -> tuple[Callable[[str], Tensor], set[int]]:
    """A function that gives tensors of a mapped file without reading them, and the addresses of those it gave.

    The mapping lives as long as a tensor of it does. Whoever replaces the file must put another in its place, as
    `fetch` does: a mapped file that is cut short kills its readers.
    """
    try:
        file = safe_open(weights, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ModelError(f"{weights}: damaged: {error}. Fetch or copy it again") from error
    given: set[int] = set()

    def get(name: str) -> Tensor:
        tensor: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
        given.add(tensor.data_ptr())
        return tensor

    return get, given


def _identity(path: Path) -> tuple[int, ...]:
    """What stays the same while a file is the same file with the same content."""
    try:
        facts = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _digest(place: Place) -> str:
    try:
        return sha256_of(place.weights)
    except OSError as error:
        raise ModelError(f"{place.weights}: cannot be read: {error.strerror}") from error


def _agreement(place: Place, digest: str, expected: str | None) -> tuple[str, ...]:
    """Who stated this digest. Raises ModelError when somebody stated another."""
    stated = place.stated_sha256() | ({"the setting": expected.lower()} if expected else {})
    for voice, value in stated.items():
        if value != digest:
            raise ModelError(
                f"{place.weights}: sha256 is {digest}, but {voice} states {value}: the file was changed or damaged. "
                f"Bring it again: rmbgd models fetch --again {place.called}"
            )
    return tuple(stated)


def _order(setting: PatchOrder | str | None) -> PatchOrder | None:
    if setting is None or setting == "auto":
        return None
    try:
        return PatchOrder(setting)
    except ValueError:
        known = ", ".join(PatchOrder)
        raise ModelError(f"patch_order: {setting!r} is neither auto nor one of {known}") from None
