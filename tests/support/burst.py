"""Writes many small bitmaps as fast as it can, each different: `python burst.py FOLDER FIRST COUNT`."""

from __future__ import annotations

import os
import struct
import sys

SIDE = 8
HEADER = struct.pack(
    "<2sIHHIIiiHHIIiiII", b"BM", 54 + 3 * SIDE * SIDE, 0, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0
)


def bitmap(number: int) -> bytes:
    """8 x 8 pixels, green 200, with the number in red and blue."""
    red, blue = divmod(number % 65_536, 256)
    return HEADER + bytes((blue, 200, red)) * (SIDE * SIDE - 1) + bytes((number >> 16, 200, 0))


def main() -> None:
    folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for number in range(first, first + count):
        descriptor = os.open(f"{folder}/{number:05}.bmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, bitmap(number))
        os.close(descriptor)


if __name__ == "__main__":
    main()
