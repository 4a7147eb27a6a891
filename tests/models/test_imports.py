"""What importing a module of rmbgd.models brings along, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HUB = ("huggingface_hub", "transformers")


LOADED = """import rmbgd.cli.main, rmbgd.config.load, rmbgd.cli.models, rmbgd.models.fetch, rmbgd.models.load, torch
rmbgd.models.load.load_model("u2netp", device="cpu", dtype=torch.float32).provenance"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "import rmbgd.models.registry, rmbgd.models.store, rmbgd.models.licences, rmbgd.models.checkpoint",
            ("torch", "numpy", "safetensors", *HUB),
        ),
        ("import rmbgd.models.fetch, rmbgd.models.store", ("torch", "triton", *HUB)),
        ("import rmbgd.models.load", ("triton", *HUB)),
        ("import rmbgd.models.inference, rmbgd.models.kernels.runtime", ("triton", *HUB)),
        (LOADED, ("triton", "rmbgd.models.hf", *HUB)),
    ],
    ids=["service", "fetch from a folder", "load", "plain kernels", "a loaded network"],
)
def test_heavy_libraries_are_imported_only_when_used(code, absent):
    """The service's own process reads sizes and licences without torch; nothing but its user imports a hub client,
    transformers or Triton."""
    code = f"import sys\n{code}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
