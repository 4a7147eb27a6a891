"""Clocks that are wrong and clocks that jump: nothing stalls, nothing is skipped, the order of arrival holds (T33)."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import audit
from tests.support.images import assert_cutout_of, sample_image
from tests.support.mounts import false_clock
from tests.support.service import ServiceUnderTest

STAMPS = {
    "zero.png": 0,
    "future.png": 4_102_444_800,  # 2100
    "before-1970.png": -86_400,
    "beyond-32-bits.png": 1 << 33,
    "one-second.png": 1,
    "y2k.png": 946_684_800,
}  # seconds since 1970


def drop_stamped(service: ServiceUnderTest, name: str, data: bytes, seconds: int) -> None:
    fresh = service.desk / "stamped"
    fresh.write_bytes(data)
    os.utime(fresh, (seconds, seconds))
    os.rename(fresh, service.input / name)


def test_stamps_of_any_year_are_no_obstacle(tmp_path: Path) -> None:
    """Files from 1969, 1970, 2100 and 2242 come out in the order of their arrival and once only, over a restart too.

    A version whose times were preserved from long ago replaces a newer one: what counts is that it is another.
    """
    data = {name: sample_image(number) for number, name in enumerate(STAMPS)}
    with ServiceUnderTest(tmp_path, folder={"originals": "keep"}) as service:
        for name, content in data.items():
            drop_stamped(service, name, content, STAMPS[name])
            service.wait_for("image.done", path=name)
        jobs = {event["path"]: event["job"] for event in service.endings()}
        assert sorted(jobs, key=jobs.__getitem__) == list(data)
        service.restart()
        service.turn(2)
        assert service.computed() == len(data)
        for name, content in data.items():
            assert_cutout_of(content, service.output / name)
        drop_stamped(service, "future.png", sample_image(99), STAMPS["y2k.png"])
        service.wait_for("image.done", path="future.png", count=2)
        assert_cutout_of(sample_image(99), service.output / "future.png")


def test_wall_clock_that_jumps(tmp_path: Path) -> None:
    """A board without a battery: the service starts in 1970, the time comes 56 years later, then goes back an hour.

    Arrivals come out in their order all the while; half a file is neither refused early nor forgotten.
    """
    control = tmp_path / "clock"
    control.write_text("@1970-01-01 00:01:00")
    data = {"half.png": (half := sample_image(500))}
    settings = {"intake": {"incomplete_timeout": 3600.0}, "service": {"health_interval": 1.0}}
    service = ServiceUnderTest(tmp_path / "service", settings=settings)
    with service.start(environment=false_clock(control)):
        (service.input / "half.png").write_bytes(half[:1000])
        service.wait_for("intake.incomplete", path="half.png")
        moments = ["@1970-01-01 00:02:00", "@2026-11-22 12:00:00", "@2026-11-22 11:00:00", "@2026-11-23 11:00:00"]
        for step, moment in enumerate(moments):
            (tmp_path / "clock.new").write_text(moment)
            os.replace(tmp_path / "clock.new", control)
            for number in range(2):
                data |= service.serve_all({f"{step}-{number}.png": sample_image(10 * step + number)})
            service.wait_for("health", since=len(service.events))
        assert {event["time"][:4] for event in service.events} == {"1970", "2026"}, "the clock was not false"
        assert service.endings("half.png") == []
        with open(service.input / "half.png", "ab") as writer:
            writer.write(half[1000:])
        service.wait_for("image.done", path="half.png")
        jobs = {event["path"]: event["job"] for event in service.endings() if event["path"] != "half.png"}
        assert sorted(jobs, key=jobs.__getitem__) == sorted(jobs)
        assert service.named("service.stalled") == []
        assert all(value >= 0 for event in service.endings() for value in event["milliseconds"].values())
        assert service.stop() == 0
        control.write_text("@1970-01-01 00:01:00")
        service.start(environment=false_clock(control))
        data |= service.serve_all({"again.png": sample_image(600)})
    audit.assert_complete(service.roots, data)
