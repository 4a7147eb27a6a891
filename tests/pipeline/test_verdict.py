"""What a matte says about its image."""

import pytest

from rmbgd.engine.types import MatteReport
from rmbgd.pipeline.finish import verdict_of

pytestmark = pytest.mark.timeout(10)


def matte(*, coverage: float, peak: float, solid: float) -> MatteReport:
    return MatteReport(image_id=1, coverage=coverage, peak=peak, solid=solid, soft=0.0)


def test_a_faint_prediction_is_empty_however_wide():
    """A matte that nowhere reaches one half has no subject, even when it covers everything faintly."""
    assert verdict_of(matte(coverage=0.3, peak=0.49, solid=0.0), empty_below=0.0) == "empty"


def test_a_few_specks_are_empty():
    """Fewer solid pixels than the recipe's share are no subject."""
    assert verdict_of(matte(coverage=0.0001, peak=0.99, solid=0.0004), empty_below=0.0005) == "empty"


def test_the_share_itself_is_enough():
    """Exactly the recipe's share of solid pixels is a subject."""
    assert verdict_of(matte(coverage=0.01, peak=0.99, solid=0.0005), empty_below=0.0005) == "ok"


def test_everything_solid_is_full():
    """A matte that keeps the whole image removed nothing."""
    assert verdict_of(matte(coverage=0.9999, peak=1.0, solid=1.0), empty_below=0.0005) == "full"


def test_a_soft_edge_round_a_large_subject_is_ok():
    """Nearly everything solid is not full while some background went."""
    assert verdict_of(matte(coverage=0.97, peak=1.0, solid=0.97), empty_below=0.0005) == "ok"
