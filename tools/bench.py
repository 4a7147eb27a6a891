"""Measures what is claimed of rmbgd: one command for each subject, each with its own --help.

    python -m tools.bench pipeline    decode, resize, compose, encode, publish, beside Pillow's way
    python -m tools.bench checks      looking for parts of a file that were never written, beside the whole pipeline
    python -m tools.bench service     the service around a network that costs nothing: start, latency, claims, memory
    python -m tools.bench frames      frames of a film through the service, in order and steady, around a null network
    python -m tools.bench live        a live frame beside a backlog of stills and a film, around a network of fixed time
    python -m tools.bench temporal    mattes of made sequences, steadied: flicker, lag, error at moving edges, time
    python -m tools.bench model       the networks on a CPU, beside the plainest implementation of them
    python -m tools.bench filters     how images are brought to a network's size, on images with truth
    python -m tools.bench refine      what refining alpha's edges gains and costs, on images with truth
    python -m tools.bench deliver     files of an image: sets, presets, subjects, score, preview
    python -m tools.bench load        from a checkpoint to a ready network, beside transformers
    python -m tools.bench race        torch, ONNX Runtime and OpenVINO on a CPU, each in its precisions
    python -m tools.bench gpu         everything that is claimed about a GPU

Each prints tables, then one line of JSON; --out FOLDER keeps both there as bench_NAME.txt and bench_NAME.json, and
--quick shows that it works, with figures that mean nothing. To be run in the checkout: it uses code of the tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.tables import Report

SUBJECTS = (
    "pipeline",
    "checks",
    "service",
    "frames",
    "films",
    "live",
    "temporal",
    "model",
    "filters",
    "refine",
    "deliver",
    "load",
    "race",
)
BENCHES = {name: f"tools.benches.{name}" for name in SUBJECTS}
BENCHES["gpu"] = "tools.gpubench.sections"


def main(words: list[str]) -> int:
    if not words or words[0] not in BENCHES:
        print(__doc__)
        return 0 if words in (["-h"], ["--help"]) else 2
    name = words[0]
    bench: Any = importlib.import_module(BENCHES[name])  # add_arguments(parser), run(options) -> Report
    parser = argparse.ArgumentParser(
        f"bench {name}", description=bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for tables and JSON, as files")
    parser.add_argument("--quick", action="store_true", help="does it work at all? no figure means anything")
    bench.add_arguments(parser)
    options = parser.parse_args(words[1:])
    report: Report = bench.run(options)
    text = report.text()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"bench_{name}.txt").write_text(text)
        (options.out / f"bench_{name}.json").write_text(json.dumps(report.found, indent=1))
    Console().print(text, markup=False, highlight=False, soft_wrap=True, end="")
    print(json.dumps(report.found))
    return report.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
