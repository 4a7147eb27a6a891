"""POLICY: what a matte says about its picture. Absolute values only: nothing is stretched, so nothing is made up.

Pure: knows no files, threads or events.
"""

from __future__ import annotations

from typing import Literal

from rmbgd.engine.base import MatteReport

Verdict = Literal["ok", "empty", "full"]


def verdict_of(matte: MatteReport, *, empty_below: float) -> Verdict:
    """`empty`: there is no subject; `full`: there is no background. `empty_below` is a share of pixels, 0..1."""
    if matte.solid < empty_below or matte.peak < 0.5:
        return "empty"
    if matte.solid > 1.0 - empty_below and matte.coverage > 0.999:
        return "full"
    return "ok"
