"""How long a checkpoint takes to become a ready network, and what memory it costs: rmbgd against transformers.

Every run is a fresh process on a warm page cache; runs of the ways alternate, so that a busy machine hurts them alike,
and the shortest is shown.

ways      `rmbgd`: load_model until the module can compute. `rmbgd, digest checked`: until its provenance is known too.
          `transformers`: AutoModelForImageSegmentation.from_pretrained of the same folder, until the network can
          compute (folded); `transformers, not folded`: until from_pretrained returns.
call      seconds from the call to that point; libraries are imported before the clock starts
start     seconds from the start of Python to that point, imports and all: what a restarted process waits
peak      highest resident size during the call, over that before it: every page, those of the mapped file too
private   anonymous memory after the call, over that before it: what the kernel cannot take back
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.gpubench.plan import ROOT
from tools.tables import Report, table

WAYS = ("rmbgd", "rmbgd, digest checked", "transformers", "transformers, not folded")


def load_once(way: str, folder: Path) -> dict[str, float]:
    """Load once in this process and measure."""
    started = time.perf_counter()
    import torch

    torch.set_num_threads(2)
    if way.startswith("rmbgd"):
        from rmbgd.models.load import load_model
    else:
        from transformers import AutoModelForImageSegmentation
        from transformers.utils import logging

        import rmbgd.models.hf  # noqa: F401, registers the classes

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    imported, before = time.perf_counter(), memory()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    if way.startswith("rmbgd"):
        loaded = load_model(folder, device="cpu", dtype=torch.float32)
        if way == "rmbgd, digest checked":
            _ = loaded.provenance
    else:
        model = AutoModelForImageSegmentation.from_pretrained(folder, dtype=torch.float32)
        if way == "transformers":
            model.refold()
    ready, after = time.perf_counter(), memory()
    return {
        "call_s": ready - imported,
        "start_s": ready - started,
        "peak_mb": after["VmHWM"] - before["VmRSS"],
        "private_mb": after["RssAnon"] - before["RssAnon"],
    }


def memory() -> dict[str, float]:
    """/proc/self/status, MB (10⁶ bytes)."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 / 1e6 for row in rows if row[-1] == "kB"}


def prepared(folder: Path, scratch: Path, order: str | None) -> Path:
    """The folder as transformers and rmbgd both take it: the weights by a link, a config.json of ours."""
    from rmbgd.models.registry import PatchOrder
    from rmbgd.models.store import CONFIG, WEIGHTS, resolve

    place = resolve(folder / WEIGHTS)
    choice = place.patch_order(PatchOrder(order) if order else None)
    (scratch / WEIGHTS).symlink_to(place.weights.resolve())
    (scratch / CONFIG).write_text(json.dumps({"model_type": "birefnet", "patch_order": choice.order.value}))
    return scratch


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The least of each figure over `rounds` fresh processes a way."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    (folder / "model.safetensors").read_bytes()  # warm page cache
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "tools.benches.load", way, str(folder)]
            answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            runs[way].append(json.loads(answer.stdout.splitlines()[-1]))
    return {way: {key: min(row[key] for row in rows) for key in rows[0]} for way, rows in runs.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with model.safetensors")
    parser.add_argument("--patch-order", choices=("channel_first", "tile_first"), help="where nothing beside it tells")
    parser.add_argument("--rounds", type=int, default=5, help="processes a way (default: 5)")


def run(chosen: argparse.Namespace) -> Report:
    rounds = 1 if chosen.quick else chosen.rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepared(chosen.folder, Path(scratch), chosen.patch_order)
        size = (folder / "model.safetensors").stat().st_size / 1e6
        ways = measure(folder, rounds)
    rows = []
    for way, row in ways.items():
        cells = (row["call_s"], row["start_s"], row["peak_mb"], row["peak_mb"] / size, row["private_mb"])
        rows.append([way, *(f"{each:,.2f}" for each in cells)])
    title = f"{size:.0f} MB in the file, loaded in float32; shortest of {rounds} processes"
    shown = table(title, "way", "call s", "start s", "peak MB", "of file", "private MB", rows=rows)
    return Report([shown], {"file_mb": round(size, 1), "ways": ways})


if __name__ == "__main__":  # one process that loads once
    print(json.dumps(load_once(sys.argv[1], Path(sys.argv[2]))))
