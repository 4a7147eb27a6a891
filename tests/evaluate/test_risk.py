"""Risk and coverage by hand-computed curves; scores from a log of the service."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rmbgd.config.settings import LimitSettings
from rmbgd.errors import ConfigError
from rmbgd.evaluate.pairs import MaskPair
from rmbgd.evaluate.risk import aurc, failed, found_by, risk_curve, scores_for
from rmbgd.evaluate.run import JudgedPair


def test_a_curve_by_hand() -> None:
    """Of ten images the lowest, the third lowest and the best fail."""
    curve = risk_curve([x / 10 for x in range(10)], [True, False, True, *[False] * 6, True], [0.1, 0.3, 1.0])
    assert (10, 3) == (curve.images, curve.failures)
    assert [1, 3, 10] == [each.images for each in curve.reviewed]
    assert [1 / 3, 2 / 3, 1.0] == pytest.approx([each.found for each in curve.reviewed])
    risks = [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7, 2 / 8, 2 / 9, 3 / 10]
    assert sum(risks) / 10 == pytest.approx(curve.aurc)
    assert (1 / 8 + 2 / 9 + 3 / 10) / 10 == pytest.approx(curve.ideal)


def test_images_of_one_score_share_their_failures() -> None:
    scores, failures = np.full(4, 0.5), np.array([True, False, False, False])
    assert [0.25, 0.5] == found_by(scores, failures, [0.25, 0.5])
    assert aurc(scores, failures) == pytest.approx(0.25)


def test_an_interval_holds_its_figure_and_is_the_same_again() -> None:
    scores, failures = [x / 50 for x in range(50)], [x % 7 == 0 for x in range(50)]
    first, second = (risk_curve(scores, failures) for _ in range(2))
    assert first == second
    for each in first.reviewed:
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.found <= each.high


def test_without_failures_there_is_nothing_to_find() -> None:
    curve = risk_curve([0.1, 0.9], [False, False])
    assert [(1.0, None)] * 3 == [(each.found, each.low) for each in curve.reviewed]
    assert (0, 0) == (curve.aurc, curve.ideal)


def test_a_failure_is_a_low_iou_or_foreground_in_an_empty_scene() -> None:
    pair = MaskPair("a", "a.png", "a.png")
    figures = [{"iou": 0.69}, {"iou": 0.7}, {"false_foreground": 0.01}, {"false_foreground": 0.0}]
    assert [True, False, True, False] == [failed(JudgedPair(pair, figures=each)) for each in figures]


def test_scores_come_from_the_last_line_of_an_output(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [
        {"event": "image.done", "output": "/srv/out/shoes/a.png", "score": 0.2},
        {"event": "image.done", "output": "/srv/out/shoes/a.png", "score": 0.4},
        {"event": "image.done", "output": "/srv/out/b.png"},
        {"event": "health"},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    pairs = [MaskPair(name, f"true/{name}.png", f"found/{name}.png") for name in ("shoes/a", "b")]
    assert {"shoes/a": 0.4} == scores_for(pairs, str(log), "true", "u2netp", LimitSettings())


def test_a_log_without_scores_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"event": "health"}\n')
    with pytest.raises(ConfigError, match="no line of it has a score"):
        scores_for([], str(log), "true", "u2netp", LimitSettings())
