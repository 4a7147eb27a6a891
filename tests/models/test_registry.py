from __future__ import annotations

from pathlib import Path

import pytest

from rmbgd.errors import ModelError
from rmbgd.models import registry
from rmbgd.models.checkpoint import published, read_header, sha256_of
from rmbgd.models.registry import REGISTRY, LicenceClass, PatchOrder, alternatives, lookup
from rmbgd.models.store import EMBEDDED
from tests.models.checkpoints import halved, hollow
from tests.support.shared_data import shared

ENTRIES = pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda e: e.name)


def test_every_promised_model_is_there():
    """The registry holds exactly the eleven models that the documentation names."""
    variants = ("-lite", "-512", "-hr", "-hr-matting", "-matting", "-portrait", "-dynamic", "-lite-2k")

    assert set(REGISTRY) == {"birefnet", *(f"birefnet{v}" for v in variants), "rmbg-2.0", "u2netp"}


@ENTRIES
def test_input_sizes_fit_the_network(entry):
    """Every input size is (height, width) in multiples of 32, which the encoder needs."""
    height, width = entry.input_size

    assert (height % 32, width % 32) == (0, 0)
    assert height <= width


def test_only_rmbg_is_non_commercial():
    """RMBG-2.0 is the one model with a non-commercial licence."""
    assert [e.name for e in REGISTRY.values() if e.licence_class is LicenceClass.NON_COMMERCIAL] == ["rmbg-2.0"]


def test_only_the_confirmed_patch_order_is_stated():
    """RMBG-2.0's order is known from its code; every other BiRefNet says unconfirmed, u2netp has none."""
    stated = {e.name: e.patch_order_text for e in REGISTRY.values()}

    assert stated.pop("rmbg-2.0") == PatchOrder.TILE_FIRST
    assert stated.pop("u2netp") == "none"
    assert set(stated.values()) == {"unconfirmed"}


def test_names_are_looked_up_in_any_case_and_misspelt_ones_get_the_nearest():
    """RMBG-2.0 and rmbg-2.0 are one model; a misspelt name is refused with the names it may have meant."""
    assert lookup("RMBG-2.0") is REGISTRY["rmbg-2.0"]
    with pytest.raises(ModelError, match="did you mean birefnet-portrait"):
        lookup("birefnet-portait")


def test_alternatives_may_be_used_commercially():
    """What a refusal offers instead is free of the refusal's reason and of the same size where there is one."""
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
    """The sizes in the registry are those of a file with every published tensor in that precision, to the byte."""
    tensors = halved(published(backbone)) if half else published(backbone)

    assert hollow(tmp_path / "x.safetensors", tensors).stat().st_size == expected


@pytest.mark.parametrize("backbone", ["swin_v1_l", "swin_v1_t"])
def test_published_names_are_the_published_ones(backbone):
    """Names, shapes and types that are generated equal the list taken from the published checkpoints."""
    rows = (shared("birefnet") / f"keys-{backbone}.tsv").read_text().splitlines()[1:]
    spelt = {"F32": "float32", "I64": "int64"}
    generated = {f"{n}\t{'x'.join(map(str, t.shape))}\t{spelt[t.dtype]}" for n, t in published(backbone).items()}

    assert generated == set(rows)


def test_the_embedded_file_is_the_one_stated():
    """Size and digest of the embedded weights are what the registry says."""
    entry = REGISTRY["u2netp"]

    assert (entry.file_bytes, entry.sha256) == (read_header(EMBEDDED).file_bytes, sha256_of(EMBEDDED))


@ENTRIES
def test_the_documentation_has_the_registrys_facts(entry):
    """docs/models.md has one row a model with purpose, size, licence, bytes and hub id as the registry states them."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{entry.name}` |")]
    height, width = entry.input_size
    megabytes = f"{'' if entry.size_confirmed else '~'}{entry.file_bytes / 1e6:.0f}"
    hub = entry.hub_id or "ships inside the package"

    expected = [f"`{entry.name}`", entry.summary, f"{width} x {height}", entry.licence, megabytes, hub]
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected
