from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.errors import ModelError
from rmbgd.models import registry
from rmbgd.models.checkpoint import published
from rmbgd.models.registry import REGISTRY, LicenceClass, PatchOrder, alternatives, lookup, overlap
from tests.models.checkpoints import halved, hollow
from tests.support.shared_data import shared

ENTRIES = pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda e: e.name)


def test_the_promised_models_with_their_consent_and_patch_order():
    variants = ("-lite", "-512", "-hr", "-hr-matting", "-matting", "-portrait", "-dynamic", "-lite-2k")
    stated = {e.name: (e.licence_class, e.patch_order_text) for e in REGISTRY.values()}
    assert stated.pop("rmbg-2.0") == (LicenceClass.NON_COMMERCIAL, PatchOrder.TILE_FIRST)
    assert stated.pop("u2netp") == (LicenceClass.COMMERCIAL, "none")
    free = (LicenceClass.COMMERCIAL, "unconfirmed")
    assert stated == dict.fromkeys(("birefnet", *(f"birefnet{v}" for v in variants), "lucida", "toonout"), free)


def test_a_model_with_several_versions_in_one_place_is_pinned():
    """The author of Lucida withdrew one version and keeps trials beside the released one."""
    assert len(REGISTRY["lucida"].revision) == 40


@pytest.mark.parametrize(
    ("model", "dataset", "shared_with"),
    [
        ("birefnet", "DIS-VD", ()),
        ("birefnet", "DIS-TE3", ("DIS-TE3",)),
        ("birefnet", "dis5k_te1", ("DIS-TE1",)),
        ("birefnet", "TE-P3M-500-NP", ("P3M-500-NP",)),
        ("birefnet", "DIS5K", ("DIS5K-TR", "DIS-TE1", "DIS-TE2", "DIS-TE3", "DIS-TE4")),
        ("BiRefNet-HR-matting", "aim-500", ("AIM-500",)),
        ("birefnet-matting", "aim500", ("AIM-500",)),
        ("birefnet-matting", "500", ()),
        ("birefnet-portrait", "p3m10k", ("P3M-10k",)),
        ("birefnet", "p3m500np", ("P3M-500-NP",)),
        ("birefnet", "diste4", ("DIS-TE4",)),
        ("birefnet", "DIS5K/DIS-VD", ()),
        ("birefnet", "disvd", ()),
        ("lucida", "dis5kvd", ("DIS5K",)),
        ("birefnet", "dutste", ("DUTS-TE",)),
        ("birefnet-matting", "distinctions646", ("Distinctions-646",)),
        ("birefnet-hr", "DIS-TE1", ()),  # nothing is published
        ("lucida", "DIS-VD", ("DIS5K",)),  # which part of it, its author does not say
        ("u2netp", "DUTS-TE", ()),
        ("u2netp", "DUTS", ("DUTS-TR",)),
        ("u2netp", "my shop", ()),
        ("u2netp", "", ()),
        ("birefnet-512", "DIS-TE1", ()),  # nothing is published
        ("/srv/weights/mine", "DUTS-TR", ()),
    ],
)
def test_test_sets_that_a_model_has_seen_are_found(model, dataset, shared_with):
    assert overlap(model, dataset) == shared_with


@ENTRIES
def test_input_sizes_fit_the_network(entry):
    height, width = entry.input_size
    assert (height % 32, width % 32) == (0, 0)
    assert height <= width


def test_names_are_looked_up_in_any_case_and_misspelt_ones_get_the_nearest():
    assert lookup("RMBG-2.0") is REGISTRY["rmbg-2.0"]
    with pytest.raises(ModelError, match="did you mean birefnet-portrait"):
        lookup("birefnet-portait")


def test_alternatives_may_be_used_commercially():
    offered = [REGISTRY[name] for name in alternatives(REGISTRY["rmbg-2.0"])]
    assert offered[0].name == "birefnet"
    assert not any(e.needs_consent for e in offered)


@pytest.mark.parametrize(
    ("expected", "backbone", "half"),
    [
        (registry.SWIN_L_FLOAT32, "swin_v1_l", False),
        (registry.SWIN_L_FLOAT16, "swin_v1_l", True),
        (registry.SWIN_T_FLOAT32, "swin_v1_t", False),
    ],
)
def test_file_sizes_follow_from_the_tensors(tmp_path, expected, backbone, half):
    tensors = halved(published(backbone)) if half else published(backbone)
    assert hollow(tmp_path / "x.safetensors", tensors).stat().st_size == expected


@pytest.mark.parametrize("backbone", ["swin_v1_l", "swin_v1_t"])
def test_published_names_are_the_published_ones(backbone):
    rows = (shared("birefnet") / f"keys-{backbone}.tsv").read_text().splitlines()[1:]
    spelt = {"F32": "float32", "I64": "int64"}
    generated = {f"{n}\t{'x'.join(map(str, t.shape))}\t{spelt[t.dtype]}" for n, t in published(backbone).items()}
    assert generated == set(rows)


@ENTRIES
def test_the_documentation_has_the_registrys_facts(entry):
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{entry.name}` |")]
    height, width = entry.input_size
    megabytes = f"{'' if entry.size_confirmed else '~'}{entry.file_bytes / 1e6:.0f}"
    hub = entry.hub_id or "ships inside the package"
    expected = [f"`{entry.name}`", entry.summary, f"{width} x {height}", entry.licence, megabytes, hub]
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected
