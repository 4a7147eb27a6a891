"""The models that rmbgd knows by name: architecture, input size, licence, origin.

Standard library only: the service's own process reads it for input sizes and licences. What is unconfirmed is marked so
here and is verified where the weights are read.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from enum import StrEnum

from rmbgd.errors import ModelError
from rmbgd.resampling import Filter


class Architecture(StrEnum):
    BIREFNET = "birefnet"
    U2NETP = "u2netp"


class LicenceClass(StrEnum):
    COMMERCIAL = "commercial"
    NON_COMMERCIAL = "non-commercial"


class PatchOrder(StrEnum):
    """How BiRefNet's decoder stacks the patches of the image on channels. Parameter names are the same for both, so the
    weights alone do not tell."""

    CHANNEL_FIRST = "channel_first"  # (c, patch row, patch column): the author's code since 2024-11-05
    TILE_FIRST = "tile_first"  # (patch column, patch row, c): RMBG-2.0 and the author's older code


# A file of every published tensor, header included, by backbone and precision. The Swin-T figure is also what the hub
# states for birefnet-lite-2k, to the byte; a test recomputes all of them from names and shapes.
SWIN_L_FLOAT32 = 884_878_856
SWIN_L_FLOAT16 = 444_473_596
SWIN_T_FLOAT32 = 177_634_392


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model; defaults are those of most published BiRefNets. Sizes are (height, width) in pixels; `file_bytes` is
    the size of model.safetensors at the hub."""

    name: str
    summary: str
    hub_id: str | None  # None: ships inside the package
    architecture: Architecture = Architecture.BIREFNET
    backbone: str | None = "swin_v1_l"  # or "swin_v1_t"; None where the architecture has only one
    input_size: tuple[int, int] = (1024, 1024)
    filter: Filter = Filter.BILINEAR  # brings images to that size; BiRefNet was trained with this one
    licence: str = "MIT"  # SPDX identifier
    licence_class: LicenceClass = LicenceClass.COMMERCIAL
    licence_url: str = "https://github.com/ZhengPeng7/BiRefNet/blob/main/LICENSE"
    file_bytes: int = SWIN_L_FLOAT16
    size_confirmed: bool = False  # False: computed from the tensors' shapes, for the precision said to be published
    patch_order: PatchOrder | None = None  # None: unconfirmed, or the architecture cuts no patches
    revision: str | None = None  # commit at the hub; None: the newest, resolved and recorded when fetched
    sha256: str | None = None  # of model.safetensors; None: not known, checked against what was recorded when fetched
    trained_on: tuple[str, ...] = ()  # data sets, as their authors call them; empty: not published
    pickle: str | None = None  # the only form at the hub, to be converted once; None: it has model.safetensors
    dynamic: bool = False  # any size from 256 to 2304 in multiples of 32; input_size is the default
    recurrent: bool = False  # it takes the frame before, under its alpha, as three more channels
    notes: str = ""

    @property
    def needs_consent(self) -> bool:
        return self.licence_class is LicenceClass.NON_COMMERCIAL

    @property
    def patch_order_text(self) -> str:
        if self.architecture is not Architecture.BIREFNET:
            return "none"
        return self.patch_order.value if self.patch_order else "unconfirmed"


# What the author's model zoo names (github.com/ZhengPeng7/BiRefNet, README); the general ones leave DIS-VD out.
GENERAL = (
    *("DIS5K-TR", "DIS-TE1", "DIS-TE2", "DIS-TE3", "DIS-TE4", "DUTS-TR", "DUTS-TE", "HRSOD-TR", "HRSOD-TE"),
    *("UHRSD-TR", "UHRSD-TE", "HRS10K-TR", "HRS10K-TE", "P3M-10k", "P3M-500-NP", "P3M-500-P", "humans"),
)
MATTING = ("P3M-10k", "humans", "AM-2k", "AIM-500", "Human-2k", "Distinctions-646", "HIM2K", "PPM-100", "BG-20k")
LUCIDA = ("DIS5K", "CAMO", "COD10K", "P3M-10k", "Transparent-460", "HIM2K", "AM-2k", "BG-20k", "ToonOut")

_ENTRIES = (
    ModelEntry(
        name="birefnet",
        summary="general purpose, for GPUs",
        hub_id="ZhengPeng7/BiRefNet",
        trained_on=GENERAL,
        notes="float16 at the hub; an older revision is float32 (885 MB)",
    ),
    ModelEntry(
        name="birefnet-lite",
        summary="general purpose, for CPUs",
        hub_id="ZhengPeng7/BiRefNet_lite",
        backbone="swin_v1_t",
        trained_on=GENERAL,
        file_bytes=SWIN_T_FLOAT32,
    ),
    ModelEntry(
        name="birefnet-512",
        summary="general purpose, small images",
        hub_id="ZhengPeng7/BiRefNet_512x512",
        input_size=(512, 512),
        notes="trained at 512x512: better than the general model at that size",
    ),
    ModelEntry(
        name="birefnet-hr",
        summary="large images",
        hub_id="ZhengPeng7/BiRefNet_HR",
        input_size=(2048, 2048),
        notes="collapses when run at 512x512: do not make its input smaller",
    ),
    ModelEntry(
        name="birefnet-hr-matting",
        summary="hair, fur, soft edges; large",
        hub_id="ZhengPeng7/BiRefNet_HR-matting",
        input_size=(2048, 2048),
        trained_on=MATTING,
    ),
    ModelEntry(
        name="birefnet-matting",
        summary="hair, fur, soft edges",
        hub_id="ZhengPeng7/BiRefNet-matting",
        trained_on=MATTING,
        notes="trained on matting data only: softer, weaker at finding unusual objects",
    ),
    ModelEntry(
        name="birefnet-portrait",
        summary="people only",
        hub_id="ZhengPeng7/BiRefNet-portrait",
        trained_on=("P3M-10k", "humans"),
        file_bytes=SWIN_L_FLOAT32,
    ),
    ModelEntry(
        name="birefnet-dynamic",
        summary="any size, aspect ratio kept",
        hub_id="ZhengPeng7/BiRefNet_dynamic",
        dynamic=True,
        notes="any size from 256 to 2304 pixels in multiples of 32",
    ),
    ModelEntry(
        name="birefnet-lite-2k",
        summary="landscape images, for CPUs",
        hub_id="ZhengPeng7/BiRefNet_lite-2K",
        backbone="swin_v1_t",
        input_size=(1440, 2560),
        file_bytes=SWIN_T_FLOAT32,
        size_confirmed=True,
    ),
    ModelEntry(
        name="rmbg-2.0",
        summary="BRIA's weights, non-commercial",
        hub_id="briaai/RMBG-2.0",
        licence="CC-BY-NC-4.0",
        licence_class=LicenceClass.NON_COMMERCIAL,
        licence_url="https://creativecommons.org/licenses/by-nc/4.0/",
        file_bytes=SWIN_L_FLOAT32,
        patch_order=PatchOrder.TILE_FIRST,
        trained_on=("DIS-VD",),  # as others report; the rest is BRIA's own and not published
        notes="commercial use by agreement with BRIA; the hub may ask you to log in and accept its terms first",
    ),
    ModelEntry(
        name="lucida",
        summary="glass, print, lettering, drawings",
        hub_id="egeorcun/lucida",
        # Version 7: 13 was published and withdrawn, and later ones are trials beside it in the same repository.
        revision="6cbedc9722652dc9a3df91dd871f0c4f3334e922",
        licence_url="https://github.com/egeorcun/lucida/blob/main/LICENSE",
        file_bytes=SWIN_L_FLOAT32,
        trained_on=(*LUCIDA, "Lucida synthetic"),
        notes="version 7, tuned from birefnet-hr at 1024x1024, on whose data, too; weaker at hair and thin parts",
    ),
    ModelEntry(
        name="toonout",
        summary="anime, drawn characters",
        hub_id="joelseytre/toonout",
        pickle="birefnet_finetuned_toonout.pth",
        licence_url="https://github.com/MatteoKartoon/BiRefNet/blob/main/LICENSE",
        file_bytes=SWIN_L_FLOAT32,
        trained_on=(*GENERAL, "ToonOut"),
        notes="tuned from birefnet; the hub has a pickle only, to be converted once",
    ),
    ModelEntry(
        name="u2netp",
        summary="small and quick, always here",
        hub_id=None,
        architecture=Architecture.U2NETP,
        backbone=None,
        input_size=(320, 320),
        filter=Filter.BOX,  # by tools.bench filters: docs/models.md
        licence="Apache-2.0",
        licence_url="https://github.com/xuebinqin/U-2-Net/blob/master/LICENSE",
        file_bytes=4_524_324,
        size_confirmed=True,
        sha256="9f337a968f3e3d1de7b8521d71a142db6adb4a11e8c2d9dcbdfd24f8abdcdf4d",
        trained_on=("DUTS-TR",),
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


def trained_on(model: str) -> tuple[str, ...]:
    """The data sets that a model of the registry was trained on; empty: not published, or weights of your own."""
    entry = REGISTRY.get(model.lower())
    return entry.trained_on if entry else ()


def overlap(model: str, dataset: str) -> tuple[str, ...]:
    """Of `trained_on`, what a test set of this name may share images with: one's name holds all words of the other's.

    So DIS5K is met by DIS-TE1, DIS-TE1 by DIS5K, and DIS-VD by neither of DIS-TE1 and DIS5K-TR.
    """
    asked = _words(dataset)
    if not any(word[0].isalpha() for word in asked):  # a size or a number says nothing
        return ()
    return tuple(name for name in trained_on(model) if asked <= (words := _words(name)) or words <= asked)


def _words(dataset: str) -> set[str]:
    """The one rule for spellings: in any case, order and punctuation. TE-P3M-500-NP is P3M_500_NP, AIM-500 is aim500.

    Numbers and parts of a set (training, test, validation) are words of their own, joined or not: diste1 is DIS-TE1.
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=(te|tr|vd)[0-9]*(?![a-z0-9]))", " ", dataset.lower())
    words = re.findall(r"p3m|[a-z]+|[0-9]+k?", re.sub(r"dis[^a-z0-9]*5k", "dis ", parted))
    return set(words) - ({"te", "tr"} if "p3m" in words else set())  # P3M's own names say it otherwise


def alternatives(entry: ModelEntry) -> list[str]:
    """Names of commercially usable models that do the same kind of work, the nearest first."""
    same = [e for e in _ENTRIES if not e.needs_consent and e.architecture is entry.architecture]
    same.sort(key=lambda e: (e.backbone != entry.backbone, e.input_size != entry.input_size))
    return [e.name for e in same[:3]]
