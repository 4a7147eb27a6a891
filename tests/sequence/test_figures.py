"""Figures of a sequence: means over frames that have them, resets, and JSON with a few digits."""

from __future__ import annotations

import json

import pytest

from rmbgd.sequence.figures import SequenceFigures
from rmbgd.sequence.temporal import FrameFigures


def test_without_frames_nothing_is_known() -> None:
    empty = {"frames": 0, "resets": 0, "still_change": None, "warped_error": None, "lag": None}
    assert empty == SequenceFigures().document()


def test_means_are_over_the_frames_that_have_the_figure() -> None:
    figures = SequenceFigures()
    for found in (
        FrameFigures(None, None, None, "first"),
        FrameFigures(0.1, 0.2, None, None),
        FrameFigures(0.2, None, 0.5, None),
        FrameFigures(None, None, None, "cut"),
        FrameFigures(None, None, None, "size"),
    ):
        figures.add(found)
    document = figures.document()
    assert {"frames": 5, "resets": 2, "still_change": pytest.approx(0.15), "warped_error": 0.2, "lag": 0.5} == document
    json.dumps(document)


def test_figures_are_rounded_and_sequences_share_nothing() -> None:
    one, two = SequenceFigures(), SequenceFigures()
    one.add(FrameFigures(1 / 3, 0.0, -1 / 7, None))
    assert [0.333333, 0.0, -0.142857] == [one.document()[name] for name in ("still_change", "warped_error", "lag")]
    assert two.document()["lag"] is None
