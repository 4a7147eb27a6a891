"""SIGKILL at every step and at random moments: nothing lost, nothing twice, nothing half (T25, T26)."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from rmbgd.errors import Reason
from rmbgd.testing.engine import POISON_COLOUR
from tests.support import audit
from tests.support.images import encoded, expected_cutout, rgba_of, sample_image
from tests.support.service import ServiceUnderTest

KILLS, IMAGES = 40, 300  # the full measure is 200 kills over 1,000 images, some ten minutes
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


def assert_delivered(service: ServiceUnderTest, number: int) -> None:
    """The newest versions are published, archived once, and the bad one refused once. Then takes the originals away."""
    delivered = delivery(number)
    bad = delivered.pop("bad.png")
    assert audit.files(service.output) == sorted(delivered)
    for name, data in delivered.items():
        assert (rgba_of(service.output / name) == expected_cutout(data)).all(), f"{name} is not version {number}"
    assert {name: (service.done / name).read_bytes() for name in audit.files(service.done)} == delivered
    assert audit.files(service.failed) == ["bad.png", "bad.png.error.json"]
    assert (service.failed / "bad.png").read_bytes() == bad
    for root in (service.done, service.failed):
        for name in audit.files(root):
            (root / name).unlink()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_before_each_step(tmp_path: Path) -> None:
    """Killed before its first, second ... last file operation or commit of a delivery, the next start ends it right."""
    service = ServiceUnderTest(tmp_path, settings=PATIENT)
    service.options["fuse"] = str(service.fuse)
    with service:
        for step in range(STEPS_MAXIMUM):
            service.fuse.write_text(str(step + 1))
            for name, data in delivery(step).items():
                service.drop(name, data)
            service.wait(lambda: service.ended or is_over(service), "an end, of one or the other kind", alive=False)
            burnt = service.ended or not service.fuse.exists()
            if burnt:
                service.reap()
                service.start()
                service.wait(lambda: is_over(service), f"everything after a kill before step {step + 1}")
            assert_delivered(service, step)
            if not burnt:
                break
        else:
            pytest.fail("the fuse was never longer than the delivery")
        service.fuse.unlink()
        assert step > 20, "the steps were not counted"
        assert service.stop() == 0
    told = audit.assert_each_told(service.recorded("image.done") + service.recorded("image.failed"))
    assert len(told) == 4 * (step + 1), "something was done twice, or not told"
    audit.assert_ledger_settled(service.state, done=3 * (step + 1), failed=step + 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Many kills at random steps and times, in start-up, at work and in recovery: every image comes out once."""
    dice = random.Random(20_261_122)
    data = {f"{number % 9}/{number}.png": sample_image(number) for number in range(IMAGES)}
    data |= {f"bad/{number}.png": (b"no image %06d " % number) * 20 for number in range(10)}
    bad = {name: Reason.UNIDENTIFIED for name in data if name.startswith("bad/")}
    service = ServiceUnderTest(tmp_path, settings={"intake": {"attempts": 10}}, options={"engine": {"delay": 0.01}})
    service.options["fuse"] = str(service.fuse)
    names = sorted(data)
    dice.shuffle(names)
    share = len(names) // KILLS + 1
    for kill in range(KILLS):
        for name in names[kill * share : (kill + 1) * share]:
            service.drop(name, data[name])
        if kill % 2:
            service.fuse.write_text(str(dice.randint(1, 120)))
        service.start(ready=False)
        try:
            assert service.process is not None
            service.process.wait(dice.uniform(0.3, 2.0))
        except subprocess.TimeoutExpired:
            service.kill()
        else:
            service.reap()
        service.fuse.unlink(missing_ok=True)
    with service.start():
        service.wait(service.is_idle, "the rest after the last kill")
    audit.assert_complete(service.roots, data, bad=bad)
    audit.assert_ledger_settled(service.state, done=len(data) - len(bad), failed=len(bad))
    told = audit.assert_each_told(service.recorded("image.done") + service.recorded("image.failed"))
    assert len(told) == len(data)


def test_image_that_kills_the_service_is_set_aside(tmp_path: Path) -> None:
    """At its third attempt it is refused as crash_loop; every other image comes out."""
    poison = rgba_of(sample_image(1))[..., :3].copy()
    poison[0, 0] = POISON_COLOUR
    data = {f"{number}.png": sample_image(number) for number in range(2, 20)} | {"poison.png": encoded(poison)}
    service = ServiceUnderTest(tmp_path, options={"engine": {"poison": "kill"}})
    for name, content in data.items():
        service.drop(name, content)
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
