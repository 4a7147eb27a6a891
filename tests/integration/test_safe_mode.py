"""A service that keeps dying: safe mode in the real process, entered, served from, and left by itself (F8)."""

from __future__ import annotations

import json
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rmbgd.cli.status_text import rows
from rmbgd.errors import Reason
from rmbgd.service import start_record
from rmbgd.service.start_record import Start, StartRecord
from tests.support import audit
from tests.support.gpu_service import GpuUnderTest
from tests.support.images import poisoned, sample_image, samples
from tests.support.service import ServiceUnderTest, Settings

STARTS = 2  # of which the next one is careful; the default is one more
LONG = 3600.0  # s; nobody waits for it


def careful(*, quiet: float = LONG, **tables: Any) -> Settings:
    service = {"safe_starts": STARTS, "safe_quiet": quiet, "status_interval": 0.1}
    return {"service": service | tables.pop("service", {})} | tables


def die_of_an_image(service: ServiceUnderTest, times: int = STARTS) -> None:
    for _ in range(times):
        service.start(ready=False)
        service.wait(lambda: service.ended, "the image that kills", alive=False)
        assert service.reap() == -signal.SIGKILL


def remember_deaths(service: ServiceUnderTest) -> None:
    """As if it had been killed so often: what is left of that is the record."""
    now = start_record.moment(time.monotonic(), time.time())
    start_record.write(service.state, StartRecord(tuple(Start(*now, str(number)) for number in range(STARTS))))


def test_a_gpu_service_that_keeps_dying_serves_from_the_cpu_and_comes_back(tmp_path: Path) -> None:
    """The CPU, as the event says, for a quiet time; then everything again, without a new process and without a loss."""
    settings = careful(quiet=1.0, engine={"device": "cuda:0"})
    data = samples(range(8))
    service = GpuUnderTest(tmp_path, settings=settings)
    remember_deaths(service)
    with service:
        (told,) = service.named("service.safe_mode")
        assert told["causes"] == ["died without a word"] * STARTS
        service.drop_all(data)
        service.wait_for("service.ready", device="cuda:0")
        service.wait_for_endings(len(data))
        assert service.made_by("after.png", sample_image(99))[0] == "cuda:0"

        assert {done["batch"] for done in service.named("image.done", device="cpu")} <= {1}
        assert service.named("service.ready")[0]["device"] == "cpu"
        assert service.named("service.stopping")[0]["cause"] == "safe mode is over"
        assert [event["exit_code"] for event in service.named("service.stop")] == [0]
        assert {event["pid"] for event in service.events} == {service.pid}
        assert service.named("service.safe_mode") == [told]
    audit.assert_settled(service, data | {"after.png": sample_image(99)})


def test_images_of_the_crashes_are_held_back_and_others_served(tmp_path: Path) -> None:
    """What was in work when the service died waits for the end of safe mode, which an orderly stop is; none is lost."""
    settings = careful(intake={"attempts": 5})
    data = samples(range(6)) | {"poison.png": poisoned(1)}
    service = ServiceUnderTest(tmp_path, settings=settings, options={"engine": {"poison": "kill"}})
    service.drop_all(data)
    die_of_an_image(service)
    with service.start():
        held = audit.claimed(service.input)
        assert [name for name in held if "poison" in name]
        service.turn(3)
        assert audit.claimed(service.input) == held
        record = json.loads((service.runtime / "status.json").read_text())
        assert "the last starts died" in next(
            row.text for row in rows(record, datetime.now(UTC)) if row.label == "safe mode"
        )
        assert service.named("service.safe_mode")[0]["causes"] == ["died without a word"] * STARTS
    service.options["engine"] = {}
    with service.start():
        service.wait(service.is_idle, "what was held back")
    assert len(service.named("service.safe_mode")) == 1
    audit.assert_settled(service, data)


def test_an_image_that_kills_is_refused_at_its_third_attempt_all_the_same(tmp_path: Path) -> None:
    """Held back in safe mode, it goes alone afterwards, kills again, and is set aside; everything else comes out."""
    data = samples(range(6)) | {"poison.png": poisoned(1)}
    service = ServiceUnderTest(tmp_path, settings=careful(quiet=1.0), options={"engine": {"poison": "kill"}})
    service.drop_all(data)
    die_of_an_image(service, STARTS + 1)  # the last of them in safe mode, and then without
    with service.start():
        service.wait(service.is_idle, "every image, those held back too")
    assert len(service.named("service.stopping", cause="safe mode is over")) >= 1
    audit.assert_settled(service, data, bad={"poison.png": Reason.CRASH_LOOP})


def test_with_require_gpu_safe_mode_waits(tmp_path: Path) -> None:
    """Who prefers waiting over a lesser model keeps that wish: nothing is claimed until the GPU is tried again."""
    settings = careful(quiet=1.0, engine={"device": "cuda:0"}, health={"require_gpu": True})
    data = samples(range(5))
    service = GpuUnderTest(tmp_path, settings=settings)
    service.drop_all(data)
    remember_deaths(service)
    with service.start():
        assert service.wait_for("service.safe_mode")["waits"]
        service.wait_for("service.ready", device="cuda:0")
        service.wait_for_endings(len(data))
    assert {event["device"] for event in service.named("image.done")} == {"cuda:0"}
    audit.assert_settled(service, data)


def test_a_stop_while_safe_mode_is_left_is_a_stop(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path, settings=careful(quiet=1.0))
    remember_deaths(service)
    service.hold.touch()
    service.drop("a.png", sample_image(1))
    service.start(ready=False)
    service.wait_for("service.stopping", cause="safe mode is over")
    service.signal(signal.SIGTERM)
    service.hold.unlink()
    assert service.reap() == 0
    with service.start():
        service.wait(service.is_idle, "the image")
    audit.assert_settled(service, {"a.png": sample_image(1)})
