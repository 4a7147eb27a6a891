"""Makes docs/before-after.jpg: a public-domain photograph of scikit-image, and its cutouts by `rmbgd once`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tools.demo import prepare, tiles

PHOTOGRAPH = "astronaut.png"  # Eileen Collins, NASA, public domain
HEIGHT, GAP, QUALITY = 320, 8, 76
MAGENTA = (255, 0, 160)  # loud: any rim of the old background would show


def before_after(target: Path) -> None:
    """The strip: the photograph, the cutout on a checkerboard, the cutout on magenta."""
    with tempfile.TemporaryDirectory() as scratch:
        source, result = prepare(Path(scratch, "in"))[PHOTOGRAPH], Path(scratch, "out")
        subprocess.run([sys.executable, "-m", "rmbgd", "once", source, result, "--device", "cpu"], check=True)
        images = tiles(source, result / PHOTOGRAPH, MAGENTA, 16)
    width = round(HEIGHT * images[0].width / images[0].height)
    strip = Image.new("RGB", (3 * width + 2 * GAP, HEIGHT), "white")
    for column, tile in enumerate(images):
        strip.paste(tile.resize((width, HEIGHT), Image.Resampling.LANCZOS), (column * (width + GAP), 0))
    strip.save(target, quality=QUALITY, optimize=True, progressive=True)


if __name__ == "__main__":
    before_after(Path(__file__).parents[1] / "docs" / "before-after.jpg")
