"""The one path by which weights are loaded, by name, folder or file: checked, mapped, folded, with their provenance.

Never goes to the network, never unpickles, never runs code that lies beside weights.
"""

from __future__ import annotations

import gc
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
from rmbgd.models import licences
from rmbgd.models.checkpoint import BACKBONES, CheckpointHeader, read_header, sha256_of
from rmbgd.models.convert import assemble
from rmbgd.models.registry import Architecture, PatchOrder
from rmbgd.models.store import DEFAULT_MODELS, ORIGIN, StoredModel, resolve
from rmbgd.models.u2net import build_u2netp
from rmbgd.resampling import Filter


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


class LoadedModel:
    """`module` maps normalised images [B,3,H,W] to logits [B,1,H,W]; `input_size`: its (height, width); `filter`: what
    brings images to it."""

    def __init__(
        self,
        module: nn.Module,
        input_size: tuple[int, int],
        filter: Filter,  # noqa: A002
        finish: Callable[[], Provenance],
    ) -> None:
        self.module = module
        self.input_size = input_size
        self.filter = filter
        self._finish = finish

    @cached_property
    def provenance(self) -> Provenance:
        """Waits for the file's digest; until it has returned, what the module computes comes from unverified weights.

        Raises ModelError when a source states another digest.
        """
        return self._finish()


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
    warms up in between, so the digest costs no time. Raises ModelError for weights that are not there, damaged,
    pickled, of another network or digest, of unknown patch order, or whose licence is not accepted.
    """
    started = time.monotonic()
    model = resolve(source, models)
    acceptance = licences.require(model.entry, models) if model.entry else None
    version = _file_version(model.weights)
    with _without_garbage_collector():
        header = read_header(model.weights)
        module, facts, mapped = _build(model, header, torch.device(device), dtype, _parse_order(patch_order))
    seconds = round(time.monotonic() - started, 3)
    # The digest needs every byte and no interpreter: it is computed while the network is warmed up. Begun earlier, it
    # takes from the building what it gains: both want the memory's bandwidth.
    hashing = ThreadPoolExecutor(1, thread_name_prefix="sha256")
    digest = hashing.submit(sha256_of, model.weights)
    hashing.shutdown(wait=False)

    def finish() -> Provenance:
        try:
            found = digest.result()
        except OSError as error:
            raise ModelError(f"{model.weights}: cannot be read: {error.strerror}") from error
        if _file_version(model.weights) != version:
            raise ModelError(f"{model.weights}: was replaced or written to while it was read; load it again")
        agreeing = _agreement(model, found, sha256)
        tensors = [*module.parameters(), *module.buffers()]
        mapped_bytes = sum(t.nbytes for t in tensors if t.data_ptr() in mapped)
        return Provenance(
            model=model.name,
            path=str(model.weights),
            sha256=found,
            sha256_agrees_with=agreeing,
            verified=any(source != ORIGIN for source in agreeing),
            licence=model.entry.licence if model.entry else "unknown",
            accepted_by=acceptance.accepted_by if acceptance else "",
            **facts,
            stored_precision=header.precision,
            precision=str(dtype).removeprefix("torch."),
            device=str(device),
            parameters=header.parameters,
            input_size=model.input_size(),
            filter=model.filter().value,
            mapped_bytes=mapped_bytes,
            private_bytes=sum(t.nbytes for t in tensors) - mapped_bytes,
            seconds=seconds,
        )

    return LoadedModel(module, model.input_size(), model.filter(), finish)


def _build(
    model: StoredModel, header: CheckpointHeader, device: torch.device, dtype: torch.dtype, setting: PatchOrder | None
) -> tuple[nn.Module, dict[str, str], set[int]]:
    """The network, the facts of its provenance, and the addresses of tensors that lie in the mapped file."""
    if model.entry and model.entry.architecture is Architecture.U2NETP:
        return build_u2netp(device=device, dtype=dtype), {"architecture": "u2netp"}, set()
    backbone, choice = model.backbone(header), model.patch_order(setting)
    get, mapped = _mapped(model.weights)
    module = assemble(BACKBONES[backbone], choice.order, get, device=device, dtype=dtype)
    order = {"patch_order": choice.order.value, "patch_order_because": choice.reason}
    return module, {"architecture": "birefnet", "backbone": backbone, **order}, mapped


@contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """A network makes no garbage, and enough objects to set off a full pass over everything that was imported, which
    took as long as building it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _mapped(weights: Path) -> tuple[Callable[[str], Tensor], set[int]]:
    """A function that returns tensors of a mapped file without reading them, and the addresses of those it returned.

    A mapped file must be replaced by a rename, as `fetch` does: one that is truncated kills its readers.
    """
    try:
        file = safe_open(weights, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ModelError(f"{weights}: damaged: {error}. Fetch or copy it again") from error
    returned: set[int] = set()

    def get(name: str) -> Tensor:
        tensor: Tensor = file.get_tensor(name)  # type: ignore[no-untyped-call]
        returned.add(tensor.data_ptr())
        return tensor

    return get, returned


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


def _parse_order(setting: PatchOrder | str | None) -> PatchOrder | None:
    if setting in {None, "auto"}:
        return None
    if setting in list(PatchOrder):
        return PatchOrder(setting)
    raise ModelError(f"patch_order: {setting!r} is neither auto nor one of {', '.join(PatchOrder)}")
