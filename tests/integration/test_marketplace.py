"""Twenty photographs through the real service and network for a marketplace: what is published keeps its rules.

Measured by code of this test alone, with another decoder than the service's checker has.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import measure

from tests.support.shared_data import shared
from tools.demo import Service

pytestmark = pytest.mark.integration
PHOTOGRAPHS, PUBLISHED_LEAST = 20, 14
CONFIG = """
[service]
state_directory = "{base}/state"
runtime_directory = "{base}/run"
models_directory = "{base}/models"
[[recipe.shop.deliver]]
path = "{{stem}}.jpg"
preset = "amazon-main"
[[recipe.shop.deliver]]                # the same frame, with its alpha, by which the first is measured
path = "frames/{{stem}}.png"
format = "png"
canvas = "2000x2000"
fill = 0.87
faint_below = 0.05
[[recipe.shop.deliver]]
path = "mattes/{{stem}}.png"
content = "mask"
[[folder]]
name = "shop"
recipe = "shop"
originals = "keep"
input = "{base}/input"
output = "{base}/output"
failed = "{base}/failed"
review = "{base}/review"
"""


def test_what_is_published_keeps_the_rules_of_the_marketplace(tmp_path: Path) -> None:
    photographs = sorted(shared("eval").joinpath("photos").iterdir())[:PHOTOGRAPHS]
    for role in ("input", "output", "failed", "review", "state", "run", "models"):
        (tmp_path / role).mkdir()
    config = tmp_path / "rmbgd.toml"
    config.write_text(CONFIG.format(base=tmp_path))
    for photograph in photographs:
        shutil.copyfile(photograph, tmp_path / "input" / photograph.name)
    service, ended = Service(config), list[dict[str, Any]]()
    try:
        for event in service.events(240):
            if event["event"] in ("image.done", "image.failed"):
                ended.append(event)
            if len(ended) == PHOTOGRAPHS:
                break
    finally:
        assert service.stop() == 0
    assert [] == [event for event in ended if event["event"] != "image.done"]
    published = [event for event in ended if event["verdict"] != "review"]
    for event in published:
        assert_kept(tmp_path / "output", event["output"])
    for event in ended:
        if event not in published:
            assert_confirmed(tmp_path / "review", event)
    assert len(published) >= PUBLISHED_LEAST


def assert_kept(output: Path, name: str) -> None:
    data = (output / name).read_bytes()
    alpha = plane(output / "frames" / name.replace(".jpg", ".png"))[:, :, 3]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (2000, 2000)), name
        assert max(max(layer[1:3]) for layer in image.layer) == 1  # type: ignore[attr-defined]
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
        pixels = np.asarray(image.convert("RGB"))
    box = box_of(alpha)
    assert box is not None
    top, bottom, left, right = box
    assert 0.85 <= max(bottom - top, right - left) / 2000 <= 0.9, name
    assert min(top, left, 2000 - bottom, 2000 - right) > 0, name
    pure = np.kron((alpha.reshape(250, 8, 250, 8).max(axis=(1, 3)) == 0), np.ones((8, 8), bool))
    assert (pixels[pure] == 255).all(), name
    beside = pixels[~pure & (alpha == 0)]
    assert beside.min(initial=255) >= 250, name


def assert_confirmed(review: Path, event: dict[str, Any]) -> None:
    """A rule that failed fails by what this test measures, too, and the sidecar has the table."""
    stem = Path(event["path"]).stem
    story = json.loads((review / f"{event['output']}.json").read_text())
    (table,) = story["compliance"]
    failed = {each["rule"] for each in table["rules"] if each["outcome"] == "fail"}
    matte = plane(review / "mattes" / f"{stem}.png")
    box = box_of(matte)
    cut = box is None or min(box[0], box[2]) == 0 or (box[1] == matte.shape[0] or box[3] == matte.shape[1])
    assert failed == {"border"}, f"{event['path']}: not measured here"
    assert cut, event["path"]
    assert (review / f"{stem}.review.jpg").exists()


def plane(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def box_of(alpha: np.ndarray) -> tuple[int, int, int, int] | None:
    """Of alpha >= 0.5, without components below 1 % of the largest."""
    labels, count = measure.label(alpha >= 128, connectivity=2, return_num=True)
    if not count:
        return None
    areas = np.bincount(labels.ravel())[1:]
    rows, columns = np.nonzero(np.isin(labels, 1 + np.flatnonzero(areas >= areas.max() / 100)))
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
