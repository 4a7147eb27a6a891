"""Reads the sensor once for each line on stdin, and answers with one JSON line.

In a process of its own, because a driver's library is loaded once and for all.
"""

from __future__ import annotations

import json
import sys

from rmbgd.engine.sensors.choose import choose_sensor

TIMEOUT = 0.3  # s


def main() -> None:
    sensor, _ = choose_sensor("nvml", TIMEOUT)
    print(json.dumps({"source": sensor.source}), flush=True)
    for _ in sys.stdin:
        reading = sensor.read()
        answer = {name: getattr(reading, name) for name in ("temperature", "power", "problem", "detail")}
        print(json.dumps(answer | {"unsupported": sorted(reading.unsupported)}), flush=True)


if __name__ == "__main__":
    main()
