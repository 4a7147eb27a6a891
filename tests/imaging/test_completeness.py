"""End checks of files that change meanwhile. Whole and cut files: see intake's test_file_checks."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from rmbgd.imaging.completeness import Tail, tail_of
from tests.imaging.builders import photo, saved


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_that_shrinks_meanwhile_is_answered(form: str) -> None:
    """Its size was taken, then its writer truncated it: an answer, never an error."""
    data = saved(Image.fromarray(photo(6, 5)), form)
    descriptor = os.memfd_create("shrinking")
    try:
        os.write(descriptor, data)
        for size in range(len(data) - 1, -1, -1):
            os.truncate(descriptor, size)
            assert tail_of(descriptor, len(data)) in Tail
    finally:
        os.close(descriptor)
