"""The models that rmbgd knows by name: architecture, input size, licence, patch order, where the weights come from.

Does not touch a file, the network or torch: the service's own process reads it for input sizes and licences. What
nobody has confirmed is marked so here and is verified where the weights are read.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum

from rmbgd.errors import ModelError


class Architecture(StrEnum):
    BIREFNET = "birefnet"
    U2NETP = "u2netp"


class LicenceClass(StrEnum):
    COMMERCIAL = "commercial"
    NON_COMMERCIAL = "non-commercial"


class PatchOrder(StrEnum):
    """How BiRefNet's decoder stacks the tiles of the image on channels. Parameter names are the same for both, so the
    weights alone do not tell."""

    CHANNEL_FIRST = "channel_first"  # (c, row of tile, column of tile): the author's code since 2024-11-05
    TILE_FIRST = "tile_first"  # (column of tile, row of tile, c): RMBG-2.0 and the author's older code


@dataclass(frozen=True)
class ModelEntry:
    """One model. Sizes are (height, width) in pixels; `file_bytes` is the size of model.safetensors at the hub."""

    name: str
    summary: str
    architecture: Architecture
    backbone: str | None  # "swin_v1_l", "swin_v1_t"; None where the architecture has only one
    input_size: tuple[int, int]
    licence: str  # SPDX identifier
    licence_class: LicenceClass
    licence_url: str
    hub_id: str | None  # None: ships inside the package
    file_bytes: int
    size_confirmed: bool  # False: computed from the tensors' shapes, for the precision said to be published
    patch_order: PatchOrder | None = None  # None: unconfirmed, or the architecture cuts no patches
    revision: str | None = None  # commit at the hub; None: the newest, resolved and recorded when fetched
    sha256: str | None = None  # of model.safetensors; None: not known, checked against what was recorded when fetched
    dynamic: bool = False  # any size from 256 to 2304 in multiples of 32; input_size is the default
    notes: str = ""

    @property
    def needs_consent(self) -> bool:
        return self.licence_class is LicenceClass.NON_COMMERCIAL

    @property
    def patch_order_text(self) -> str:
        if self.architecture is not Architecture.BIREFNET:
            return "none"
        return self.patch_order.value if self.patch_order else "unconfirmed"


# A file of every published tensor, header included, by backbone and precision. The Swin-T figure is also what the hub
# states for birefnet-lite-2k, to the byte; a test recomputes all of them from names and shapes.
SWIN_L_FLOAT32 = 884_878_856
SWIN_L_FLOAT16 = 444_473_596
SWIN_T_FLOAT32 = 177_634_392

_MIT = "https://github.com/ZhengPeng7/BiRefNet/blob/main/LICENSE"


def _birefnet(
    name: str,
    summary: str,
    hub_id: str,
    size: tuple[int, int],
    *,
    backbone: str = "swin_v1_l",
    file_bytes: int = SWIN_L_FLOAT16,
    size_confirmed: bool = False,
    dynamic: bool = False,
    notes: str = "",
) -> ModelEntry:
    return ModelEntry(
        name=name,
        summary=summary,
        architecture=Architecture.BIREFNET,
        backbone=backbone,
        input_size=size,
        licence="MIT",
        licence_class=LicenceClass.COMMERCIAL,
        licence_url=_MIT,
        hub_id=hub_id,
        file_bytes=file_bytes,
        size_confirmed=size_confirmed,
        dynamic=dynamic,
        notes=notes,
    )


_ENTRIES = (
    _birefnet(
        "birefnet",
        "general purpose, for GPUs",
        "ZhengPeng7/BiRefNet",
        (1024, 1024),
        notes="float16 at the hub; an older revision is float32 (885 MB)",
    ),
    _birefnet(
        "birefnet-lite",
        "general purpose, for CPUs",
        "ZhengPeng7/BiRefNet_lite",
        (1024, 1024),
        backbone="swin_v1_t",
        file_bytes=SWIN_T_FLOAT32,
    ),
    _birefnet(
        "birefnet-512",
        "general purpose, small images",
        "ZhengPeng7/BiRefNet_512x512",
        (512, 512),
        notes="trained at 512x512: better than the general model at that size",
    ),
    _birefnet(
        "birefnet-hr",
        "large images",
        "ZhengPeng7/BiRefNet_HR",
        (2048, 2048),
        notes="collapses when run at 512x512: do not make its input smaller",
    ),
    _birefnet(
        "birefnet-hr-matting",
        "hair, fur, soft edges; large",
        "ZhengPeng7/BiRefNet_HR-matting",
        (2048, 2048),
    ),
    _birefnet(
        "birefnet-matting",
        "hair, fur, soft edges",
        "ZhengPeng7/BiRefNet-matting",
        (1024, 1024),
        notes="trained on matting data only: softer, weaker at finding unusual objects",
    ),
    _birefnet(
        "birefnet-portrait",
        "people only",
        "ZhengPeng7/BiRefNet-portrait",
        (1024, 1024),
        file_bytes=SWIN_L_FLOAT32,
    ),
    _birefnet(
        "birefnet-dynamic",
        "any size, aspect ratio kept",
        "ZhengPeng7/BiRefNet_dynamic",
        (1024, 1024),
        dynamic=True,
        notes="any size from 256 to 2304 pixels in multiples of 32",
    ),
    _birefnet(
        "birefnet-lite-2k",
        "landscape images, for CPUs",
        "ZhengPeng7/BiRefNet_lite-2K",
        (1440, 2560),
        backbone="swin_v1_t",
        file_bytes=SWIN_T_FLOAT32,
        size_confirmed=True,
    ),
    ModelEntry(
        name="rmbg-2.0",
        summary="BRIA's weights, non-commercial",
        architecture=Architecture.BIREFNET,
        backbone="swin_v1_l",
        input_size=(1024, 1024),
        licence="CC-BY-NC-4.0",
        licence_class=LicenceClass.NON_COMMERCIAL,
        licence_url="https://creativecommons.org/licenses/by-nc/4.0/",
        hub_id="briaai/RMBG-2.0",
        file_bytes=SWIN_L_FLOAT32,
        size_confirmed=False,
        patch_order=PatchOrder.TILE_FIRST,
        notes="commercial use by agreement with BRIA; the hub may ask you to log in and accept its terms first",
    ),
    ModelEntry(
        name="u2netp",
        summary="small and quick, always here",
        architecture=Architecture.U2NETP,
        backbone=None,
        input_size=(320, 320),
        licence="Apache-2.0",
        licence_class=LicenceClass.COMMERCIAL,
        licence_url="https://github.com/xuebinqin/U-2-Net/blob/master/LICENSE",
        hub_id=None,
        file_bytes=4_524_324,
        sha256="9f337a968f3e3d1de7b8521d71a142db6adb4a11e8c2d9dcbdfd24f8abdcdf4d",
        size_confirmed=True,
    ),
)

REGISTRY: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def lookup(name: str) -> ModelEntry:
    """The entry called `name`, in any case. Raises ModelError with the nearest names."""
    entry = REGISTRY.get(name.lower())
    if entry is None:
        near = difflib.get_close_matches(name.lower(), REGISTRY, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "rmbgd models list shows all of them"
        raise ModelError(f"there is no model called {name!r}: {hint}")
    return entry


def alternatives(entry: ModelEntry) -> list[str]:
    """Names of commercially usable models that do the same kind of work, the nearest first."""
    same = [e for e in _ENTRIES if not e.needs_consent and e.architecture is entry.architecture]
    same.sort(key=lambda e: (e.backbone != entry.backbone, e.input_size != entry.input_size))
    return [e.name for e in same[:3]]
