"""Decodes every file of the folder in argv[1] as the service does, so that the memory is that of the decoders alone.

Prints one JSON line per file, then one with the highest resident size and every process that was started or asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys

import numpy as np

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError
from rmbgd.imaging.decode import decode_into, probe, read_limited
from rmbgd.imaging.pillow import configure_opencv, configure_pillow

STARTS = {f"os.{call}" for call in ("system", "exec", "posix_spawn", "spawn", "fork", "forkpty")}
STARTS |= {"subprocess.Popen", "pty.spawn"}


def outcome_of(path: str, limits: LimitSettings) -> dict[str, object]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = read_limited(descriptor, limits)
        header = probe(data, limits, animated="refuse", metadata=("copyright",))
        width, height = header.size
        rgb = np.empty((height, width, 3), np.uint8)
        alpha = np.empty((height, width), np.uint8) if header.has_alpha else None
        facts = decode_into(data, header, rgb, alpha)
    except ImageError as error:
        return {"outcome": str(error.reason), "waits": error.maybe_incomplete, "detail": error.detail}
    finally:
        os.close(descriptor)
    planes = rgb if alpha is None else np.dstack([rgb, alpha])
    digest = hashlib.sha256(np.ascontiguousarray(planes)).hexdigest()
    return {"outcome": f"{width}x{height}", "mode": facts.mode, "notes": facts.notes, "pixels": digest}


def main() -> None:
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)
    limits = LimitSettings()
    configure_pillow(limits)
    configure_opencv()
    for name in sorted(os.listdir(sys.argv[1])):
        print(json.dumps({"name": name, **outcome_of(os.path.join(sys.argv[1], name), limits)}), flush=True)
    with open("/proc/self/status") as status:  # ru_maxrss would begin at what the parent had when it forked
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"peak_rss_bytes": peak, "started": started, "children_rss": children}))


if __name__ == "__main__":
    main()
