"""Makes docs/before-after.jpg and docs/three-files.jpg: photographs of scikit-image, and what `rmbgd once` makes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tools.demo import prepare, tiles

PHOTOGRAPH = "astronaut.png"  # Eileen Collins, NASA, public domain
HEIGHT, GAP, QUALITY = 320, 8, 76
CUP, STRIP, FINE, GREY = "coffee.jpg", 200, Image.Resampling.LANCZOS, (128, 128, 128)
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
        strip.paste(tile.resize((width, HEIGHT), FINE), (column * (width + GAP), 0))
    strip.save(target, quality=QUALITY, optimize=True, progressive=True)


def three_files(target: Path, page: Path) -> None:
    """The strip: the photograph, and the three files that the recipe on `page` makes of it."""
    recipe = page.read_text(encoding="utf-8").split("```toml\n")[1].split("[[folder]]")[0]
    with tempfile.TemporaryDirectory() as scratch:
        source, result, config = prepare(Path(scratch, "in"))[CUP], Path(scratch, "out"), Path(scratch, "rmbgd.toml")
        config.write_text(recipe, encoding="utf-8")
        command = [sys.executable, "-m", "rmbgd", "once", str(source), str(result), "--device", "cpu"]
        subprocess.run([*command, "--config", str(config), "--recipe", "shop"], check=True)
        _, cutout, _ = tiles(source, result / "coffee.webp", MAGENTA, 16)
        paths = (source, result / "amazon" / "coffee.jpg", result / "print" / "coffee-mask.tif")
        photograph, offered, mask = (Image.open(path).convert("RGB") for path in paths)
    images = [photograph, cutout, offered, mask]
    scaled = [image.resize((round(STRIP * image.width / image.height), STRIP), FINE) for image in images]
    strip = Image.new("RGB", (sum(each.width for each in scaled) + (len(scaled) - 1) * GAP, STRIP), GREY)
    left = 0
    for each in scaled:
        strip.paste(each, (left, 0))
        left += each.width + GAP
    strip.save(target, quality=QUALITY, optimize=True, progressive=True)


if __name__ == "__main__":
    docs = Path(__file__).parents[1] / "docs"
    before_after(docs / "before-after.jpg")
    three_files(docs / "three-files.jpg", docs / "deliver.md")
