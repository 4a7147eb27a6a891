"""Count the modules whose code runs while one image goes through the service, in all its processes.

    python -m tools.trace_image                     this checkout
    python -m tools.trace_image --beside CHECKOUT   and another one, with the ratio

From the moment before the file is dropped to `image.done`, in a service that is warm. What runs beside the image now
and then (a health sample, a heartbeat) is left out as far as some image went through without it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from PIL import Image

from tools import demo

WARM_UP = 2  # images; the first loads what is loaded on demand
HOOK = """
import mmap, os, sys, threading

folder, package = os.environ["TRACE_FOLDER"], os.environ["TRACE_PACKAGE"]
with open(folder + "/window", "rb") as file:
    window = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)  # the image's number, 0 between two images
calls = os.open(folder + "/calls", os.O_WRONLY | os.O_APPEND)
seen = set()


def note(frame, event, _):
    if event == "call" and window[0] and frame.f_code.co_filename.startswith(package):
        line = f"{window[0]} {frame.f_code.co_filename}\\n"
        if line not in seen:
            seen.add(line)
            os.write(calls, line.encode())


sys.setprofile(note)
threading.setprofile(note)
"""


def modules(checkout: Path, images: int) -> set[str]:
    """Names such as "pipeline/infer.py", of the modules that every one of the images went through."""
    package = checkout.resolve() / "rmbgd"
    with tempfile.TemporaryDirectory(prefix="rmbgd-trace-") as scratch:
        base = Path(scratch)
        (base / "hook").mkdir()
        (base / "hook" / "sitecustomize.py").write_text(HOOK)
        window, calls = base / "window", base / "calls"
        window.write_bytes(b"\0")
        calls.touch()
        os.environ |= {"TRACE_FOLDER": scratch, "TRACE_PACKAGE": f"{package}/"}
        os.environ["PYTHONPATH"] = os.pathsep.join((str(base / "hook"), str(package.parent)))
        os.environ["PYTHONSAFEPATH"] = "1"  # the checkout's package, not the one of the current folder
        photograph = demo.prepare(base / "photographs")["coffee.jpg"]
        service = demo.Service(demo.configure(base))
        try:
            _until(service, "service.ready")
            with window.open("r+b", buffering=0) as file:  # in place: the processes have mapped it
                for number in range(1, WARM_UP + images + 1):
                    image = base / "photographs" / f"{number}.jpg"
                    Image.open(photograph).rotate(number).save(image)  # the same image is not computed twice
                    os.pwrite(file.fileno(), bytes([number]), 0)
                    demo.renamed(image, base / "input" / image.name)
                    _until(service, "image.done")
                    os.pwrite(file.fileno(), b"\0", 0)
                    time.sleep(0.5)  # what follows the image ends before the next one
        finally:
            service.stop()
        lines = [line.split(maxsplit=1) for line in calls.read_text().splitlines()]
    crossed = [{path for at, path in lines if int(at) == number} for number in range(WARM_UP + 1, WARM_UP + images + 1)]
    return {str(Path(path).relative_to(package)) for path in set.intersection(*crossed)}


def _until(service: demo.Service, name: str) -> None:
    if not any(event["event"] == name for event in service.events(demo.PATIENCE)):
        raise SystemExit(f"no {name}; the service wrote: {''.join(service.log[-5:])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout of rmbgd")
    parser.add_argument("--images", type=int, default=5, help="that are counted (default: %(default)s)")
    given = parser.parse_args()
    checkouts = [Path(__file__).parents[1], *([given.beside] if given.beside else [])]
    found = [sorted(modules(checkout, given.images)) for checkout in checkouts]
    ratio = {"ratio": round(len(found[0]) / len(found[1]), 3)} if given.beside else {}
    print(json.dumps({"modules": found, "counts": [len(names) for names in found]} | ratio))
