"""What importing a module of rmbgd.models brings along, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HUB = ("huggingface_hub", "transformers")
# What is imported, and what must not come along.
IMPORTS = {
    "service": (
        "import rmbgd.models.registry, rmbgd.models.store, rmbgd.models.licences, rmbgd.models.checkpoint",
        ("torch", "numpy", "safetensors", *HUB),
    ),
    "fetch from a folder": ("import rmbgd.models.fetch, rmbgd.models.store", ("torch", "triton", *HUB)),
    "plain kernels": ("import rmbgd.models.inference, rmbgd.models.kernels.runtime", ("triton", *HUB)),
    "a loaded network": (
        """import rmbgd.cli.main, rmbgd.config.load, rmbgd.cli.models, rmbgd.models.fetch, rmbgd.models.load, torch
rmbgd.models.load.load_model("u2netp", device="cpu", dtype=torch.float32).provenance""",
        ("triton", "rmbgd.models.hf", *HUB),
    ),
}


@pytest.mark.integration
@pytest.mark.parametrize(("code", "absent"), IMPORTS.values(), ids=IMPORTS)
def test_heavy_libraries_are_imported_only_when_used(code, absent):
    code = f"import sys\n{code}\nprint([name for name in {absent} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
