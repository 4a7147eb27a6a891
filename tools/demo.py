"""Three photographs through the real service, dropped in the three ways people drop files, and a sheet to look at.

Starts `rmbgd run` on temporary folders as an operator would, and knows nothing of its inside: only folders and its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 300.0  # seconds until the demo gives up on the service; a slow single-core board loads torch in a minute
TILE = 360  # pixels, the longer side of one image on the sheet


def written_slowly(source: Path, target: Path) -> None:
    """In eight pieces with pauses, the file open all the while, as over a thin line."""
    data = source.read_bytes()
    step = -(-len(data) // 8)
    with target.open("wb") as stream:
        for start in range(0, len(data), step):
            stream.write(data[start : start + step])
            stream.flush()
            time.sleep(0.25)  # the pause is what is shown


def renamed(source: Path, target: Path) -> None:
    """Written under a hidden name and renamed when whole: the way that integrators should choose."""
    partial = target.with_name(f".{target.name}.part")
    partial.write_bytes(source.read_bytes())
    partial.rename(target)


WAYS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {  # photograph -> (how it is dropped, by what)
    "astronaut.png": ("copied", shutil.copyfile),
    "chelsea.jpg": ("written slowly", written_slowly),
    "coffee.jpg": ("renamed into place", renamed),
}


def prepare(folder: Path) -> dict[str, Path]:
    """The public-domain photographs that scikit-image carries, as the files a user would have."""
    carried = resources.files("skimage") / "data"
    folder.mkdir()
    files = {name: folder / name for name in WAYS}
    for file in files.values():
        with (carried / f"{file.stem}.png").open("rb") as stream, Image.open(stream) as opened:
            opened.convert("RGB").save(file, quality=92)
    return files


def configure(base: Path) -> Path:
    for name in ("input", "output", "done", "failed", "state", "run"):
        (base / name).mkdir()
    path = base / "rmbgd.toml"
    path.write_text(
        f"""[service]
state_directory = "{base}/state"
runtime_directory = "{base}/run"
models_directory = "{base}/state/models"

[[folder]]
name = "demo"
input = "{base}/input"
output = "{base}/output"
done = "{base}/done"
failed = "{base}/failed"
"""
    )
    return path


class Service:
    """The service as a process, and its events as they come."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "rmbgd", "run", "--config", str(config)]
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.log: list[str] = []
        self._events: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            try:
                self._events.put(json.loads(line))
            except json.JSONDecodeError:
                self._events.put({"event": "not.json", "line": line})
        self._events.put(None)

    def events(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Events until the service ends or time.monotonic() reaches `deadline`."""
        with contextlib.suppress(Empty):
            while (left := deadline - time.monotonic()) > 0 and (event := self._events.get(timeout=left)):
                yield event

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        return code


def checkerboard(size: tuple[int, int], cell: int = 12) -> Image.Image:
    board = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(board)
    for top in range(0, size[1], cell):
        for left in range((top // cell % 2) * cell, size[0], 2 * cell):
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=(204, 204, 204))
    return board


def over(cutout: Image.Image, background: Image.Image) -> Image.Image:
    background.paste(cutout, (0, 0), cutout)
    return background


def contact_sheet(pairs: list[tuple[Path, Path]], target: Path) -> None:
    """Each photograph beside its cutout on a checkerboard and on pure green, where any rim shows."""
    margin = 12
    sheet = Image.new("RGB", (3 * TILE + 4 * margin, len(pairs) * (TILE + margin) + margin), (32, 32, 32))
    for row, (photograph, cutout_path) in enumerate(pairs):
        with Image.open(photograph) as opened:
            image = opened.convert("RGB")
        with Image.open(cutout_path) as opened:
            cutout = opened.convert("RGBA")
        if cutout.size != image.size:
            raise SystemExit(f"{cutout_path}: is {cutout.size}, the photograph is {image.size}")
        green = Image.new("RGB", cutout.size, (0, 255, 0))
        tiles = (image, over(cutout, checkerboard(cutout.size)), over(cutout, green))
        for column, tile in enumerate(tiles):
            tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (margin + column * (TILE + margin), margin + row * (TILE + margin)))
    sheet.save(target)


def run(result: Path, console: Console) -> int:
    result.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="service-", dir=result.resolve()))
    files = prepare(base / "photographs")
    outcomes: dict[str, dict[str, Any]] = {}
    service = Service(configure(base))
    try:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("starting the service", total=len(WAYS))
            for event in service.events(time.monotonic() + PATIENCE):
                if event["event"] == "service.ready":
                    progress.update(bar, description=f"service ready on {event['device']}; dropping photographs")
                    for name, (_, drop) in WAYS.items():
                        drop(files[name], base / "input" / name)
                if event["event"] in {"image.done", "image.failed"}:
                    outcomes[str(event["path"])] = event
                    progress.update(bar, advance=1, description=f"{event['path']}: {event['event']}")
                if len(outcomes) == len(WAYS):
                    break
    finally:
        code = service.stop()
        (result / "events.jsonl").write_text("".join(service.log))
    pairs = []
    for name, (how, _) in WAYS.items():
        outcome = outcomes.get(name, {"event": "no answer in time"})
        if outcome["event"] != "image.done":
            console.print(f"[red]{name} ({how}): {outcome['event']} {outcome.get('detail', '')}")
            continue
        times = outcome["milliseconds"]
        spent = ", ".join(f"{stage} {value:.0f}" for stage, value in times.items() if stage != "total")
        console.print(f"{name:14} {how:19} {times['total']:6.0f} ms in the service ({spent})")
        pairs.append((files[name], base / "output" / str(outcome["output"])))
    if len(pairs) == len(WAYS):
        contact_sheet(pairs, result / "contact-sheet.png")
        console.print(f"look at    {result / 'contact-sheet.png'}")
    console.print(f"cutouts    {base / 'output'}\noriginals  {base / 'done'}\nlog        {result / 'events.jsonl'}")
    if code != 0:
        console.print(f"[red]the service ended with exit code {code}; its last lines are in the log")
    return 0 if len(pairs) == len(WAYS) and code == 0 else 1


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"), Console()))
