"""SIGKILL at every step, and by an image: nothing lost, nothing twice, nothing half (T25, T26)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rmbgd.errors import Reason
from tests.conftest import CampaignPart
from tests.support import audit
from tests.support.images import poisoned, sample_image, samples
from tests.support.service import ServiceUnderTest

STEPS_MAXIMUM = 400  # more steps than this for four images is a defect of the test
PATIENT = {"intake": {"attempts": 10}}  # kills that the image has nothing to do with must not set it aside


def delivery(number: int) -> dict[str, bytes]:
    """New versions of the same names each time: an image, its twin, one in a folder, and no image at all."""
    return {
        "a.png": sample_image(number),
        "twin.png": sample_image(number),
        "s/b.png": sample_image(10_000 + number),
        "bad.png": (b"no image, number %06d " % number) * 20,
    }


def is_over(service: ServiceUnderTest) -> bool:
    return service.is_idle() and not [name for name in audit.files(service.output) if ".rmbgd" in name]


def assert_delivered(service: ServiceUnderTest, number: int, recipe: dict[str, Any]) -> None:
    """The newest versions are published, archived once, and the bad one refused once. Then takes the originals away."""
    audit.assert_complete(service.roots, delivery(number), bad={"bad.png": Reason.UNIDENTIFIED}, recipe=recipe)
    assert audit.files(service.done) == ["a.png", "s/b.png", "twin.png"]
    assert audit.files(service.failed) == ["bad.png", "bad.png.error.json"]
    for kept in (root / name for root in (service.done, service.failed) for name in audit.files(root)):
        kept.unlink()


@pytest.mark.campaign
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", audit.RECIPES.values(), ids=audit.RECIPES)
def test_killed_before_each_step(tmp_path: Path, campaign_part: CampaignPart, recipe: dict[str, Any]) -> None:
    """Killed before its first, second ... last file operation or commit of a delivery, the next start ends it right.

    In a part of the campaign every so many steps, others for each commit.
    """
    service = ServiceUnderTest(tmp_path, settings=PATIENT, recipe=recipe)
    service.options["fuse"] = str(service.fuse)
    with service:
        for round_, step in enumerate(campaign_part.of(range(STEPS_MAXIMUM))):
            service.fuse.write_text(str(step + 1))
            service.drop_all(delivery(round_))
            service.wait(lambda: service.ended or is_over(service), "an end, of one or the other kind", alive=False)
            burnt = service.ended or not service.fuse.exists()
            if burnt:
                service.reap()
                service.start()
                service.wait(lambda: is_over(service), f"everything after a kill before step {step + 1}")
            assert_delivered(service, round_, recipe)
            if not burnt:
                break
        else:
            pytest.fail("the fuse was never longer than the delivery")
        service.fuse.unlink()
        assert step > 20, "the steps were not counted"
        assert service.stop() == 0
    told = audit.assert_each_told(service.recorded("image.done") + service.recorded("image.failed"))
    assert len(told) == 4 * (round_ + 1), "something was done twice, or not told"
    audit.assert_ledger_settled(service.state, done=3 * (round_ + 1), failed=round_ + 1)


def test_image_that_kills_the_service_is_set_aside(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path, options={"engine": {"poison": "kill"}})
    data = service.drop_all(samples(range(2, 20)) | {"poison.png": poisoned(1)})
    for _ in range(5):
        service.start(ready=False)
        service.wait(lambda: service.ended or service.is_idle(), "an end, of one or the other kind", alive=False)
        if not service.ended:
            break
        service.reap()
    else:
        pytest.fail(f"killed five times: {service.tail()}")
    service.stop()
    audit.assert_complete(service.roots, data, bad={"poison.png": Reason.CRASH_LOOP})
