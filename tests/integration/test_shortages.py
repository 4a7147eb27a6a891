"""Too little memory, no more tasks, hardly any processor: the service goes on, and every image comes out."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from tests.integration.test_process import STALL_AFTER, WATCHFUL, with_child
from tests.support import audit
from tests.support.images import samples
from tests.support.limits import group
from tests.support.service import ServiceUnderTest

HEADROOM = 96 << 20  # bytes of memory beyond what the idle service has
TOO_MUCH = 1024  # MiB that the engine tries to take
STARVED = 0.05  # of one processor


def test_kernel_takes_the_engine_when_memory_is_short(tmp_path: Path) -> None:
    with with_child(tmp_path, orders=str(tmp_path / "orders")) as service:
        with group("memory", service.pid) as limited:
            (old,) = service.children()
            limited.add(old)
            service.turn()
            limited.limit_memory(limited.memory() + HEADROOM)
            service.steps([f"eat:{TOO_MUCH}"])
            data = service.serve_all(samples(range(10)))
            (fault,) = service.named("engine.fault")
            assert limited.killed_for_memory() == 1
            assert "SIGKILL" in fault["detail"]
            (fresh,) = service.children()
            assert fresh != old
        assert {event["pid"] for event in service.events} == {service.pid}
    audit.assert_settled(service, data)


def test_no_task_can_be_started(tmp_path: Path) -> None:
    with with_child(tmp_path, orders=str(tmp_path / "orders")) as service:
        service.turn()
        (old,) = service.children()
        with group("pids", service.pid) as limited:
            limited.limit_tasks(1)
            os.kill(old, signal.SIGKILL)
            data = service.drop_all(samples(range(10)))
            service.wait_for("engine.fault", count=2)  # that it died, and that another cannot start
            assert service.children() == []
            limited.limit_tasks(None)
            service.wait_for_endings(1 + len(data))
        assert {event["pid"] for event in service.events} == {service.pid}
        detail = service.named("engine.fault")[1]["detail"]
        assert "new thread" in detail or "Resource temporarily unavailable" in detail
    audit.assert_settled(service, data)


def test_starved_service_is_slow_and_not_hung(tmp_path: Path) -> None:
    with ServiceUnderTest(tmp_path, settings=WATCHFUL) as service:
        with group("cpu", service.pid) as limited:
            limited.limit_processor(STARVED)
            data = service.drop_all(samples(range(20)))
            threading.Event().wait(STALL_AFTER + 1.0)  # what is tested is that this time passes
            assert limited.throttled() > 10, "the service was not starved"
            limited.limit_processor(1.0)
            service.wait_for_endings(len(data))
        assert service.named("service.stalled") == []
    audit.assert_settled(service, data)
