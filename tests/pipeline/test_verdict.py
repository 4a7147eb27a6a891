"""What a matte says about its image."""

import pytest

from rmbgd.engine.types import MatteReport
from rmbgd.pipeline.finish import verdict_of

pytestmark = pytest.mark.timeout(10)


@pytest.mark.parametrize(
    ("verdict", "coverage", "peak", "solid", "empty_below"),
    [
        pytest.param("empty", 0.3, 0.49, 0.0, 0.0, id="faint everywhere: nowhere reaches one half"),
        pytest.param("empty", 0.0001, 0.99, 0.0004, 0.0005, id="fewer solid pixels than the recipe's share"),
        pytest.param("ok", 0.01, 0.99, 0.0005, 0.0005, id="exactly the recipe's share is enough"),
        pytest.param("full", 0.9999, 1.0, 1.0, 0.0005, id="everything solid: nothing was removed"),
        pytest.param("ok", 0.97, 1.0, 0.97, 0.0005, id="a soft edge round a large subject"),
    ],
)
def test_what_a_matte_says(verdict: str, coverage: float, peak: float, solid: float, empty_below: float) -> None:
    """Empty without a subject, full without a background, by absolute values."""
    matte = MatteReport(image_id=1, coverage=coverage, peak=peak, solid=solid, soft=0.0)

    assert verdict == verdict_of(matte, empty_below=empty_below)
