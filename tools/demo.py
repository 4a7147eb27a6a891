"""Three photographs through the real service, dropped in the three ways people drop files, and a sheet to look at.

The last one is made for a marketplace, too, in a folder of its own, and its rules are shown with what was measured.
Starts `rmbgd run` on temporary folders as an operator would, and knows nothing of its inside: only folders and its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

PATIENCE = 300.0  # seconds until the demo gives up on the service; a slow single-core board loads torch in a minute
TILE, MARGIN = 360, 12  # pixels, the longer side of one image on the sheet, and around each
GREEN = (0, 255, 0)
PRESET, OFFERED = "amazon-main", "coffee.jpg"


def written_slowly(source: Path, target: Path) -> None:
    """In pieces with pauses, the file open all the while, as over a thin line."""
    with source.open("rb") as data, target.open("wb", buffering=0) as stream:
        while piece := data.read(5_000):
            stream.write(piece)
            time.sleep(0.25)  # the pause is what is shown


def renamed(source: Path, target: Path) -> None:
    """Written under a hidden name and renamed when whole: the way that integrators should choose."""
    shutil.copyfile(source, partial := target.with_name(f".{target.name}.part"))
    partial.rename(target)


WAYS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {  # photograph -> (how it is dropped, by what)
    "astronaut.png": ("copied", shutil.copyfile),
    "chelsea.jpg": ("written slowly", written_slowly),
    "coffee.jpg": ("renamed into place", renamed),
}


def prepare(folder: Path) -> dict[str, Path]:
    """The public-domain photographs that scikit-image carries, as the files a user would have."""
    folder.mkdir()
    files = {name: folder / name for name in WAYS}
    for file in files.values():
        with (resources.files("skimage") / "data" / f"{file.stem}.png").open("rb") as stream:
            Image.open(stream).convert("RGB").save(file, quality=92)
    return files


def configure(base: Path) -> Path:
    roles, directories = ("input", "output", "done", "failed"), ("state", "runtime", "models")
    shop = {name: base / "shop" / name for name in ("input", "output", "failed", "review")}
    for path in (*(base / name for name in (*roles, *directories)), *shop.values()):
        path.mkdir(parents=True)
    lines = ["[service]", *(f'{name}_directory = "{base}/{name}"' for name in directories)]
    lines += ["[recipe.marketplace]", f'preset = "{PRESET}"']
    lines += ["[[folder]]", 'name = "demo"', *(f'{name} = "{base}/{name}"' for name in roles)]
    lines += ["[[folder]]", 'name = "shop"', 'recipe = "marketplace"', 'originals = "keep"']
    lines += [f'{name} = "{path}"' for name, path in shop.items()]
    path = base / "rmbgd.toml"
    path.write_text("\n".join(lines))
    return path


class Service:
    """The service as a process, and its log."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "rmbgd", "run", "--config", str(config)]
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.log: list[str] = []

    def events(self, patience: float) -> Iterator[dict[str, Any]]:
        """Events as they come, until the service ends; after `patience` seconds it is killed."""
        assert self.process.stdout is not None
        timer = threading.Timer(patience, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                self.log.append(line)
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(line)
        finally:
            timer.cancel()

    def stop(self) -> int:
        self.process.terminate()
        list(self.events(60))
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait()


def tiles(photograph: Path, cutout: Path, colour: tuple[int, int, int], cell: int) -> list[Image.Image]:
    """The photograph; its cutout on a checkerboard of so many pixels a cell; and on a colour, where any rim shows."""
    image, over = Image.open(photograph).convert("RGB"), Image.open(cutout).convert("RGBA")
    if over.size != image.size:
        raise SystemExit(f"{cutout}: is {over.size}, the photograph is {image.size}")
    board, plain = Image.new("RGB", image.size, "white"), Image.new("RGB", image.size, colour)
    draw = ImageDraw.Draw(board)
    for top in range(0, image.height, cell):
        for left in range((top // cell % 2) * cell, image.width, 2 * cell):
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=(204, 204, 204))
    for background in (board, plain):
        background.paste(over, (0, 0), over)
    return [image, board, plain]


def run(result: Path, console: Console) -> int:
    result.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="service-", dir=result.resolve()))
    files = prepare(base / "photographs")
    outcomes: dict[str, dict[str, Any]] = {}
    service = Service(configure(base))
    try:
        with console.status("starting the service") as status:
            for event in service.events(PATIENCE):
                if event["event"] == "service.ready":
                    status.update(f"service ready on {event['device']}; dropping photographs")
                    for name, (_, drop) in WAYS.items():
                        drop(files[name], base / "input" / name)
                    renamed(files[OFFERED], base / "shop" / "input" / OFFERED)
                elif event["event"] in {"image.done", "image.failed"}:
                    outcomes[f"{event['folder']}/{event['path']}"] = event
                if len(outcomes) == len(WAYS) + 1:
                    break
    finally:
        code = service.stop()
        (result / "events.jsonl").write_text("".join(service.log))
    step = TILE + MARGIN
    sheet = Image.new("RGB", (3 * step + MARGIN, (len(WAYS) + 1) * step + MARGIN), (32, 32, 32))
    for row, (name, (how, _)) in enumerate(WAYS.items()):
        outcome = outcomes.get(f"demo/{name}", {"event": "no answer in time"})
        if outcome["event"] != "image.done":
            console.print(f"[red]{name} ({how}): {outcome['event']} {outcome.get('detail', '')}")
            continue
        console.print(f"{name:14} {how:19} {outcome['milliseconds']['total']:6.0f} ms in the service")
        for column, tile in enumerate(tiles(files[name], base / "output" / outcome["output"], GREEN, 12)):
            tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (MARGIN + column * step, MARGIN + row * step))
    offered = outcomes.get(f"shop/{OFFERED}", {"event": "no answer in time"})
    if is_published(offered):
        (made,) = offered["outputs"]
        show_offered(console, sheet, files[OFFERED], base / "shop" / "output" / made["path"], made["compliance"])
    else:
        console.print(f"[red]{OFFERED} for {PRESET}: {offered['event']} {offered.get('reasons', '')}")
    sheet.save(result / "contact-sheet.png")
    console.print(f"look at    {result / 'contact-sheet.png'}")
    console.print(f"cutouts    {base / 'output'}\noriginals  {base / 'done'}\nlog        {result / 'events.jsonl'}")
    if code != 0:
        console.print(f"[red]the service ended with exit code {code}; its last lines are in the log")
    done = [outcome for outcome in outcomes.values() if is_published(outcome)]
    return 0 if len(done) == len(WAYS) + 1 and code == 0 else 1


def is_published(outcome: dict[str, Any]) -> bool:
    return bool(outcome["event"] == "image.done" and outcome["verdict"] != "review")


def show_offered(
    console: Console, sheet: Image.Image, photograph: Path, made: Path, rules: list[dict[str, str]]
) -> None:
    """The photograph, what was made of it for the marketplace, and each rule with what was measured."""
    table = Table("rule", "measured", "required", "", title=f"{made.name} for {PRESET}", box=None)
    for each in rules:
        table.add_row(each["rule"], each["measured"], each["required"], each["outcome"])
    console.print(table)
    top = MARGIN + len(WAYS) * (TILE + MARGIN)
    for column, path in enumerate((photograph, made)):
        with Image.open(path) as image:
            tile = image.convert("RGB")
        tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(tile, (MARGIN + column * (TILE + MARGIN), top))
    lines = [f"{made.name}: {PRESET}", *(f"{each['outcome']:5} {each['rule']}: {each['measured']}" for each in rules)]
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, 44, subsequent_indent="      "))
    place, font = (MARGIN + 2 * (TILE + MARGIN), top), ImageFont.load_default(15)
    ImageDraw.Draw(sheet).multiline_text(place, text, (255, 255, 255), font, spacing=6)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"), Console()))
