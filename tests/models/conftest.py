"""Settings and weights for tests that run networks."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from rmbgd.models.store import AUTHOR_CODE, CONFIG, WEIGHTS
from tests.models.checkpoints import NEW_CODE

# OpenMP's threads spin while they wait for each other. On a machine that does other work besides, a test that takes a
# second would take twenty. Read when torch is first imported, so nothing above imports it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The configuration that the author publishes: it names his own code and no model type.
AUTHORS = {"AutoConfig": "BiRefNet_config.BiRefNetConfig", "AutoModelForImageSegmentation": "birefnet.BiRefNet"}
CONFIGURATION = {"architectures": ["BiRefNet"], "auto_map": AUTHORS, "bb_pretrained": False}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """As the author publishes it: float32 Swin-T weights of the recipe, his configuration, his newer code."""
    from safetensors.numpy import save_file

    from tests.models.stress import recipe

    made = tmp_path_factory.mktemp("published")
    save_file(recipe().checkpoint("swin_v1_t"), made / WEIGHTS, metadata={"format": "pt"})
    (made / CONFIG).write_text(json.dumps(CONFIGURATION))
    (made / AUTHOR_CODE).write_text(NEW_CODE)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def beside(folder, tmp_path):
    """A folder of its own with the same weights (one more name of the file) and nothing else."""
    (tmp_path / "mine").mkdir()
    os.link(folder / WEIGHTS, tmp_path / "mine" / WEIGHTS)
    return tmp_path / "mine"
